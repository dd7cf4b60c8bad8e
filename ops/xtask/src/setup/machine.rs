//! What the machine must bring itself, each with one sentence when it does not.

use std::ffi::{OsStr, OsString};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::paths::which;
use crate::progress::calc_megabytes;

pub(crate) fn check_platform(os: &str, arch: &str) -> Result<()> {
    if (os, arch) != ("linux", "x86_64") {
        bail!("Argosy is built on Linux x86-64 only, and this is {os} {arch}");
    }
    Ok(())
}

/// Set by the user, or the name that build scripts fall back to.
fn compiler(variable: &str, fallback: &str) -> String {
    let value = std::env::var(variable).unwrap_or_default();
    // "ccache g++" is a usual value: its first word is the program.
    value.split_whitespace().next().unwrap_or(fallback).to_owned()
}

pub(crate) fn c_compiler() -> String {
    compiler("CC", "cc")
}

/// libtorch's bindings are C++, and cmake's output is run by make.
pub(crate) fn check_compilers(path: &OsStr) -> Result<()> {
    for (name, what) in [(compiler("CXX", "c++"), "C++"), (c_compiler(), "C")] {
        if which(&name, path).is_none() {
            bail!(
                "a {what} compiler is missing (`{name}` is not on PATH): install one, with Debian's tools `apt-get install g++`"
            );
        }
    }
    Ok(())
}

/// Python is only a means of downloading; a machine that has all parts needs none.
pub(crate) fn check_pip(path: &OsStr) -> Result<()> {
    if which("python3", path).is_none() {
        bail!("python3 is missing and the downloads go through its pip: `apt-get install python3 python3-pip`");
    }
    let pip = Command::new("python3")
        .args(["-m", "pip", "--version"])
        .env("PATH", path)
        .output();
    if !pip.is_ok_and(|output| output.status.success()) {
        bail!("python3 has no pip and the downloads go through it: `apt-get install python3-pip`");
    }
    Ok(())
}

/// Programs that no wheel or crate carries: libjpeg-turbo's SIMD code is written for nasm, cmake drives make.
const FROM_SYSTEM: [&str; 2] = ["nasm", "make"];

/// Installs them where we may, else says the command.
pub(crate) fn provide_system_programs(path: &OsStr, offline: bool) -> Result<()> {
    let missing: Vec<&str> = FROM_SYSTEM
        .into_iter()
        .filter(|name| which(name, path).is_none())
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    let names = missing.join(" ");
    let may_install = is_root() && which("apt-get", path).is_some();
    if offline || !may_install {
        let sudo = if is_root() { "" } else { "sudo " };
        bail!(
            "{} missing: `{sudo}apt-get install {names}`, then run `cargo xtask setup` again",
            are(&missing)
        );
    }
    eprintln!("installing {names} with apt-get");
    // A fresh machine has no package lists, so a first failure is expected there.
    if !apt_get(&["install", "-y", "--no-install-recommends"], &missing)? {
        apt_get(&["update"], &[])?;
        if !apt_get(&["install", "-y", "--no-install-recommends"], &missing)? {
            bail!("apt-get could not install {names}: run `apt-get install {names}` to see why");
        }
    }
    match missing.iter().find(|name| which(name, path).is_none()) {
        Some(name) => bail!("apt-get reports success but `{name}` is not on PATH"),
        None => Ok(()),
    }
}

/// By the owner of our own process, which needs no feature of a library.
fn is_root() -> bool {
    std::fs::metadata("/proc/self").is_ok_and(|meta| meta.uid() == 0)
}

fn are(names: &[&str]) -> String {
    format!(
        "{} {}",
        names.join(" and "),
        if names.len() == 1 { "is" } else { "are" }
    )
}

fn apt_get(action: &[&str], packages: &[&str]) -> Result<bool> {
    let status = Command::new("apt-get")
        .args(["-q", "-q"])
        .args(action)
        .args(packages)
        .env("DEBIAN_FRONTEND", "noninteractive")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .context("cannot run apt-get")?;
    Ok(status.success())
}

/// Refuses before the download rather than in the middle of it.
pub(crate) fn check_space(dir: &Path, needed_bytes: u64) -> Result<()> {
    let stat =
        nix::sys::statvfs::statvfs(dir).with_context(|| format!("cannot ask for free space at {}", dir.display()))?;
    let free_bytes = stat.blocks_available() * stat.fragment_size();
    if free_bytes < needed_bytes {
        bail!(
            "the set-up needs {} under {} for a moment and {} are free; make room, or let XDG_CACHE_HOME name a larger disk",
            calc_megabytes(needed_bytes),
            dir.display(),
            calc_megabytes(free_bytes)
        );
    }
    Ok(())
}

pub(crate) fn path_variable() -> OsString {
    std::env::var_os("PATH").unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn platform_other_than_linux_x86_64_is_refused_by_name() {
        check_platform("linux", "x86_64").unwrap();
        assert!(
            check_platform("linux", "aarch64")
                .unwrap_err()
                .to_string()
                .contains("linux aarch64")
        );
        assert!(check_platform("macos", "x86_64").is_err());
    }

    #[test]
    fn programs_missing_from_path_are_named_with_the_command() {
        let empty = tempfile::tempdir().unwrap();
        let text = provide_system_programs(empty.path().as_os_str(), true)
            .unwrap_err()
            .to_string();
        assert!(text.contains("apt-get install nasm make"), "{text}");
        assert!(
            check_pip(empty.path().as_os_str())
                .unwrap_err()
                .to_string()
                .contains("python3 is missing")
        );
        assert!(
            check_compilers(empty.path().as_os_str())
                .unwrap_err()
                .to_string()
                .contains("C++ compiler is missing")
        );
    }

    #[test]
    fn space_beyond_the_disk_is_refused_with_both_numbers() {
        let dir = tempfile::tempdir().unwrap();
        check_space(dir.path(), 1).unwrap();
        let text = check_space(dir.path(), u64::MAX).unwrap_err().to_string();
        assert!(
            text.contains("XDG_CACHE_HOME") && text.contains("MB are free"),
            "{text}"
        );
    }
}
