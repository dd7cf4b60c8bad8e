//! `argosy unpack`: the demo's archives (`.tar.zst` with shards inside) into a folder.

use crate::args::UnpackArgs;
use crate::fail::{Failure, Outcome};
use argosy_common::exit::Exit;
use argosy_shard_loader::tar::Walker;
use std::io::Read;
use std::path::{Component, Path};

/// Largest archive that is unpacked; more is not one of ours.
const UNPACKED_BYTES_MAX: u64 = 1 << 30;

pub(crate) fn run(args: &UnpackArgs) -> Outcome<Exit> {
    let file = std::fs::File::open(&args.archive).map_err(|e| Failure::io("read", &args.archive, &e))?;
    let damaged = |why: String| {
        Failure::new(
            Exit::JobFailed,
            format!("archive {} is damaged: {why}", args.archive.display()),
        )
    };
    let mut plain = Vec::new();
    zstd::Decoder::new(file)
        .and_then(|decoder| decoder.take(UNPACKED_BYTES_MAX + 1).read_to_end(&mut plain))
        .map_err(|e| damaged(e.to_string()))?;
    if plain.len() as u64 > UNPACKED_BYTES_MAX {
        return Err(damaged(format!("it holds more than {UNPACKED_BYTES_MAX} bytes")));
    }
    let plain = bytes::Bytes::from(plain);
    for member in Walker::new(plain.clone()) {
        let member = member.map_err(|e| damaged(e.to_string()))?;
        if !stays_inside(Path::new(&member.name)) {
            return Err(damaged(format!("member `{}` would leave the folder", member.name)));
        }
        let path = args.dir.join(&member.name);
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder).map_err(|e| Failure::io("create", folder, &e))?;
        }
        let data = &plain[member.data.start as usize..member.data.end as usize];
        std::fs::write(&path, data).map_err(|e| Failure::io("write", &path, &e))?;
    }
    crate::out::hint(&format!("next: argosy index SHARDS of {}", args.dir.display()));
    Ok(Exit::Ok)
}

fn stays_inside(path: &Path) -> bool {
    path.components()
        .all(|c| matches!(c, Component::Normal(_) | Component::CurDir))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn member_paths_that_leave_the_folder_are_refused() {
        assert!(stays_inside(Path::new("noto/train-00000.tar")));
        for bad in ["/etc/passwd", "../x", "a/../../x"] {
            assert!(!stays_inside(Path::new(bad)), "{bad}");
        }
    }
}
