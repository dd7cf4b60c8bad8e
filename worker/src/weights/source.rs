//! Where a weight file's bytes come from: read in place, piece by piece.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::FileExt;
use std::path::Path;
use xxhash_rust::xxh3::Xxh3;

const PIECE: usize = 1 << 20;

/// Bytes that can be read at any place.
#[derive(Debug)]
pub(super) enum Source {
    File { file: File, len: u64 },
    Memory(Vec<u8>),
}

impl Source {
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        let file = File::open(path)?;
        let about = file.metadata()?;
        if !about.is_file() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "a file is expected"));
        }
        let len = about.len();
        Ok(Self::File { file, len })
    }

    pub(super) fn len(&self) -> u64 {
        match self {
            Self::File { len, .. } => *len,
            Self::Memory(bytes) => bytes.len() as u64,
        }
    }

    /// Fills `out` from byte `at` on.
    pub(super) fn read_at(&self, out: &mut [u8], at: u64) -> Result<(), String> {
        let (len, end) = (out.len(), at.saturating_add(out.len() as u64));
        let cut = || format!("it ends before byte {end}");
        match self {
            Self::File { file, .. } => match file.read_exact_at(out, at) {
                Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => Err(cut()),
                done => done.map_err(|e| format!("cannot read {len} bytes at {at}: {e}")),
            },
            Self::Memory(bytes) => {
                let start = usize::try_from(at).ok();
                let part = start.and_then(|at| bytes.get(at..at.checked_add(out.len())?));
                out.copy_from_slice(part.ok_or_else(cut)?);
                Ok(())
            }
        }
    }

    /// Bytes `start..start + len`, at most `most` of them.
    pub(super) fn bytes(&self, start: u64, len: u64, most: u64, what: &str) -> Result<Vec<u8>, String> {
        if len > most {
            return Err(format!("{what} has {len} bytes, at most {most} are read"));
        }
        if start.checked_add(len).is_none_or(|end| end > self.len()) {
            let have = self.len();
            return Err(format!(
                "{what} reaches to byte {}, the file has {have}",
                start.saturating_add(len)
            ));
        }
        let mut out = vec![0u8; len as usize];
        self.read_at(&mut out, start)?;
        Ok(out)
    }

    /// xxh3 of all bytes.
    pub(super) fn digest(&self) -> Result<u64, String> {
        let mut hash = Xxh3::new();
        let (mut at, mut piece) = (0, vec![0u8; PIECE]);
        while at < self.len() {
            let part = (self.len() - at).min(PIECE as u64) as usize;
            self.read_at(&mut piece[..part], at)?;
            hash.update(&piece[..part]);
            at += part as u64;
        }
        Ok(hash.digest())
    }

    /// The bytes one after another, for those who want a stream.
    pub(super) fn reader(&self) -> Reader<'_> {
        Reader { source: self, at: 0 }
    }
}

/// A place in a [`Source`].
#[derive(Debug)]
pub(super) struct Reader<'a> {
    source: &'a Source,
    at: u64,
}

impl Read for Reader<'_> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let left = self.source.len().saturating_sub(self.at);
        let len = left.min(out.len() as u64) as usize;
        self.source
            .read_at(&mut out[..len], self.at)
            .map_err(io::Error::other)?;
        self.at += len as u64;
        Ok(len)
    }
}

impl Seek for Reader<'_> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let place = match to {
            SeekFrom::Start(at) => Some(at),
            SeekFrom::End(by) => self.source.len().checked_add_signed(by),
            SeekFrom::Current(by) => self.at.checked_add_signed(by),
        };
        self.at = place.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "a place before the first byte"))?;
        Ok(self.at)
    }
}
