//! The two passes, as plain loops that say what they compute, and the choice between them and their vector forms.

use super::weights::{FRACTION_BITS, ONE_HALF, Weights};

/// Instructions that a resizer uses. The bytes are the same with all of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Isa {
    /// Plain loops; the reference.
    Scalar,
    /// 16 bytes at a time.
    Sse41,
    /// 32 bytes at a time.
    Avx2,
    /// As before, and dot products over 64 bytes.
    Avx512,
}

impl Isa {
    /// The fastest that this machine has.
    #[must_use]
    pub fn detect() -> Self {
        Self::available().last().copied().unwrap_or(Self::Scalar)
    }

    /// All that this machine has, the fastest last.
    #[must_use]
    pub fn available() -> &'static [Self] {
        #[cfg(target_arch = "x86_64")]
        {
            if super::vnni::available() && std::is_x86_feature_detected!("avx2") {
                return &[Self::Scalar, Self::Sse41, Self::Avx2, Self::Avx512];
            }
            if std::is_x86_feature_detected!("avx2") {
                return &[Self::Scalar, Self::Sse41, Self::Avx2];
            }
            if std::is_x86_feature_detected!("sse4.1") {
                return &[Self::Scalar, Self::Sse41];
            }
        }
        &[Self::Scalar]
    }
}

/// A rectangle of RGB rows inside a larger picture.
pub(super) struct View<'a> {
    pub(super) bytes: &'a [u8],
    pub(super) stride: usize,
    pub(super) width: usize,
    pub(super) height: usize,
}

impl<'a> View<'a> {
    /// All of a picture without padding.
    pub(super) fn whole(bytes: &'a [u8], width: usize, height: usize) -> Self {
        Self {
            bytes,
            stride: width * 3,
            width,
            height,
        }
    }

    pub(super) fn row(&self, y: usize) -> &[u8] {
        &self.bytes[y * self.stride..y * self.stride + self.width * 3]
    }

    pub(super) fn copy_to(&self, out: &mut [u8]) {
        for (y, row) in out.chunks_exact_mut(self.width * 3).enumerate() {
            row.copy_from_slice(self.row(y));
        }
    }
}

/// Back from fixed point to a byte.
#[inline(always)]
fn to_byte(sum: i32) -> u8 {
    (sum >> FRACTION_BITS).clamp(0, 255) as u8
}

/// Weighted sum of bytes that lie `step` apart. Wraps like the vector forms; weights sum to 1.0 and leave two bits of
/// headroom, so nothing does.
#[inline(always)]
fn weigh(bytes: &[u8], step: usize, values: &[i32]) -> u8 {
    let products = bytes.iter().step_by(step).zip(values);
    to_byte(products.fold(ONE_HALF, |sum, (byte, weight)| {
        sum.wrapping_add(i32::from(*byte).wrapping_mul(*weight))
    }))
}

/// Every output row is a weighted sum of input rows. `out` holds `weights.len()` rows of the view's width.
pub(super) fn vertical(isa: Isa, view: &View<'_>, weights: &Weights, out: &mut [u8]) {
    match isa {
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 => super::vnni::vertical(view, weights, out),
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 => super::x86::vertical_avx2(view, weights, out),
        #[cfg(target_arch = "x86_64")]
        Isa::Sse41 => super::x86::vertical_sse41(view, weights, out),
        _ => {
            for (y, row) in out.chunks_exact_mut(view.width * 3).enumerate() {
                vertical_row_from(0, y, view, weights, row);
            }
        }
    }
}

/// The bytes of output row `y` from byte `start` on.
pub(super) fn vertical_row_from(start: usize, y: usize, view: &View<'_>, weights: &Weights, row: &mut [u8]) {
    let (first, values) = weights.of(y);
    for (x, byte) in row.iter_mut().enumerate().skip(start) {
        *byte = weigh(&view.bytes[first * view.stride + x..], view.stride, values);
    }
}

/// What a horizontal pass needs besides; used again from picture to picture.
#[derive(Debug, Default)]
pub(super) struct Room {
    #[cfg(target_arch = "x86_64")]
    block: Vec<u8>,
    #[cfg(target_arch = "x86_64")]
    plan: super::vnni::Plan,
}

/// Every output column is a weighted sum of input columns. `out` holds `view.height` rows of `weights.len()` pixels.
pub(super) fn horizontal(isa: Isa, view: &View<'_>, weights: &Weights, room: &mut Room, out: &mut [u8]) {
    match isa {
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 if super::vnni::horizontal(view, weights, &mut room.plan, out) => {}
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 | Isa::Avx512 => super::x86::horizontal_avx2(view, weights, &mut room.block, out),
        #[cfg(target_arch = "x86_64")]
        Isa::Sse41 => super::x86::horizontal_sse41(view, weights, &mut room.block, out),
        _ => {
            for (y, row) in out.chunks_exact_mut(weights.len() * 3).enumerate() {
                let from = view.row(y);
                for (x, pixel) in row.chunks_exact_mut(3).enumerate() {
                    let (first, values) = weights.of(x);
                    for (channel, byte) in pixel.iter_mut().enumerate() {
                        *byte = weigh(&from[first * 3 + channel..], 3, values);
                    }
                }
            }
        }
    }
}
