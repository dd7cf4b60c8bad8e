//! Plain JPEG pictures, which most are, at twice the speed of libjpeg and to its very bytes.
//!
//! Taken are baseline pictures of 8 bits, gray or `YCbCr` at 4:4:4 or 4:2:0, in one scan that is whole to its last bit. At
//! whatever else, and at the first thing that is odd, libjpeg decodes the picture from its beginning: what it makes of damage
//! is what Pillow makes of it, and no second opinion is wanted there.

mod entropy;
mod header;
mod pixels;

use super::Rgb;
use entropy::{Bits, Table, unstuff};
use header::{Codes, Header, Layout};
use pixels::{ROOM_OF_PAIR, SLACK, interpolate, inverse, row_to_rgb};
use std::cell::RefCell;
use std::rc::Rc;

/// A picture that may be decoded here.
#[derive(Debug)]
pub(super) struct Plain<'a>(Header<'a>);

/// Room that is used again from picture to picture. Nothing in it is read before it is written; tables are found by all of
/// their codes.
#[derive(Debug, Default)]
struct Room {
    bits: Vec<u8>,
    planes: [Rows; 3],
    sums: Vec<i16>,
    colours: [Vec<u8>; 2],
    /// The tables of the pictures before: most have the same.
    tables: Vec<Rc<Table>>,
}

/// Tables that are kept.
const TABLES_MAX: usize = 16;

/// The table of these codes.
fn table(tables: &mut Vec<Rc<Table>>, codes: Codes<'_>, is_dc: bool) -> Option<Rc<Table>> {
    if let Some(known) = tables.iter().find(|t| t.is_of(codes, is_dc)) {
        return Some(Rc::clone(known));
    }
    let new = Table::new(codes, is_dc)?;
    if tables.len() == TABLES_MAX {
        tables.remove(0);
    }
    tables.push(Rc::clone(&new));
    Some(new)
}

/// Rows of a plane, of which the last few are kept: two rows of blocks at most, and what lies between.
#[derive(Debug, Default)]
struct Rows {
    bytes: Vec<u8>,
    stride: usize,
    kept: usize,
}

thread_local! {
    static ROOM: RefCell<Room> = RefCell::default();
}

impl Rows {
    fn prepare(&mut self, width: usize, kept: usize) {
        (self.stride, self.kept) = (width + SLACK, kept);
        if self.bytes.len() < self.stride * kept {
            self.bytes.resize(self.stride * kept, 0);
        }
    }

    fn row(&self, y: usize) -> &[u8] {
        &self.bytes[y % self.kept * self.stride..][..self.stride]
    }

    /// Puts the rows of a block, or of two beside each other, at column `x` and row `y`.
    #[inline(always)]
    fn put<const N: usize>(&mut self, x: usize, y: usize, block: [&[u8; N]; 8]) {
        let mut at = y % self.kept * self.stride + x;
        for from in block {
            if let Some(to) = self.bytes.get_mut(at..).and_then(|rest| rest.first_chunk_mut::<N>()) {
                *to = *from;
            }
            at += self.stride;
        }
    }
}

impl<'a> Plain<'a> {
    /// A picture to be decoded here, by its header.
    pub(super) fn of(bytes: &'a [u8]) -> Option<Self> {
        let able = std::is_x86_feature_detected!("avx2")
            && std::is_x86_feature_detected!("bmi1")
            && std::is_x86_feature_detected!("bmi2");
        able.then(|| header::parse(bytes)).flatten().map(Self)
    }

    /// Width and height.
    pub(super) fn size(&self) -> (usize, usize) {
        (self.0.width, self.0.height)
    }

    /// Decodes it to `out`, which has room for it. `None` when it is none of ours after all; then `out` holds nothing of use.
    pub(super) fn decode(&self, out: &mut Rgb) -> Option<()> {
        ROOM.with_borrow_mut(|room| {
            // SAFETY: only made where these features are.
            #[allow(unsafe_code, reason = "a call of a function compiled for detected features")]
            unsafe {
                scan(&self.0, room, out)
            }
        })
    }
}

/// What one plane's blocks are decoded with.
struct Coding {
    dc: Rc<Table>,
    ac: Rc<Table>,
    steps: [i32; 128],
    before: i32,
}

/// Blocks in the order of the scan, up to what fills three pairs: plane, pair, first or second of it.
type Order = &'static [(usize, usize, usize)];

impl Layout {
    /// Blocks that are decoded together, and how many of them are one unit of the scan.
    fn order(self) -> (Order, usize) {
        match self {
            Self::Gray => (&[(0, 0, 0), (0, 0, 1)], 1),
            Self::Full => (&[(0, 0, 0), (1, 1, 0), (2, 2, 0), (0, 0, 1), (1, 1, 1), (2, 2, 1)], 3),
            Self::Halved => (&[(0, 0, 0), (0, 0, 1), (0, 1, 0), (0, 1, 1), (1, 2, 0), (2, 2, 1)], 6),
        }
    }
}

