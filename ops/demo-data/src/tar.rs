//! Tar archives, read and written. Written with fixed owner, mode and time, so equal contents are equal bytes.

use anyhow::{Context, Result, bail, ensure};

const BLOCK_BYTES: usize = 512;

/// One regular file of an archive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) name: String,
    pub(crate) data: Vec<u8>,
}

/// Writes a ustar archive; names must fit the 100 bytes of a plain header.
#[derive(Debug, Default)]
pub(crate) struct Writer(Vec<u8>);

impl Writer {
    pub(crate) fn add(&mut self, name: &str, data: &[u8]) -> Result<()> {
        ensure!(
            name.len() < 100,
            "tar name `{name}` is longer than 99 bytes; shorten it"
        );
        let mut header = [0_u8; BLOCK_BYTES];
        let mut put = |at: usize, text: &[u8]| header[at..at + text.len()].copy_from_slice(text);
        put(0, name.as_bytes());
        put(100, b"0000644\0");
        put(108, b"0000000\0");
        put(116, b"0000000\0");
        put(124, format!("{:011o}\0", data.len()).as_bytes());
        put(136, b"00000000000\0");
        put(148, b"        ");
        put(156, b"0");
        put(257, b"ustar\x0000");
        let sum: u32 = header.iter().map(|&byte| u32::from(byte)).sum();
        header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        self.0.extend_from_slice(&header);
        self.0.extend_from_slice(data);
        self.0.resize(self.0.len().next_multiple_of(BLOCK_BYTES), 0);
        Ok(())
    }

    /// The archive's bytes, closed by two zero blocks.
    pub(crate) fn finish(mut self) -> Vec<u8> {
        self.0.resize(self.0.len() + 2 * BLOCK_BYTES, 0);
        self.0
    }
}

/// The regular files of an archive in order; links, folders and extended headers are passed over.
pub(crate) fn read(bytes: &[u8]) -> Result<Vec<Entry>> {
    let mut entries = Vec::new();
    let mut at = 0;
    while at + BLOCK_BYTES <= bytes.len() {
        let header = &bytes[at..at + BLOCK_BYTES];
        if header.iter().all(|&byte| byte == 0) {
            return Ok(entries);
        }
        let size = usize::from_str_radix(text(&header[124..136]).trim(), 8)
            .with_context(|| format!("tar header at byte {at} has no octal size"))?;
        let start = at + BLOCK_BYTES;
        let Some(data) = bytes.get(start..start.saturating_add(size)) else {
            bail!("tar ends inside `{}`; the file is truncated", text(&header[..100]));
        };
        if matches!(header[156], b'0' | 0) {
            let (prefix, name) = (text(&header[345..500]), text(&header[..100]));
            let name = if prefix.is_empty() {
                name.to_owned()
            } else {
                format!("{prefix}/{name}")
            };
            entries.push(Entry {
                name,
                data: data.to_vec(),
            });
        }
        at = start + size.next_multiple_of(BLOCK_BYTES);
    }
    bail!("tar has no closing zero block; the file is truncated")
}

fn text(field: &[u8]) -> &str {
    let end = field.iter().position(|&byte| byte == 0).unwrap_or(field.len());
    std::str::from_utf8(&field[..end]).unwrap_or("")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn archive_written_then_read_is_the_same() {
        let mut writer = Writer::default();
        writer.add("a.txt", b"hello").unwrap();
        writer.add("b/c.bin", &[7; 512]).unwrap();
        writer.add("empty", b"").unwrap();
        let bytes = writer.finish();
        assert_eq!(bytes.len() % BLOCK_BYTES, 0);
        let names: Vec<_> = read(&bytes)
            .unwrap()
            .into_iter()
            .map(|e| (e.name, e.data.len()))
            .collect();
        assert_eq!(
            names,
            [
                ("a.txt".to_owned(), 5),
                ("b/c.bin".to_owned(), 512),
                ("empty".to_owned(), 0)
            ]
        );
        assert!(read(&bytes[..700]).unwrap_err().to_string().contains("truncated"));
    }
}
