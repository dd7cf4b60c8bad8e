//! Digests: equality checks between honest processes, never a defence against forgery.

use xxhash_rust::xxh3::xxh3_64;

/// SplitMix64's finaliser: spreads the bits of a counter or a packed key.
#[must_use]
pub fn mix64(value: u64) -> u64 {
    let mut z = value.wrapping_add(0x9E37_79B9_7F4A_7C15);
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

/// 64-bit digest of bytes (xxh3).
#[must_use]
pub fn digest64(bytes: &[u8]) -> u64 {
    xxh3_64(bytes)
}

/// Digest of a serialisable value through its canonical JSON (struct field order, sorted maps).
#[must_use]
pub fn digest_json<T: serde::Serialize>(value: &T) -> u64 {
    // Serialising our own plain structs cannot fail; an empty digest would only ever compare unequal.
    digest64(serde_json::to_vec(value).unwrap_or_default().as_slice())
}
