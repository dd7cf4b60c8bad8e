//! `cargo xtask dist`: a tarball that runs where there is neither Rust nor Python: programs, libtorch, completions, man
//! pages, licences.

mod bare;
mod runpath;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context, Result, ensure};

use crate::paths::Paths;

pub(crate) const USAGE: &str = "[--check]";

/// Where the programs look for libtorch, seen from their own folder.
const LIBRARIES: &str = "$ORIGIN/../lib";
const PROGRAMS: [&str; 3] = ["argosy", "argosy-coordinator", "argosy-worker"];
const SHELLS: [(&str, &str); 3] = [
    ("bash", "bash-completion/completions/argosy"),
    ("zsh", "zsh/site-functions/_argosy"),
    ("fish", "fish/vendor_completions.d/argosy.fish"),
];
const TEXTS: [&str; 4] = ["README.md", "LICENSE-APACHE", "LICENSE-MIT", "NOTICE"];

pub(crate) fn run(paths: &Paths, args: &[String]) -> Result<ExitCode> {
    let switches = crate::parse_switches("dist", &["--check"], args)?;
    crate::setup::lay(paths, false)?;
    let status = crate::cargo::cargo(paths)
        .args(["build", "--workspace", "--bins"])
        .status()
        .context("cannot start cargo")?;
    ensure!(status.success(), "the build failed");
    let out = paths.root.join("target/dist");
    let name = format!("argosy-{}-x86_64-linux", env!("CARGO_PKG_VERSION"));
    let folder = out.join(&name);
    lay_out(paths, &folder)?;
    let tarball = pack(&out, &name)?;
    println!(
        "{}  {:.1} MB packed, {:.1} MB unpacked",
        tarball.display(),
        tarball.metadata()?.len() as f64 / 1e6,
        size_of(&folder)? as f64 / 1e6
    );
    if switches[0] {
        bare::check(paths, &out, &tarball, &name)?;
    } else {
        eprintln!(
            "next: cargo xtask dist --check runs it on a bare Debian 12 (root, debootstrap and the network are needed)"
        );
    }
    Ok(ExitCode::SUCCESS)
}

/// Fills `folder` as it will be unpacked.
fn lay_out(paths: &Paths, folder: &Path) -> Result<()> {
    if folder.exists() {
        fs::remove_dir_all(folder).with_context(|| format!("cannot remove {}", folder.display()))?;
    }
    for part in ["bin", "lib", "share/man/man1", "share/doc/argosy"] {
        fs::create_dir_all(folder.join(part)).with_context(|| format!("cannot make {}", folder.display()))?;
    }
    // xtask itself was built into the folder that the others were built into, wherever that is.
    let own = std::env::current_exe().context("cannot tell where xtask lies")?;
    for program in PROGRAMS {
        let path = folder.join("bin").join(program);
        copy(&own.with_file_name(program), &path, 0o755)?;
        // Names of functions stay: a crash report is read by people.
        let stripped = Command::new("strip").arg("--strip-debug").arg(&path).status();
        ensure!(
            stripped.context("cannot start strip (binutils)")?.success(),
            "strip failed on {}",
            path.display()
        );
    }
    runpath::set(&folder.join("bin/argosy-worker"), LIBRARIES)?;
    let libtorch = crate::setup::libtorch_folder(paths);
    libraries(&libtorch.join("lib"), &folder.join("lib"))?;
    for text in TEXTS {
        copy(
            &paths.root.join(text),
            &folder.join("share/doc/argosy").join(text),
            0o644,
        )?;
    }
    let licences = folder.join("share/doc/argosy/licenses");
    copy_all(&libtorch.join("licenses"), &licences)?;
    copy_all(
        &paths.root.join("ops/examples"),
        &folder.join("share/doc/argosy/examples"),
    )?;
    documents(folder)
}

/// Completions and man pages, written by the program itself: they cannot differ from what it takes.
fn documents(folder: &Path) -> Result<()> {
    let argosy = folder.join("bin/argosy");
    for (shell, file) in SHELLS {
        let output = Command::new(&argosy).args(["completions", shell]).output();
        let output = output.with_context(|| format!("cannot start {}", argosy.display()))?;
        ensure!(
            output.status.success(),
            "argosy completions {shell} ended with {}",
            output.status
        );
        let path = folder.join("share").join(file);
        fs::create_dir_all(path.parent().unwrap_or(folder))?;
        fs::write(&path, output.stdout).with_context(|| format!("cannot write {}", path.display()))?;
    }
    let status = Command::new(&argosy)
        .arg("man")
        .arg(folder.join("share/man/man1"))
        .status()?;
    ensure!(status.success(), "argosy man ended with {status}");
    Ok(())
}

/// The shared objects, whole or as links to each other.
fn libraries(from: &Path, to: &Path) -> Result<()> {
    for entry in fs::read_dir(from).with_context(|| format!("cannot read {}", from.display()))? {
        let entry = entry?;
        let name = entry.file_name();
        if name.to_string_lossy().contains(".so") {
            copy(&entry.path(), &to.join(&name), 0o755)?;
        }
    }
    Ok(())
}

fn copy(from: &Path, to: &Path, mode: u32) -> Result<()> {
    let failed = || format!("cannot copy {} to {}", from.display(), to.display());
    fs::copy(from, to).with_context(failed)?;
    fs::set_permissions(to, fs::Permissions::from_mode(mode)).with_context(failed)
}

fn copy_all(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from).with_context(|| format!("cannot read {}", from.display()))? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy_all(&entry.path(), &target)?;
        } else {
            copy(&entry.path(), &target, 0o644)?;
        }
    }
    Ok(())
}

/// The same files give the same tarball: order, owners and times are fixed. gzip, because a bare system has no other.
fn pack(out: &Path, name: &str) -> Result<PathBuf> {
    let tarball = out.join(format!("{name}.tar.gz"));
    eprintln!("packing {}; takes a minute", tarball.display());
    let status = Command::new("tar")
        .current_dir(out)
        .env("GZIP", "-n")
        .args([
            "--sort=name",
            "--owner=0",
            "--group=0",
            "--numeric-owner",
            "--mtime=@1767225600",
        ])
        .arg("-czf")
        .arg(&tarball)
        .arg(name)
        .status()
        .context("cannot start tar")?;
    ensure!(status.success(), "tar ended with {status}");
    Ok(tarball)
}

fn size_of(path: &Path) -> Result<u64> {
    if !path.is_dir() {
        return Ok(path.symlink_metadata()?.len());
    }
    let mut sum = 0;
    for entry in fs::read_dir(path)? {
        sum += size_of(&entry?.path())?;
    }
    Ok(sum)
}
