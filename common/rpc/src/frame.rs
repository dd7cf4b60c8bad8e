//! The header before every block of bytes that travels between two workers.
//!
//! Fixed size, flat, rkyv with checked access, a checksum of itself, and a fence (rule G6): a frame of another run, generation,
//! plan or step is an error and never data.

use rkyv::{Archive, Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_64;

/// Version of the frame's format.
pub const FRAME_VERSION: u8 = 1;
/// Size of an encoded header.
pub const HEADER_BYTES: usize = 56;
/// Most bytes behind one header; longer buffers travel as several frames.
pub const PAYLOAD_BYTES_MAX: usize = 1 << 20;
/// The checksum is the last field.
const CHECK_BYTES: usize = 8;

/// What a frame belongs to. Frames of two fences never mix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fence {
    /// Digest of the run's id.
    pub run: u64,
    /// The generation.
    pub generation: u64,
    /// Digest of its plan.
    pub plan: u64,
    /// The step.
    pub step: u64,
}

/// What the bytes behind a header are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum FrameKind {
    /// A block of an all-gather.
    Gather = 1,
    /// A partial sum on its way to its owner.
    Reduce = 2,
    /// A finished sum on its way round.
    Share = 3,
    /// A rank's word that its step is whole.
    Sentinel = 4,
    /// A piece of a state.
    Heal = 5,
}

/// The header of one frame.
#[derive(Archive, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
#[rkyv(derive(Debug))]
pub struct FrameHeader {
    /// [`FRAME_VERSION`].
    pub version: u8,
    /// A [`FrameKind`].
    pub kind: u8,
    /// Rank of the sender.
    pub from: u16,
    /// Number of the frame on its connection, from 0; wraps.
    pub op: u32,
    /// See [`Fence::run`].
    pub run: u64,
    /// See [`Fence::generation`].
    pub generation: u64,
    /// See [`Fence::plan`].
    pub plan: u64,
    /// See [`Fence::step`].
    pub step: u64,
    /// Bytes that follow.
    pub bytes: u64,
    /// xxh3 of all bytes of the header before this field.
    pub check: u64,
}

/// A frame that must not be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// Not a header, or a damaged one.
    #[error("a frame's header is damaged: {0}")]
    Damaged(String),
    /// Of another format.
    #[error(
        "a frame has format version {got}, this Argosy speaks {FRAME_VERSION}; run the same version on all workers"
    )]
    Version {
        /// Its version.
        got: u8,
    },
    /// Stale or foreign (rule G6), or out of turn.
    #[error("a frame of another {what} arrived: expected {expected:#x}, got {got:#x}")]
    Foreign {
        /// Which field differs.
        what: &'static str,
        /// Ours.
        expected: u64,
        /// Its.
        got: u64,
    },
}

/// Bytes of a header where rkyv may look at them.
#[repr(align(16))]
struct Aligned([u8; HEADER_BYTES]);

impl FrameHeader {
    /// A header for `bytes` bytes.
    #[must_use]
    pub fn new(fence: Fence, kind: FrameKind, from: usize, op: u32, bytes: usize) -> Self {
        Self {
            version: FRAME_VERSION,
            kind: kind as u8,
            from: from as u16,
            op,
            run: fence.run,
            generation: fence.generation,
            plan: fence.plan,
            step: fence.step,
            bytes: bytes as u64,
            check: 0,
        }
    }

    /// Appends the encoded header to `out`.
    ///
    /// # Errors
    /// [`FrameError::Damaged`] if it cannot be encoded, which a flat type of fixed size always can.
    pub fn encode(&self, out: &mut Vec<u8>) -> Result<(), FrameError> {
        let packed = rkyv::to_bytes::<rkyv::rancor::Error>(self).map_err(|e| FrameError::Damaged(e.to_string()))?;
        if packed.len() != HEADER_BYTES {
            return Err(FrameError::Damaged(format!(
                "{} bytes instead of {HEADER_BYTES}",
                packed.len()
            )));
        }
        let fields = &packed[..HEADER_BYTES - CHECK_BYTES];
        out.extend_from_slice(fields);
        out.extend_from_slice(&xxh3_64(fields).to_le_bytes());
        Ok(())
    }

    /// Reads a header; its fields are still to be compared with [`FrameHeader::expect`].
    ///
    /// # Errors
    /// [`FrameError::Version`] or [`FrameError::Damaged`].
    pub fn decode(bytes: &[u8; HEADER_BYTES]) -> Result<Self, FrameError> {
        if bytes[0] != FRAME_VERSION {
            return Err(FrameError::Version { got: bytes[0] });
        }
        let aligned = Aligned(*bytes);
        let archived = rkyv::access::<ArchivedFrameHeader, rkyv::rancor::Error>(&aligned.0)
            .map_err(|e| FrameError::Damaged(e.to_string()))?;
        let header =
            rkyv::deserialize::<Self, rkyv::rancor::Error>(archived).map_err(|e| FrameError::Damaged(e.to_string()))?;
        if header.check != xxh3_64(&bytes[..HEADER_BYTES - CHECK_BYTES]) {
            return Err(FrameError::Damaged("its checksum does not match".into()));
        }
        Ok(header)
    }