#[target_feature(enable = "avx2,bmi1,bmi2")]
fn scan(header: &Header<'_>, room: &mut Room, out: &mut Rgb) -> Option<()> {
    let Room {
        bits,
        planes,
        sums,
        colours,
        tables,
    } = room;
    let mut coding = |plane: &header::Plane<'_>| {
        let mut steps = [0; 128];
        for (to, from) in steps.iter_mut().zip(plane.steps) {
            *to = i32::from(*from);
        }
        Some(Coding {
            dc: table(tables, plane.dc, true)?,
            ac: table(tables, plane.ac, false)?,
            steps,
            before: 0,
        })
    };
    let mut codings = header.planes.iter().map(&mut coding).collect::<Option<Vec<_>>>()?;
    unstuff(header.scan, bits)?;
    let (order, unit) = header.layout.order();
    let (units, high) = match header.layout {
        Layout::Gray | Layout::Full => (header.width.div_ceil(8), 8),
        Layout::Halved => (header.width.div_ceil(16), 16),
    };
    for rows in planes.iter_mut() {
        rows.prepare(units.next_multiple_of(2) * high, 2 * high);
    }
    let colour_width = header.width.div_ceil(2);
    sums.resize(colour_width + SLACK, 0);
    for colour in colours.iter_mut() {
        colour.resize(2 * colour_width + SLACK, 0);
    }
    let mut bits = Bits::new(bits);
    // Those just decoded rest for a while: bytes that were written one by one cannot be read as a vector at once.
    let (mut fresh, mut rested) = (&mut [[0i16; ROOM_OF_PAIR]; 3], &mut [[0i16; ROOM_OF_PAIR]; 3]);
    let mut done = 0;
    for top in (0..header.height).step_by(high) {
        let (mut left, mut waiting) = (units, None);
        while left > 0 {
            let now = left.min(order.len() / unit);
            for (plane, pair, second) in &order[..now * unit] {
                let Coding { dc, ac, steps, before } = codings.get_mut(*plane)?;
                let out = fresh[*pair][second * 8..].first_chunk_mut::<256>()?;
                bits.block(dc, ac, steps, before, out)?;
            }
            if let Some(x) = waiting.replace((units - left) * high) {
                put(header.layout, planes, rested, x, top);
            }
            std::mem::swap(&mut fresh, &mut rested);
            left -= now;
        }
        if let Some(x) = waiting {
            put(header.layout, planes, rested, x, top);
        }
        // The last row of halved colours wants the first one of the next blocks.
        let lag = usize::from(header.layout == Layout::Halved && top + high < header.height);
        let end = (top + high).min(header.height) - lag;
        for y in done..end {
            let rgb = &mut out.pixels[y * header.width * 3..][..header.width * 3];
            match header.layout {
                Layout::Gray => gray_to_rgb(planes[0].row(y), rgb),
                Layout::Full => row_to_rgb(planes[0].row(y), planes[1].row(y), planes[2].row(y), rgb),
                Layout::Halved => {
                    let last = header.height.div_ceil(2) - 1;
                    let near = y / 2;
                    let far = if y % 2 == 0 {
                        near.saturating_sub(1)
                    } else {
                        (near + 1).min(last)
                    };
                    for (colour, plane) in colours.iter_mut().zip(&planes[1..]) {
                        interpolate(plane.row(near), plane.row(far), colour_width, sums, colour);
                    }
                    row_to_rgb(planes[0].row(y), &colours[0], &colours[1], rgb);
                }
            }
        }
        done = end;
    }
    bits.at_end().then_some(())
}

/// Transforms what was decoded of the pairs and puts it where it belongs.
#[inline]
#[target_feature(enable = "avx2,bmi1,bmi2")]
fn put(layout: Layout, planes: &mut [Rows; 3], pairs: &mut [[i16; ROOM_OF_PAIR]; 3], x: usize, top: usize) {
    let [luma, cb, cr] = planes;
    let [first, second, third] = pairs;
    let mut blocks = [[0; 16]; 8];
    inverse(first, &mut blocks);
    luma.put(x, top, blocks.each_ref());
    match layout {
        Layout::Gray => {}
        Layout::Full => {
            inverse(second, &mut blocks);
            cb.put(x, top, blocks.each_ref());
            inverse(third, &mut blocks);
            cr.put(x, top, blocks.each_ref());
        }
        Layout::Halved => {
            inverse(second, &mut blocks);
            luma.put(x, top + 8, blocks.each_ref());
            inverse(third, &mut blocks);
            let halves = blocks.each_ref().map(|row| row.as_chunks::<8>().0);
            cb.put(x / 2, top / 2, halves.map(|row| &row[0]));
            cr.put(x / 2, top / 2, halves.map(|row| &row[1]));
        }
    }
}

fn gray_to_rgb(gray: &[u8], rgb: &mut [u8]) {
    for (pixel, value) in rgb.as_chunks_mut::<3>().0.iter_mut().zip(gray) {
        *pixel = [*value; 3];
    }
}
