//! What an index costs: `headers index DIR` reads a folder's shards as `argosy index` does, `headers read DIR` reads the same
//! headers one after the other and does nothing with them, `headers open DIR` opens the index of all of them.
//!
//! `headers make DIR SHARDS ROWS` writes the shards. What stands between headers are holes, which take no room on the disk; a
//! folder of many thousands of shards is a few files under many names.
#![allow(clippy::print_stdout, reason = "its output is the measurement")]

use argosy_common::config::Source;
use argosy_shard_loader::{BuildConfig, Index, RetryPolicy, Store, index};
use std::error::Error;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Instant;

/// Bytes of a picture that is not there; about what 256 px take.
const PICTURE_BYTES: u64 = 20_000;
/// Names of one file; some file systems allow no more than 65,000.
const NAMES_MAX: usize = 50_000;
/// More shards than this are names of a few files.
const FILES_MAX: usize = 1_000;

fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    let (what, folder) = match words[..] {
        ["make", folder, shards, rows] => return make(Path::new(folder), shards.parse()?, rows.parse()?),
        [what, folder] => (what, folder),
        _ => return Err("headers index|read|open DIR, or headers make DIR SHARDS ROWS".into()),
    };
    let kept = Path::new(folder).with_extension("argosy");
    let (seconds, found) = match what {
        "index" => timed(|| Ok(built(folder)?.shards().map(|s| u64::from(s.rows)).sum()))?,
        "read" => timed(|| read_all(Path::new(folder)))?,
        "open" => {
            if !kept.exists() {
                built(folder)?.write(&kept)?;
            }
            timed(|| Ok(Index::open(&kept)?.shards().count() as u64))?
        }
        other => return Err(format!("`{other}` is none of index, read, open and make").into()),
    };
    println!("{}", serde_json::json!({"seconds": seconds, "found": found}));
    Ok(())
}

fn timed(work: impl FnOnce() -> Result<u64, Box<dyn Error>>) -> Result<(f64, u64), Box<dyn Error>> {
    let started = Instant::now();
    let found = work()?;
    Ok((started.elapsed().as_secs_f64(), found))
}

fn built(folder: &str) -> Result<Index, Box<dyn Error>> {
    let sources = [Source {
        name: "all".into(),
        shards: folder.into(),
    }];
    let config = BuildConfig::new("jpg", "txt");
    let store = Store::new(RetryPolicy::default())?;
    Ok(index::build(&store, &sources, Path::new("."), &config, &|_| {})?.0)
}

/// Reads every header where it stands; gives the number of pictures.
fn read_all(folder: &Path) -> Result<u64, Box<dyn Error>> {
    let mut shards: Vec<PathBuf> = std::fs::read_dir(folder)?
        .map(|entry| Ok(entry?.path()))
        .collect::<Result<_, std::io::Error>>()?;
    shards.sort();
    let mut pictures = 0;
    for shard in shards {
        let file = File::open(shard)?;
        let bytes = file.metadata()?.len();
        let (mut at, mut header) = (0, [0u8; 512]);
        while at + 512 <= bytes {
            file.read_exact_at(&mut header, at)?;
            if header[0] == 0 {
                break;
            }
            let size = u64::from_str_radix(std::str::from_utf8(&header[124..135])?, 8)?;
            pictures += u64::from(header[..100].windows(4).any(|name| name == b".jpg"));
            at += 512 + size.next_multiple_of(512);
        }
    }
    Ok(pictures)
}

fn make(folder: &Path, shards: usize, rows: usize) -> Result<(), Box<dyn Error>> {
    std::fs::create_dir_all(folder)?;
    let names = if shards > FILES_MAX { NAMES_MAX } else { 1 };
    for shard in 0..shards {
        let path = |i: usize| folder.join(format!("{i:06}.tar"));
        let first = shard - shard % names;
        if shard == first {
            write_shard(&path(shard), rows)?;
        } else {
            std::fs::hard_link(path(first), path(shard))?;
        }
    }
    println!("{}", serde_json::json!({"shards": shards, "rows": rows}));
    Ok(())
}

fn write_shard(path: &Path, rows: usize) -> Result<(), Box<dyn Error>> {
    let file = File::create(path)?;
    let mut at = 0;
    for row in 0..rows {
        for (suffix, size) in [("jpg", PICTURE_BYTES), ("txt", 40)] {
            file.write_all_at(&header(&format!("{row:06}.{suffix}"), size), at)?;
            at += 512 + size.next_multiple_of(512);
        }
    }
    // Two empty blocks end an archive.
    Ok(file.set_len(at + 1024)?)
}

fn header(name: &str, size: u64) -> [u8; 512] {
    let mut header = [0u8; 512];
    let mut put = |at: usize, bytes: &[u8]| header[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, name.as_bytes());
    put(100, b"0000644\0");
    put(124, format!("{size:011o}\0").as_bytes());
    put(136, b"00000000000\0");
    // The sum is taken with its own field full of spaces.
    put(148, b"        ");
    put(156, b"0");
    put(257, b"ustar\x0000");
    let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    header
}