    /// Compares a received header with what must come now, before a byte of its payload is read.
    ///
    /// # Errors
    /// [`FrameError::Foreign`] names the first field that differs.
    pub fn expect(&self, fence: Fence, kind: FrameKind, from: usize, op: u32, bytes: usize) -> Result<(), FrameError> {
        let pairs = [
            ("run", fence.run, self.run),
            ("generation", fence.generation, self.generation),
            ("plan", fence.plan, self.plan),
            ("step", fence.step, self.step),
            ("rank", from as u64, u64::from(self.from)),
            ("kind", kind as u64, u64::from(self.kind)),
            ("turn", u64::from(op), u64::from(self.op)),
            ("length", bytes.min(PAYLOAD_BYTES_MAX) as u64, self.bytes),
        ];
        match pairs.into_iter().find(|(_, expected, got)| expected != got) {
            Some((what, expected, got)) => Err(FrameError::Foreign { what, expected, got }),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FENCE: Fence = Fence {
        run: 0x1122,
        generation: 3,
        plan: 0x5566,
        step: 7,
    };

    fn encoded() -> [u8; HEADER_BYTES] {
        let mut out = Vec::new();
        FrameHeader::new(FENCE, FrameKind::Reduce, 2, 9, 1000)
            .encode(&mut out)
            .unwrap();
        out.try_into().unwrap()
    }

    #[test]
    fn frame_header_has_the_golden_bytes_of_version_one() {
        let fields: [u8; 48] = [
            1, 2, 2, 0, 9, 0, 0, 0, 0x22, 0x11, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0, 0x66, 0x55, 0, 0, 0, 0, 0, 0,
            7, 0, 0, 0, 0, 0, 0, 0, 0xe8, 0x03, 0, 0, 0, 0, 0, 0,
        ];
        let bytes = encoded();
        assert_eq!(bytes[..48], fields);
        assert_eq!(bytes[48..], xxh3_64(&fields).to_le_bytes());
    }

    #[test]
    fn frame_of_its_turn_is_taken() {
        let header = FrameHeader::decode(&encoded()).unwrap();
        assert_eq!(header.expect(FENCE, FrameKind::Reduce, 2, 9, 1000), Ok(()));
    }

    #[test]
    fn frame_that_differs_in_any_fenced_field_is_refused_by_name() {
        let header = FrameHeader::decode(&encoded()).unwrap();
        let refused = |fence, kind, from, op, bytes| match header.expect(fence, kind, from, op, bytes) {
            Err(FrameError::Foreign { what, .. }) => what,
            other => panic!("{other:?}"),
        };
        let kind = FrameKind::Reduce;
        assert_eq!(refused(Fence { run: 1, ..FENCE }, kind, 2, 9, 1000), "run");
        assert_eq!(
            refused(Fence { generation: 4, ..FENCE }, kind, 2, 9, 1000),
            "generation"
        );
        assert_eq!(refused(Fence { plan: 1, ..FENCE }, kind, 2, 9, 1000), "plan");
        assert_eq!(refused(Fence { step: 8, ..FENCE }, kind, 2, 9, 1000), "step");
        assert_eq!(refused(FENCE, FrameKind::Share, 2, 9, 1000), "kind");
        assert_eq!(refused(FENCE, kind, 1, 9, 1000), "rank");
        assert_eq!(refused(FENCE, kind, 2, 8, 1000), "turn");
        assert_eq!(refused(FENCE, kind, 2, 9, 999), "length");
    }

    #[test]
    fn frame_that_announces_four_gigabytes_is_refused_by_its_length_whatever_was_expected() {
        let mut huge = FrameHeader::new(FENCE, FrameKind::Reduce, 2, 9, 0);
        huge.bytes = 4 << 30;
        let mut out = Vec::new();
        huge.encode(&mut out).unwrap();
        let header = FrameHeader::decode(&out.try_into().unwrap()).unwrap();
        for expected in [0, 1000, 4 << 30] {
            let refused = header.expect(FENCE, FrameKind::Reduce, 2, 9, expected);
            assert!(
                matches!(refused, Err(FrameError::Foreign { what: "length", .. })),
                "{refused:?}"
            );
        }
    }

    #[test]
    fn frame_with_any_flipped_bit_is_refused() {
        let good = encoded();
        for at in 0..HEADER_BYTES * 8 {
            let mut bad = good;
            bad[at / 8] ^= 1 << (at % 8);
            assert!(FrameHeader::decode(&bad).is_err(), "bit {at}");
        }
    }
}
