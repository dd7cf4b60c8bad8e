//! PyTorch's zip archives: one pickle that says what there is, one stored file for each storage.

use super::pickle;
use super::source::Source;
use super::torch::{self, Storages};
use super::{Container, Entry};
use std::collections::BTreeMap;
use zip::{CompressionMethod, ZipArchive};

/// Most files of an archive; there is one for each storage.
const FILES_MAX: usize = 1 << 20;
/// Largest pickle. The tables of the largest models take some megabytes.
const PICKLE_BYTES_MAX: u64 = 256 << 20;

struct Place {
    start: u64,
    len: u64,
}

/// Tensors of the archive's state dict, or of a compiled model.
pub(super) fn read(source: &Source) -> Result<(Container, BTreeMap<String, Entry>), String> {
    let files = files(source)?;
    let name = files
        .keys()
        .find(|name| name.ends_with("/data.pkl") && name.matches('/').count() == 1);
    let name = name.ok_or("a zip archive without a data.pkl: torch.save did not write it")?;
    let prefix = name.trim_end_matches("data.pkl").to_owned();
    let place = |file: &str| files.get(&format!("{prefix}{file}"));
    let load = |file: &str| {
        let place = place(file);
        place.map(|place| source.bytes(place.start, place.len, PICKLE_BYTES_MAX, &format!("{prefix}{file}")))
    };
    let order = load("byteorder").transpose()?;
    if order.is_some_and(|order| order != b"little") {
        return Err("written on a big-endian machine, which is not read".into());
    }
    let compiled = place("constants.pkl").is_some();
    let bytes = load("data.pkl").unwrap_or_else(|| Err("no data.pkl".into()))?;
    let read = pickle::read(&bytes, compiled).map_err(|why| format!("data.pkl: {why}"))?;
    let mut storages = Storages::new();
    for (kind, key, elements) in read.heap.storages() {
        let file = format!("{prefix}data/{key}");
        let place = files
            .get(&file)
            .ok_or_else(|| format!("storage {file} is missing, or compressed"))?;
        let wanted = elements.checked_mul(torch::bytes_of(kind));
        if wanted != Some(place.len) {
            let have = place.len;
            return Err(format!(
                "storage {file} has {have} bytes, {elements} elements of {kind:?} are expected"
            ));
        }
        storages.insert(key.to_owned(), place.start);
    }
    let container = if compiled {
        Container::TorchScript
    } else {
        Container::Torch
    };
    let entries = if compiled {
        torch::of_module(&read, &storages)
    } else {
        torch::of_state_dict(&read, &storages)
    };
    Ok((container, entries?))
}

/// Where every file of the archive lies.
fn files(source: &Source) -> Result<BTreeMap<String, Place>, String> {
    let bad = |e: zip::result::ZipError| format!("a zip archive that cannot be read: {e}");
    let mut archive = ZipArchive::new(source.reader()).map_err(bad)?;
    if archive.len() > FILES_MAX {
        return Err(format!(
            "a zip archive of {} files, at most {FILES_MAX} are read",
            archive.len()
        ));
    }
    let mut out = BTreeMap::new();
    for number in 0..archive.len() {
        let file = archive.by_index_raw(number).map_err(bad)?;
        let name = file.name().to_owned();
        if file.compression() != CompressionMethod::Stored || file.encrypted() {
            // A compiled model's code, which nobody needs here; what holds numbers is stored as it is.
            continue;
        }
        let (start, len) = (file.data_start(), file.size());
        let end = start.and_then(|start| start.checked_add(len));
        let start = start.filter(|_| end.is_some_and(|end| end <= source.len()));
        let start = start.ok_or_else(|| format!("{name} reaches beyond the end of the archive"))?;
        if len != file.compressed_size() || out.insert(name.clone(), Place { start, len }).is_some() {
            return Err(format!("{name} is in the archive twice, or with two lengths"));
        }
    }
    Ok(out)
}
