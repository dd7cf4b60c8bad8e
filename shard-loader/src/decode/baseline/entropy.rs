//! Huffman codes of a baseline JPEG scan to coefficients.
//!
//! Bits are kept left-aligned in a word. One look-up gives the next two coefficients where their codes and worths fit the
//! bits that are looked at, as half of them do in photographs; then the only thing that the next look-up waits for is one
//! shift. The scan's stuffed zeros are taken out beforehand, so that a refill is one load.

use super::header::Codes;
use std::rc::Rc;

/// Bits of a look-up.
const LOOK_BITS: u32 = 10;
const LOOKS: usize = 1 << LOOK_BITS;
/// Bits of a difference of brightness, at most.
const SIZE_MAX: u32 = 11;

/// A single entry's bytes, from the lowest: bits of code and worth together; those of the code; 63 less those of the worth; and
/// how far the coefficient is behind the last one. Shifts look at six bits only, so that an entry, shifted, is a shift's amount.
const CODE_AT: u32 = 8;
const SIZE_AT: u32 = 16;
const STEP_AT: u32 = 24;
/// Not a plain coefficient: no code as short as this, or a symbol without a worth.
const SPECIAL: u32 = 1 << 31;
/// Steps of the two symbols without a worth: the end of a block, and sixteen zeros.
const END: u32 = 1;
const ZEROS: u32 = 16;

/// A double entry, from the lowest: bits of all of it in a byte, step in a byte and worth in two of the first coefficient, the
/// same of the second. A coefficient alone comes twice, the second time with a step of nothing. Zero where there is none.
const STEP_1_AT: u32 = 8;
const WORTH_1_AT: u32 = 16;
const STEP_2_AT: u32 = 32;
const WORTH_2_AT: u32 = 48;
/// The block ends behind them.
const ENDS: u64 = 1 << 40;

/// Where the k-th coefficient of the zigzag stands in a block; with those of a second block at their side, rows of which
/// are 16 long. Steps may lead beyond the last; what is put there is never looked at.
const PLACES: [u8; 128] = places();
const NOWHERE: u8 = 255;

const fn places() -> [u8; 128] {
    let mut places = [NOWHERE; 128];
    let (mut k, mut diagonal) = (0, 0);
    while diagonal < 15 {
        let mut i = 0;
        while i <= diagonal {
            // Odd diagonals run down, even ones up.
            let (row, column) = if diagonal % 2 == 1 {
                (i, diagonal - i)
            } else {
                (diagonal - i, i)
            };
            if row < 8 && column < 8 {
                places[k] = (row * 16 + column) as u8;
                k += 1;
            }
            i += 1;
        }
        diagonal += 1;
    }
    places
}

/// Codes for look-up, and the long ones for a search.
#[derive(Debug)]
pub(super) struct Table {
    singles: [u32; LOOKS],
    doubles: [u64; LOOKS],
    /// For 1 to 16 bits: one more than the last code, left-aligned in 16 bits.
    ends: [u32; 17],
    /// For 1 to 16 bits: what to add to a code to come to its symbol.
    offsets: [i32; 17],
    symbols: [u8; 256],
    counts: [u8; 16],
    is_dc: bool,
}

impl Table {
    /// Whether it is the one of these codes.
    pub(super) fn is_of(&self, codes: Codes<'_>, is_dc: bool) -> bool {
        self.is_dc == is_dc && self.counts == *codes.counts && self.symbols.starts_with(codes.symbols)
    }

    /// `None` where the codes are none that libjpeg takes without a murmur.
    pub(super) fn new(codes: Codes<'_>, is_dc: bool) -> Option<Rc<Self>> {
        let mut table = Box::new(Self {
            singles: [SPECIAL; LOOKS],
            doubles: [0; LOOKS],
            ends: [0; 17],
            offsets: [0; 17],
            symbols: [0; 256],
            counts: *codes.counts,
            is_dc,
        });
        table
            .symbols
            .get_mut(..codes.symbols.len())?
            .copy_from_slice(codes.symbols);
        if is_dc && codes.symbols.iter().any(|s| u32::from(*s) > SIZE_MAX) {
            return None;
        }
        let (mut code, mut at) = (0u32, 0usize);
        for (bits, count) in (1u32..).zip(codes.counts) {
            let count = u32::from(*count);
            // Codes of a length must fit it, and none may be all ones.
            if code + count >= 1 << bits {
                return None;
            }
            table.offsets[bits as usize] = at as i32 - code as i32;
            for symbol in &codes.symbols[at..at + count as usize] {
                if bits <= LOOK_BITS {
                    let spread = LOOK_BITS - bits;
                    let first = (code << spread) as usize;
                    table.singles[first..first + (1 << spread)].fill(entry(*symbol, bits, is_dc));
                }
                code += 1;
            }
            at += count as usize;
            table.ends[bits as usize] = code << (16 - bits);
            code <<= 1;
        }
        if !is_dc {
            for look in 0..LOOKS {
                table.doubles[look] = double(&table.singles, look);
            }
        }
        Some(Rc::from(table))
    }

