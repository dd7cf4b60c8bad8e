//! What `torch.save` wrote before PyTorch 1.6: pickles one after another, then the storages.

use super::Entry;
use super::pickle::{self, Unpickled};
use super::source::Source;
use super::torch::{self, Storages};
use super::values::Value;
use std::collections::BTreeMap;

/// `pickle.dumps(0x1950a86a20f9469cfc6c, protocol=2)`.
const MAGIC: &[u8] = b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19.";
const PROTOCOL: i128 = 1001;
/// Most bytes of all pickles together.
const PICKLES_BYTES_MAX: u64 = 256 << 20;

/// Whether a file begins as these do.
pub(super) fn begins(head: &[u8]) -> bool {
    head.starts_with(MAGIC)
}

/// Tensors of the state dict.
pub(super) fn read(source: &Source) -> Result<BTreeMap<String, Entry>, String> {
    let head = source.bytes(0, source.len().min(PICKLES_BYTES_MAX), PICKLES_BYTES_MAX, "its tables")?;
    let mut at = MAGIC.len();
    let mut next = |what: &str| -> Result<Unpickled, String> {
        let read = pickle::read(&head[at..], false).map_err(|why| format!("{what}: {why}"))?;
        at += read.len;
        Ok(read)
    };
    if next("its version")?.root != Value::Int(PROTOCOL) {
        return Err(format!("an old PyTorch file of another version than {PROTOCOL}"));
    }
    let system = next("its system")?;
    for (key, value) in system.heap.entries(system.root).unwrap_or_default() {
        if system.heap.text(*key) == Some("little_endian") && *value != Value::Bool(true) {
            return Err("written on a big-endian machine, which is not read".into());
        }
    }
    let object = next("its object")?;
    let keys = next("its list of storages")?;
    let known: BTreeMap<&str, (u64, u64)> = object
        .heap
        .storages()
        .map(|(kind, key, elements)| (key, (torch::bytes_of(kind), elements)))
        .collect();
    let listed = keys.heap.items(keys.root).ok_or("its list of storages is none")?;
    let (mut storages, mut place) = (Storages::new(), at as u64);
    for key in listed {
        let key = keys.heap.text(*key).ok_or("a storage's name is no text")?;
        let (width, elements) = *known
            .get(key)
            .ok_or_else(|| format!("storage {key} belongs to no tensor"))?;
        let mut count = [0u8; 8];
        source.read_at(&mut count, place)?;
        let start = place.checked_add(8);
        let end = elements
            .checked_mul(width)
            .zip(start)
            .and_then(|(len, start)| start.checked_add(len));
        let fits = u64::from_le_bytes(count) == elements && end.is_some_and(|end| end <= source.len());
        let (true, Some(start), Some(end)) = (fits, start, end) else {
            return Err(format!(
                "storage {key} does not have {elements} elements of {width} bytes in the file"
            ));
        };
        storages.insert(key.to_owned(), start);
        place = end;
    }
    torch::of_state_dict(&object, &storages)
}
