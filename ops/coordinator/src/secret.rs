//! The token, and what follows from it.

use crate::Failure;
use argosy_common::exit::Exit;
use hmac::{Hmac, Mac as _};
use sha2::Sha256;
use std::path::Path;

/// Shorter tokens could be guessed.
const TOKEN_CHARS_MIN: usize = 32;
const SECRET_FILE_BYTES_MAX: u64 = 4096;

/// The first line of a file that only its owner may read.
pub(crate) fn read(what: &str, path: &Path) -> Result<String, Failure> {
    use std::io::Read as _;
    use std::os::unix::fs::PermissionsExt as _;
    let failed = |e: std::io::Error| {
        let exit = match e.kind() {
            std::io::ErrorKind::PermissionDenied => Exit::Denied,
            _ => Exit::NotFound,
        };
        (exit, format!("{what} file {}: {e}", path.display()))
    };
    let file = std::fs::File::open(path).map_err(failed)?;
    let mode = file.metadata().map_err(failed)?.permissions().mode();
    if mode & 0o077 != 0 {
        let message = format!(
            "{what} file {} may be read by others (mode {:03o}); chmod 600 it",
            path.display(),
            mode & 0o777
        );
        return Err((Exit::Denied, message));
    }
    let mut text = String::new();
    file.take(SECRET_FILE_BYTES_MAX)
        .read_to_string(&mut text)
        .map_err(failed)?;
    Ok(text.lines().next().unwrap_or_default().trim().to_owned())
}

pub(crate) fn check_token(token: &str, path: &Path) -> Result<(), Failure> {
    if token.len() >= TOKEN_CHARS_MIN && token.chars().all(|c| c.is_ascii_graphic()) {
        return Ok(());
    }
    let message = format!(
        "token file {} has to hold at least {TOKEN_CHARS_MIN} printable characters without spaces, as `openssl rand -hex 32` \
         makes them",
        path.display()
    );
    Err((Exit::BadConfig, message))
}

/// What generation secrets derive from: the same for every coordinator of a run, and another for every run (RFC 2104).
pub(crate) fn run_secret(token: &str, run: &str) -> Vec<u8> {
    // HMAC takes keys of any length.
    let Ok(mut mac) = Hmac::<Sha256>::new_from_slice(token.as_bytes()) else {
        return Vec::new();
    };
    mac.update(b"argosy run secret 1\0");
    mac.update(run.as_bytes());
    mac.finalize().into_bytes().to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    #[test]
    fn secret_file_that_others_may_read_is_refused_and_its_first_line_is_the_secret() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("token");
        std::fs::write(&path, "abc\nmore\n").unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o640)).unwrap();
        let (exit, why) = read("token", &path).unwrap_err();
        assert!(exit == Exit::Denied && why.contains("640"), "{why}");
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
        assert_eq!(read("token", &path).unwrap(), "abc");
        let (_, why) = check_token("abc", &path).unwrap_err();
        assert!(!why.contains("abc"), "{why}");
        check_token(&"a".repeat(32), &path).unwrap();
    }

    #[test]
    fn secret_of_a_run_is_that_of_no_other_and_never_the_token() {
        let (a, b) = (run_secret("token", "a"), run_secret("token", "b"));
        assert_eq!(a, run_secret("token", "a"));
        assert!(a != b && a.len() == 32 && a != run_secret("other", "a"));
    }
}
