//! Runs the tarball where nothing else is: a Debian 12 with only what every Debian has.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};

use crate::paths::Paths;

/// What is done inside: versions, a short run of two workers, its audit, an evaluation and the report.
const SCRIPT: &str = r#"
set -eu
for absent in rustc cargo python3 gcc; do
    if command -v $absent; then echo "this system is not bare: it has $absent"; exit 1; fi
done
cd /demo
PATH=$1/bin:$PATH
argosy doctor
argosy unpack noto.tar.zst data
argosy init data/noto/train-00000.tar --out first.toml
argosy run job.toml --workers 2 --run run -o json > summary.json
grep -q '"outcome": "succeeded"' summary.json
argosy audit run
argosy eval zero-shot --checkpoint run --data data/noto/test-00000.tar --classes classes.txt --templates templates.txt
argosy report run
test -s run/report.html
"#;

const JOB: &str = r#"
version = 1
name = "bare"
[model]
config = "model.json"
[data]
sources = [{ name = "drawings", shards = "data/noto/train-{00000..00005}.tar" }]
[train]
global_batch = 128
epochs = 1
warmup = 2
"#;

/// Makes the system where it is not there yet, unpacks the tarball in it and runs the script.
pub(super) fn check(paths: &Paths, out: &Path, tarball: &Path, name: &str) -> Result<()> {
    ensure!(
        fs::metadata("/proc/self")?.uid() == 0,
        "--check needs root: it changes into another root folder"
    );
    let root = system(out)?;
    for old in ["opt", "demo"] {
        let path = root.join(old);
        if path.exists() {
            fs::remove_dir_all(&path)?;
        }
        fs::create_dir_all(&path)?;
    }
    let status = Command::new("tar")
        .arg("-xzf")
        .arg(tarball)
        .arg("-C")
        .arg(root.join("opt"))
        .status()?;
    ensure!(status.success(), "the tarball cannot be unpacked");
    for file in ["noto.tar.zst", "model.json", "classes.txt", "templates.txt"] {
        fs::copy(paths.root.join("ops/demo").join(file), root.join("demo").join(file))?;
    }
    fs::write(root.join("demo/job.toml"), JOB)?;
    eprintln!("dist: runs in {}", root.display());
    let status = Command::new("unshare")
        .args(["--mount", "--pid", "--fork", "--root"])
        .arg(&root)
        .arg("--mount-proc")
        .args(["/bin/sh", "-c", SCRIPT, "sh"])
        .arg(format!("/opt/{name}"))
        // Nothing of ours helps it: no LD_LIBRARY_PATH, no toolchain.
        .env_clear()
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
        .env("HOME", "/root")
        .stdin(Stdio::null())
        .status()
        .context("cannot start unshare (util-linux)")?;
    ensure!(status.success(), "on a bare Debian 12 it ended with {status}");
    println!("runs on a bare Debian 12 without Rust, Python and LD_LIBRARY_PATH");
    Ok(())
}

/// Debian 12 as debootstrap's smallest variant makes it.
fn system(out: &Path) -> Result<PathBuf> {
    let root = out.join("debian-12");
    if root.join("READY").is_file() {
        return Ok(root);
    }
    if root.exists() {
        fs::remove_dir_all(&root).with_context(|| format!("cannot remove {}", root.display()))?;
    }
    fs::create_dir_all(out)?;
    eprintln!("dist: making a bare Debian 12 with debootstrap; takes two minutes");
    let status = Command::new("debootstrap")
        .args(["--variant=minbase", "bookworm"])
        .arg(&root)
        .stdout(Stdio::null())
        .status();
    match status {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            bail!("debootstrap is missing: apt-get install debootstrap")
        }
        status => ensure!(
            status?.success(),
            "debootstrap failed; see {}/debootstrap",
            root.display()
        ),
    }
    fs::write(root.join("READY"), "")?;
    Ok(root)
}
