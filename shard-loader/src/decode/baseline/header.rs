//! The segments before the pixels of a JPEG picture, as far as the fast decoder takes them.

/// How the colour planes lie to the brightness plane.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Layout {
    /// There are none.
    Gray,
    /// At every pixel (4:4:4).
    Full,
    /// At every second column and row (4:2:0).
    Halved,
}

/// A Huffman table as a picture brings it: how many codes of 1 to 16 bits there are, and their symbols in order.
#[derive(Clone, Copy, Debug)]
pub(super) struct Codes<'a> {
    pub(super) counts: &'a [u8; 16],
    pub(super) symbols: &'a [u8],
}

/// One plane's tables.
#[derive(Clone, Copy, Debug)]
pub(super) struct Plane<'a> {
    /// Quantisation steps in zigzag order.
    pub(super) steps: &'a [u8; 64],
    pub(super) dc: Codes<'a>,
    pub(super) ac: Codes<'a>,
}

/// A picture that the fast decoder takes, and where its pixels begin.
#[derive(Clone, Debug)]
pub(super) struct Header<'a> {
    pub(super) width: usize,
    pub(super) height: usize,
    pub(super) layout: Layout,
    /// One or three.
    pub(super) planes: Vec<Plane<'a>>,
    /// What follows the scan's header.
    pub(super) scan: &'a [u8],
}

/// libjpeg refuses longer sides.
const SIDE_MAX: usize = 65_500;

/// What was read of the segments so far.
#[derive(Default)]
struct Seen<'a> {
    jfif: bool,
    adobe: Option<u8>,
    steps: [Option<&'a [u8; 64]>; 4],
    dc: [Option<Codes<'a>>; 4],
    ac: [Option<Codes<'a>>; 4],
    frame: Option<&'a [u8]>,
}

/// Reads up to the scan. `None` for all but plain pictures: baseline, 8 bits, gray or `YCbCr`, one scan, no restarts, nothing
/// doubtful.
pub(super) fn parse(bytes: &[u8]) -> Option<Header<'_>> {
    let mut seen = Seen::default();
    let mut rest = bytes.strip_prefix(&[0xff, 0xd8])?;
    loop {
        let [0xff, marker, tail @ ..] = rest else {
            return None;
        };
        let (length, tail) = tail.split_first_chunk::<2>()?;
        let length = usize::from(u16::from_be_bytes(*length)).checked_sub(2)?;
        let (segment, after) = tail.split_at_checked(length)?;
        rest = after;
        match marker {
            0xe0 if segment.len() >= 14 && segment.starts_with(b"JFIF\0") => {
                // libjpeg warns of other versions.
                (segment[5] == 1).then_some(())?;
                seen.jfif = true;
            }
            0xee if segment.len() >= 12 && segment.starts_with(b"Adobe") => seen.adobe = Some(segment[11]),
            0xe0..=0xef | 0xfe => {}
            0xdb => seen.steps(segment)?,
            0xc4 => seen.codes(segment)?,
            // Restarts are libjpeg's; an interval of none is as good as no segment.
            0xdd if segment == [0, 0] => {}
            0xc0 if seen.frame.is_none() => seen.frame = Some(segment),
            0xda => return seen.header(segment, rest),
            _ => return None,
        }
    }
}

impl<'a> Seen<'a> {
    fn steps(&mut self, mut segment: &'a [u8]) -> Option<()> {
        while let Some((slot, tail)) = segment.split_first() {
            // Steps of 16 bits have a slot with its high bits set.
            let (steps, tail) = tail.split_first_chunk::<64>()?;
            *self.steps.get_mut(usize::from(*slot))? = Some(steps);
            segment = tail;
        }
        Some(())
    }

    fn codes(&mut self, mut segment: &'a [u8]) -> Option<()> {
        while let Some((slot, tail)) = segment.split_first() {
            let (counts, tail) = tail.split_first_chunk::<16>()?;
            let number = counts.iter().map(|n| usize::from(*n)).sum::<usize>();
            let (symbols, tail) = tail.split_at_checked(number)?;
            let slots = if *slot < 16 { &mut self.dc } else { &mut self.ac };
            let at = if *slot < 16 { *slot } else { *slot - 16 };
            *slots.get_mut(usize::from(at))? = Some(Codes { counts, symbols });
            segment = tail;
        }
        Some(())
    }

    fn header(&self, scan: &[u8], rest: &'a [u8]) -> Option<Header<'a>> {
        let [8, h0, h1, w0, w1, number, parts @ ..] = self.frame? else {
            return None;
        };
        let height = usize::from(u16::from_be_bytes([*h0, *h1]));
        let width = usize::from(u16::from_be_bytes([*w0, *w1]));
        let (parts, []) = parts.as_chunks::<3>() else {
            return None;
        };
        let sampling: Vec<u8> = parts.iter().map(|[_, sampling, _]| *sampling).collect();
        let layout = match sampling[..] {
            [0x11] => Layout::Gray,
            [0x11, 0x11, 0x11] => Layout::Full,
            // Narrower ones are not interpolated by libjpeg.
            [0x22, 0x11, 0x11] if width > 4 => Layout::Halved,
            _ => return None,
        };
        let sizes = 1..=SIDE_MAX;
        if usize::from(*number) != parts.len() || !sizes.contains(&width) || !sizes.contains(&height) {
            return None;
        }
        if layout != Layout::Gray && !self.is_ycc(parts) {
            return None;
        }
        let planes = self.planes(scan, parts)?;
        Some(Header {
            width,
            height,
            layout,
            planes,
            scan: rest,
        })
    }

    /// Whether libjpeg takes three planes for brightness and two colours.
    fn is_ycc(&self, parts: &[[u8; 3]]) -> bool {
        match self.adobe {
            _ if self.jfif => true,
            Some(transform) => transform == 1,
            None => parts.iter().map(|[id, ..]| *id).eq([1, 2, 3]),
        }
    }

    fn planes(&self, scan: &[u8], parts: &[[u8; 3]]) -> Option<Vec<Plane<'a>>> {
        let (number, scan) = scan.split_first()?;
        let (uses, rest) = scan.as_chunks::<2>();
        let (uses, spectrum) = uses.split_at_checked(parts.len())?;
        // All of the spectrum at full precision: 0, 63, 0.
        if usize::from(*number) != parts.len() || spectrum != [[0, 63]] || *rest != [0] {
            return None;
        }
        let plane = |([id, _, steps], [scan_id, codes]): (&[u8; 3], &[u8; 2])| {
            Some(Plane {
                steps: (*self.steps.get(usize::from(*steps))?)?,
                dc: (*self.dc.get(usize::from(codes >> 4))?)?,
                ac: (*self.ac.get(usize::from(codes & 15))?)?,
            })
            .filter(|_| id == scan_id)
        };
        parts.iter().zip(uses).map(plane).collect()
    }
}