    /// The single entry of the code that `word` begins with, by search.
    #[cold]
    #[inline(never)]
    fn search(&self, word: u64) -> Option<u32> {
        let head = (word >> 48) as u32;
        let bits = (1..=16).find(|bits| head < self.ends[*bits as usize])?;
        let code = (head >> (16 - bits)) as i32;
        let at = usize::try_from(code + self.offsets[bits as usize]).ok()?;
        Some(entry(*self.symbols.get(at)?, bits, self.is_dc))
    }
}

/// The single entry of a symbol whose code has so many bits.
fn entry(symbol: u8, bits: u32, is_dc: bool) -> u32 {
    let (zeros, size) = match is_dc {
        true => (0, u32::from(symbol)),
        false => (u32::from(symbol >> 4), u32::from(symbol & 15)),
    };
    let plain = (bits + size) | bits << CODE_AT | (63 - size) << SIZE_AT | (zeros + 1) << STEP_AT;
    match size {
        _ if is_dc => plain,
        0 => plain | SPECIAL,
        1..=10 => plain,
        // No baseline picture has these.
        _ => SPECIAL,
    }
}

/// The double entry of what is looked at, from the single ones.
fn double(singles: &[u32; LOOKS], look: usize) -> u64 {
    let coefficient = |look: usize, room: u32| {
        let entry = singles[look];
        let mut head = Head {
            word: (look as u64) << (64 - LOOK_BITS),
            have: 64,
            at: 0,
        };
        let fits = entry & SPECIAL == 0 && entry & 0xff <= room;
        fits.then(|| {
            (
                entry & 0xff,
                u64::from(entry >> STEP_AT),
                u64::from(head.take(entry) as u16),
            )
        })
    };
    let Some((bits, step, worth)) = coefficient(look, LOOK_BITS) else {
        return 0;
    };
    let room = LOOK_BITS - bits;
    let next = look << bits & (LOOKS - 1);
    let end = singles[next];
    let (more, second) = match coefficient(next, room) {
        Some((bits, step, worth)) => (bits, step << STEP_2_AT | worth << WORTH_2_AT),
        None if end & SPECIAL != 0 && end & 0xff <= room && end >> STEP_AT == END | SPECIAL >> STEP_AT => {
            (end & 0xff, worth << WORTH_2_AT | ENDS)
        }
        None => (0, worth << WORTH_2_AT),
    };
    u64::from(bits + more) | step << STEP_1_AT | worth << WORTH_1_AT | second
}

/// A scan's bits without stuffing; some bytes of nothing follow.
pub(super) struct Bits<'a> {
    data: &'a [u8],
    head: Head,
}

/// Bytes of nothing after a scan, so that a refill can always load a word.
const SLACK: usize = 16;

/// Copies a scan to `out` without its stuffed zeros; `None` unless the picture's end follows it directly.
pub(super) fn unstuff(scan: &[u8], out: &mut Vec<u8>) -> Option<()> {
    out.clear();
    out.reserve(scan.len() + SLACK);
    let mut rest = scan;
    loop {
        let at = memchr::memchr(0xff, rest)?;
        match rest.get(at + 1)? {
            0 => out.extend_from_slice(&rest[..=at]),
            0xd9 => {
                out.extend_from_slice(&rest[..at]);
                out.extend_from_slice(&[0; SLACK]);
                return Some(());
            }
            _ => return None,
        }
        rest = &rest[at + 2..];
    }
}

impl<'a> Bits<'a> {
    /// Over what [`unstuff`] made.
    pub(super) fn new(data: &'a [u8]) -> Self {
        let head = Head {
            word: 0,
            have: 0,
            at: 0,
        };
        Self { data, head }
    }

    /// Whether all of the scan was used, up to the bits that fill its last byte.
    pub(super) fn at_end(&self) -> bool {
        let used = self.head.at as u64 * 8 - u64::from(self.head.have);
        let there = (self.data.len() - SLACK) as u64 * 8;
        used <= there && there - used < 8
    }

