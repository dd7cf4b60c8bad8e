//! The libtorch folder: finishing our own, checking somebody else's.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::{machine, parts};
use crate::paths::Paths;

/// The user's own libtorch, if the environment names one.
pub(crate) fn given(paths: &Paths) -> Option<PathBuf> {
    // `cargo run` fills LIBTORCH from .cargo/config.toml: that value is ours, not a wish.
    let ours = paths.linked("libtorch");
    std::env::var_os("LIBTORCH")
        .map(PathBuf::from)
        .filter(|dir| !is_same_entry(dir, &ours))
}

/// Do both name one entry of one folder? Our link, reached on another way, must not be made to point to itself.
fn is_same_entry(one: &Path, other: &Path) -> bool {
    let place = |path: &Path| Some((fs::canonicalize(path.parent()?).ok()?, path.file_name()?.to_owned()));
    one == other || place(one).is_some_and(|at| place(other) == Some(at))
}

/// Checks that `dir` is a libtorch of the version that our bindings are made for.
pub(crate) fn check_given(dir: &Path) -> Result<()> {
    let wanted = parts::LIBTORCH.version;
    if dir.as_os_str().is_empty() {
        bail!("LIBTORCH is set but empty, which builds would take for a path; unset it");
    }
    if !dir.is_absolute() {
        // Build scripts run in their own folders, where a relative path would mean something else.
        bail!("LIBTORCH is {} but must be an absolute path", dir.display());
    }
    for piece in ["include", "lib/libtorch_cpu.so"] {
        if !dir.join(piece).exists() {
            bail!(
                "LIBTORCH is {} but that holds no {piece}; point it to a libtorch {wanted} or unset it",
                dir.display()
            );
        }
    }
    let Some(version) = read_version(dir) else {
        bail!(
            "LIBTORCH is {} but no version can be read there; point it to a libtorch {wanted} or unset it",
            dir.display()
        );
    };
    let short = wanted.rsplit_once('.').map_or(wanted, |(short, _)| short);
    if !version.starts_with(&format!("{short}.")) {
        bail!(
            "LIBTORCH is {} with version {version}, and Argosy needs {short}; point it elsewhere or unset it",
            dir.display()
        );
    }
    Ok(())
}

/// From the header, or from the file that the C++ distribution carries.
fn read_version(dir: &Path) -> Option<String> {
    for header in [
        "include/torch/headeronly/version.h",
        "include/torch/csrc/api/include/torch/version.h",
    ] {
        if let Some(version) = fs::read_to_string(dir.join(header))
            .ok()
            .and_then(|text| parse_header(&text))
        {
            return Some(version);
        }
    }
    fs::read_to_string(dir.join("build-version"))
        .ok()
        .map(|text| text.trim().to_owned())
}

fn parse_header(text: &str) -> Option<String> {
    let number = |name: &str| {
        let rest = text
            .lines()
            .find_map(|line| line.strip_prefix("#define ")?.strip_prefix(name))?;
        rest.trim().parse::<u32>().ok()
    };
    let numbers = ["TORCH_VERSION_MAJOR", "TORCH_VERSION_MINOR", "TORCH_VERSION_PATCH"].map(number);
    let [Some(major), Some(minor), Some(patch)] = numbers else {
        return None;
    };
    Some(format!("{major}.{minor}.{patch}"))
}

/// The wheel's own libtorch.so pulls in all of CUDA; linkers only want a library of that name, so ours is empty.
pub(crate) fn add_empty_libtorch(lib: &Path) -> Result<()> {
    let output = Command::new(machine::c_compiler())
        .args(["-shared", "-Wl,-soname,libtorch.so", "-o"])
        .arg(lib.join("libtorch.so"))
        .args(["-x", "c", "/dev/null"])
        .output()
        .context("cannot start the C compiler")?;
    if !output.status.success() {
        let text = String::from_utf8_lossy(&output.stderr);
        bail!(
            "the C compiler cannot make an empty library: {}",
            text.lines().last().unwrap_or("no reason given")
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn link_reached_on_another_way_is_the_same_entry_and_its_goal_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        fs::create_dir_all(at("real/toolchain")).unwrap();
        fs::create_dir(at("goal")).unwrap();
        std::os::unix::fs::symlink(at("goal"), at("real/toolchain/libtorch")).unwrap();
        std::os::unix::fs::symlink(at("real/toolchain"), at("other")).unwrap();
        assert!(is_same_entry(&at("other/libtorch"), &at("real/toolchain/libtorch")));
        assert!(!is_same_entry(&at("goal"), &at("real/toolchain/libtorch")));
    }

    fn fake(version: &str) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        let [major, minor, patch]: [&str; 3] = version.split('.').collect::<Vec<_>>().try_into().unwrap();
        let text = format!(
            "#pragma once\n#define TORCH_VERSION_MAJOR {major}\n#define TORCH_VERSION_MINOR {minor}\n#define TORCH_VERSION_PATCH {patch}\n"
        );
        fs::create_dir_all(dir.path().join("include/torch/headeronly")).unwrap();
        fs::write(dir.path().join("include/torch/headeronly/version.h"), text).unwrap();
        fs::create_dir(dir.path().join("lib")).unwrap();
        fs::write(dir.path().join("lib/libtorch_cpu.so"), "").unwrap();
        dir
    }

    #[test]
    fn given_libtorch_of_our_version_is_taken() {
        check_given(fake("2.11.0").path()).unwrap();
        check_given(fake("2.11.1").path()).unwrap();
    }

    #[test]
    fn given_libtorch_of_another_version_is_refused_with_both() {
        for other in ["2.10.0", "2.1.1", "2.110.0"] {
            let text = check_given(fake(other).path()).unwrap_err().to_string();
            assert!(text.contains(other) && text.contains("needs 2.11;"), "{text}");
        }
    }

    #[test]
    fn given_libtorch_by_a_relative_path_is_refused() {
        assert!(
            check_given(Path::new("lt"))
                .unwrap_err()
                .to_string()
                .contains("absolute path")
        );
    }

    #[test]
    fn given_libtorch_without_its_library_names_the_file() {
        let dir = fake("2.11.0");
        fs::remove_file(dir.path().join("lib/libtorch_cpu.so")).unwrap();
        assert!(
            check_given(dir.path())
                .unwrap_err()
                .to_string()
                .contains("lib/libtorch_cpu.so")
        );
    }

    #[test]
    fn version_falls_back_to_the_build_version_file() {
        let dir = fake("2.11.0");
        fs::remove_dir_all(dir.path().join("include/torch")).unwrap();
        assert!(check_given(dir.path()).unwrap_err().to_string().contains("no version"));
        fs::write(dir.path().join("build-version"), "2.11.0+cu130\n").unwrap();
        check_given(dir.path()).unwrap();
    }

    #[test]
    fn empty_libtorch_is_a_shared_object() {
        let dir = tempfile::tempdir().unwrap();
        add_empty_libtorch(dir.path()).unwrap();
        assert!(
            fs::read(dir.path().join("libtorch.so"))
                .unwrap()
                .starts_with(b"\x7fELF")
        );
    }
}
