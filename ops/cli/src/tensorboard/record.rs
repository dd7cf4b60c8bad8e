//! TensorBoard's file format: TFRecord framing round `Event` messages of `tensorflow/core/util/event.proto`, of which three
//! kinds are written. Protocol buffers by hand: one message of four fields is not worth a code generator.

use crc::{CRC_32_ISCSI, Crc};

const CRC32C: Crc<u32> = Crc::<u32>::new(&CRC_32_ISCSI);
/// `SessionLog.START`.
const START: u64 = 1;

/// What a record says.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum What<'a> {
    /// First record of a file.
    Version,
    /// What was written before about this step and later ones holds no more.
    Restart,
    /// A number. TensorBoard's are 32 bits wide.
    Scalar { tag: &'a str, value: f32 },
}

/// One record. `wall_seconds` counts from 1970.
pub(crate) fn record(wall_seconds: f64, step: u64, what: What<'_>) -> Vec<u8> {
    frame(&event(wall_seconds, step, what))
}

/// TFRecord: length, masked CRC-32C of the length, data, masked CRC-32C of the data; all little endian.
fn frame(data: &[u8]) -> Vec<u8> {
    let length = (data.len() as u64).to_le_bytes();
    let mut out = Vec::with_capacity(data.len() + 16);
    out.extend_from_slice(&length);
    out.extend_from_slice(&masked_crc(&length).to_le_bytes());
    out.extend_from_slice(data);
    out.extend_from_slice(&masked_crc(data).to_le_bytes());
    out
}

/// Rotated and shifted, since the sum of data that holds its own sum tells nothing (`tensorflow/core/lib/hash/crc32c.h`).
pub(crate) fn masked_crc(data: &[u8]) -> u32 {
    CRC32C.checksum(data).rotate_right(15).wrapping_add(0xa282_ead8)
}

/// `Event { wall_time = 1, step = 2, file_version = 3, summary = 5, session_log = 7 }`.
fn event(wall_seconds: f64, step: u64, what: What<'_>) -> Vec<u8> {
    let mut out = Vec::new();
    double(&mut out, 1, wall_seconds);
    if step > 0 {
        key(&mut out, 2, 0);
        varint(&mut out, step);
    }
    match what {
        What::Version => bytes(&mut out, 3, b"brain.Event:2"),
        What::Restart => {
            let mut log = Vec::new();
            key(&mut log, 1, 0);
            varint(&mut log, START);
            bytes(&mut out, 7, &log);
        }
        What::Scalar { tag, value: number } => {
            // `Summary { value = 1 }` of `Value { tag = 1, simple_value = 2 }`.
            let mut value = Vec::new();
            bytes(&mut value, 1, tag.as_bytes());
            key(&mut value, 2, 5);
            value.extend_from_slice(&number.to_le_bytes());
            let mut summary = Vec::new();
            bytes(&mut summary, 1, &value);
            bytes(&mut out, 5, &summary);
        }
    }
    out
}

fn double(out: &mut Vec<u8>, field: u64, value: f64) {
    key(out, field, 1);
    out.extend_from_slice(&value.to_le_bytes());
}

fn bytes(out: &mut Vec<u8>, field: u64, value: &[u8]) {
    key(out, field, 2);
    varint(out, value.len() as u64);
    out.extend_from_slice(value);
}

fn key(out: &mut Vec<u8>, field: u64, wire_type: u64) {
    varint(out, field << 3 | wire_type);
}

fn varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Made by torch's `SummaryWriter`; see `tests/peers/scalars.py`.
    const GOLDEN: &[u8] = include_bytes!("../../tests/goldens/torch.tfevents");

    /// The data of each record of a file.
    fn records(mut file: &[u8]) -> Vec<&[u8]> {
        let mut out = Vec::new();
        while !file.is_empty() {
            let length = u64::from_le_bytes(file[..8].try_into().unwrap()) as usize;
            assert_eq!(file[8..12], masked_crc(&file[..8]).to_le_bytes());
            let data = &file[12..12 + length];
            assert_eq!(file[12 + length..16 + length], masked_crc(data).to_le_bytes());
            out.push(data);
            file = &file[16 + length..];
        }
        out
    }

    #[test]
    fn record_of_crc32c_is_the_published_one() {
        // RFC 3720, B.4: 32 bytes of zeros.
        assert_eq!(CRC32C.checksum(&[0; 32]), 0x8a91_36aa);
    }

    #[test]
    fn records_are_the_bytes_that_torch_writes() {
        let theirs = records(GOLDEN);
        // The first three are stamped by torch's own clock; the first also says which program wrote it.
        let version = event(0.0, 0, What::Version);
        assert!(theirs[0][9..].starts_with(&version[9..]));
        assert_eq!(theirs[2][9..], event(0.0, 3, What::Restart)[9..]);
        let ours = [
            event(
                1_700_000_001.5,
                3,
                What::Scalar {
                    tag: "train/loss",
                    value: 5.729_064_5,
                },
            ),
            event(
                1_700_000_002.0,
                300,
                What::Scalar {
                    tag: "val/imagenet-zeroshot-val-top1",
                    value: 0.125,
                },
            ),
            event(
                1_700_000_003.0,
                4_000_000_000,
                What::Scalar {
                    tag: "train/lr",
                    value: 1e-4,
                },
            ),
        ];
        for (theirs, ours) in theirs[3..].iter().zip(&ours) {
            assert_eq!(*theirs, ours.as_slice());
        }
        assert_eq!(theirs.len(), ours.len() + 3);
    }
}