    /// Coefficients of the next block, times their steps, into every `PLACES` of `out`, which is zero there. `before` is the
    /// brightness of the block before. `None` where something is odd, and libjpeg shall see to it.
    #[inline(never)]
    #[target_feature(enable = "bmi1,bmi2")]
    pub(super) fn block(
        &mut self,
        dc: &Table,
        ac: &Table,
        steps: &[i32; 128],
        before: &mut i32,
        out: &mut [i16; 256],
    ) -> Option<()> {
        let mut head = self.head;
        head.refill(self.data)?;
        let mut found = dc.singles[head.peek()];
        if found & SPECIAL != 0 {
            found = dc.search(head.word)?;
        }
        *before = before.wrapping_add(head.take(found));
        let value = before.wrapping_mul(steps[0]);
        let mut beyond = value.wrapping_add(LIMIT) as u32;
        out[0] = value as i16;
        let mut k = 0usize;
        // A macro and no function: what it works on has to stay in registers.
        macro_rules! put {
            ($k:expr, $worth:expr) => {
                let value = $worth * steps[$k & 127];
                beyond |= value.wrapping_add(LIMIT) as u32;
                out[usize::from(PLACES[$k & 127])] = value as i16;
            };
        }
        loop {
            // No entry takes more than 26 bits.
            if head.have < 26 {
                head.refill(self.data)?;
            }
            let found = ac.doubles[head.peek()];
            let first = k + (found >> STEP_1_AT & 0xff) as usize;
            let second = first + (found >> STEP_2_AT & 0x7f) as usize;
            // The last coefficient of all ends its block without a word, and what follows is of the next.
            if found != 0 && second < 63 {
                head.skip(found as u32);
                put!(first, i32::from((found >> WORTH_1_AT) as i16));
                put!(second, (found as i64 >> WORTH_2_AT) as i32);
                k = second;
                if found & ENDS != 0 {
                    break;
                }
                continue;
            }
            let mut found = ac.singles[head.peek()];
            if found == SPECIAL {
                found = ac.search(head.word)?;
            }
            if found & SPECIAL != 0 {
                head.skip(found);
                match (found & !SPECIAL) >> STEP_AT {
                    END => break,
                    ZEROS if k + 16 < 63 => k += 16,
                    // Nobody writes others, and what libjpeg makes of them is its own affair.
                    _ => return None,
                }
                continue;
            }
            k += (found >> STEP_AT) as usize;
            let worth = head.take(found);
            if k > 63 {
                return None;
            }
            put!(k, worth);
            if k == 63 {
                break;
            }
        }
        self.head = head;
        (beyond < 2 * LIMIT as u32).then_some(())
    }
}

/// Coefficients of photographs stay far below; beyond, the sums of the inverse transform overflow in ways of libjpeg's own. A
/// power of two: one OR of all tells whether any was beyond.
const LIMIT: i32 = 4096;

/// The bits at hand, left-aligned, and where the next ones are.
#[derive(Clone, Copy)]
struct Head {
    word: u64,
    have: u32,
    at: usize,
}

impl Head {
    /// At least 56 bits; nothing but zeros come after the scan's end.
    #[inline(always)]
    fn refill(&mut self, data: &[u8]) -> Option<()> {
        let next = data.get(self.at..)?.first_chunk::<8>()?;
        self.word |= u64::from_be_bytes(*next) >> self.have;
        self.at += ((63 - self.have) >> 3) as usize;
        self.have |= 56;
        Some(())
    }

    #[inline(always)]
    fn peek(&self) -> usize {
        (self.word >> (64 - LOOK_BITS)) as usize
    }

    /// Passes over as many bits as the lowest byte says, fewer than 64.
    #[inline(always)]
    fn skip(&mut self, entry: u32) {
        self.word = self.word.wrapping_shl(entry);
        self.have = self.have.wrapping_sub(entry & 0xff);
    }

    /// What the bits after a single entry's code are worth: the higher half of the numbers of that size is positive, the lower
    /// negative.
    #[inline(always)]
    fn take(&mut self, entry: u32) -> i32 {
        let bits = self.word.wrapping_shl(entry >> CODE_AT);
        self.skip(entry);
        let low = !((bits as i64) >> 63) as u64;
        // In two shifts, for a size of nothing.
        let amount = ((bits ^ low) >> 1).wrapping_shr(entry >> SIZE_AT);
        ((amount ^ low) as i32).wrapping_sub(low as i32)
    }
}
