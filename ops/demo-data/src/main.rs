//! Draws the demo's data set: the same things in seven styles, as WebDataset shards, from pinned icon packages.
#![allow(clippy::print_stderr)] // a command line tool that says what it does

mod captions;
mod concepts;
mod draw;
mod encode;
mod icons;
mod notes;
mod packages;
mod seed;
mod shards;
mod styles;
mod tar;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use clap::Parser;

/// The archives ship inside the repository, so they stay small.
const ARCHIVE_BYTES_MAX: usize = 16_000_000;
/// Fewer shared concepts would mean that a package changed its names.
const CLASSES_MIN: usize = 800;

/// Draws the demo's data set from pinned icon packages.
#[derive(Debug, Parser)]
#[command(name = "demo-data", version)]
struct Cli {
    /// Where the archives and lists go
    #[arg(long, default_value = concat!(env!("CARGO_MANIFEST_DIR"), "/../demo"))]
    out: PathBuf,
    /// Where the packages are kept [default: $XDG_CACHE_HOME/argosy/demo-data]
    #[arg(long)]
    cache: Option<PathBuf>,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    match run(&cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("demo-data: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(cli: &Cli) -> Result<()> {
    let cache = cli.cache.clone().map_or_else(packages::default_cache, Ok)?;
    eprintln!("packages in {}", cache.display());
    let collection = styles::Collection::open(&cache)?;
    let classes = &collection.classes;
    ensure!(
        classes.len() >= CLASSES_MIN,
        "only {} concepts are shared, expected {CLASSES_MIN}",
        classes.len()
    );
    fs::create_dir_all(&cli.out).with_context(|| format!("cannot create {}", cli.out.display()))?;
    let mut archives = Vec::new();
    for (place, album) in collection.albums.iter().enumerate() {
        let started = Instant::now();
        let archive = shards::archive(album, place, classes)?;
        let (samples, bytes) = (archive.shards.values().sum::<usize>(), archive.bytes.len());
        eprintln!(
            "{:<12} {samples:>6} samples {bytes:>9} bytes {:>6.1} s",
            album.style.name,
            started.elapsed().as_secs_f32()
        );
        archives.push((album.style, archive));
    }
    // Nothing is written unless all of it fits: a half-renewed data set would train, and quietly mislead.
    let total: usize = archives.iter().map(|(_, archive)| archive.bytes.len()).sum();
    check_size(total)?;
    for (style, archive) in &archives {
        write(&cli.out, &format!("{}.tar.zst", style.name), &archive.bytes)?;
    }
    for (name, text) in notes::files(classes, &archives) {
        write(&cli.out, name, text.as_bytes())?;
    }
    eprintln!("{} classes, {total} bytes in {}", classes.len(), cli.out.display());
    Ok(())
}

fn check_size(bytes: usize) -> Result<()> {
    ensure!(
        bytes <= ARCHIVE_BYTES_MAX,
        "the archives take {bytes} bytes, at most {ARCHIVE_BYTES_MAX} are allowed; lower the JPEG quality or the renditions"
    );
    Ok(())
}

fn write(folder: &Path, name: &str, bytes: &[u8]) -> Result<()> {
    let path = folder.join(name);
    fs::write(&path, bytes).with_context(|| format!("cannot write {}", path.display()))
}

#[cfg(test)]
mod committed;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn size_over_the_limit_is_refused() {
        assert!(check_size(ARCHIVE_BYTES_MAX).is_ok());
        assert!(
            check_size(ARCHIVE_BYTES_MAX + 1)
                .unwrap_err()
                .to_string()
                .contains("at most 16000000")
        );
    }
}
