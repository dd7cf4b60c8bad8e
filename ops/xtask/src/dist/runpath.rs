//! Takes the building machine's folders out of a program's search path for libraries.
//!
//! The linker wrote `$ORIGIN/../lib:/where/it/was/built`. What follows the first folder is blanked in place, which needs no
//! tool, since the string only becomes shorter.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};

/// Lets `program` look for libraries in `wanted` only, which its path must begin with.
pub(super) fn set(program: &Path, wanted: &str) -> Result<()> {
    let mut bytes = fs::read(program).with_context(|| format!("cannot read {}", program.display()))?;
    shorten(&mut bytes, wanted).with_context(|| program.display().to_string())?;
    fs::write(program, bytes).with_context(|| format!("cannot write {}", program.display()))
}

fn shorten(bytes: &mut [u8], wanted: &str) -> Result<()> {
    let start = format!("{wanted}:/");
    let places: Vec<usize> = bytes
        .windows(start.len())
        .enumerate()
        .filter(|(_, window)| *window == start.as_bytes())
        .map(|(at, _)| at)
        .collect();
    // The string stands once, in the dynamic string table; anywhere else it would be something that we do not know.
    ensure!(
        places.len() == 1,
        "{start} stands {} times in it, once was expected: was worker/build.rs changed?",
        places.len()
    );
    let from = places[0] + wanted.len();
    let length = bytes[from..]
        .iter()
        .position(|b| *b == 0)
        .context("the path has no end")?;
    bytes[from..from + length].fill(0);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn path_behind_the_wanted_folder_is_blanked_and_nothing_else() {
        let mut bytes = b"libc.so.6\0$ORIGIN/../lib:/root/.cache/x/lib\0libm\0".to_vec();
        let length = bytes.len();
        shorten(&mut bytes, "$ORIGIN/../lib").unwrap();
        assert_eq!(bytes.len(), length);
        assert!(bytes.starts_with(b"libc.so.6\0$ORIGIN/../lib\0\0"));
        assert!(bytes.ends_with(b"\0libm\0") && !bytes.windows(5).any(|w| w == b"/root"));
        assert!(shorten(&mut bytes, "$ORIGIN/../lib").is_err());
    }
}
