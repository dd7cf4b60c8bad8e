//! Walks tar archives (ustar, pax, GNU, old V7) without unpacking and without copying member data.
//!
//! Total: no input panics it. An archive that is cut or breaks its format ends the walk with an error that says where;
//! what came before stays good.

use crate::error::DataError;
use bytes::Bytes;
use std::ops::Range;

/// Size of a tar block.
pub const BLOCK: u64 = 512;
/// Largest extended header (long name, pax records) that is read.
const EXTENDED_BYTES_MAX: u64 = 1 << 20;

/// Longest name of a member, in bytes; Linux takes no longer path.
pub const NAME_BYTES_MAX: usize = 4096;
/// Most headers of one archive. A shard holds thousands of samples; an archive of empty members could hold as many as its
/// bytes allow, each of which costs memory.
const HEADERS_MAX: u64 = 10_000_000;

/// Random access to an archive's bytes.
pub trait ReadAt {
    /// Bytes of the whole archive.
    fn size(&self) -> u64;
    /// The bytes of `range`, which lies within the size.
    ///
    /// # Errors
    /// Whatever the store says.
    fn read_at(&mut self, range: Range<u64>) -> Result<Bytes, DataError>;
}

impl ReadAt for Bytes {
    fn size(&self) -> u64 {
        self.len() as u64
    }

    fn read_at(&mut self, range: Range<u64>) -> Result<Bytes, DataError> {
        Ok(self.slice(range.start as usize..range.end as usize))
    }
}

/// One regular file in an archive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// Path in the archive, lossily UTF-8.
    pub name: String,
    /// First byte of its first header, extended headers included.
    pub start: u64,
    /// Its data.
    pub data: Range<u64>,
}

impl Member {
    /// One past its last padded block.
    #[must_use]
    pub fn end(&self) -> u64 {
        padded(self.data.end)
    }
}

/// What extended headers say about the next member.
#[derive(Debug, Default)]
struct Extended {
    start: Option<u64>,
    name: Option<String>,
    bytes: Option<u64>,
}

/// Iterates over the regular files of an archive.
#[derive(Debug)]
pub struct Walker<R> {
    archive: R,
    at: u64,
    extended: Extended,
    headers: u64,
    closed: bool,
    done: bool,
}

impl<R: ReadAt> Walker<R> {
    /// Starts at the archive's first byte.
    pub fn new(archive: R) -> Self {
        Self {
            archive,
            at: 0,
            extended: Extended::default(),
            headers: 0,
            closed: false,
            done: false,
        }
    }

    /// The archive it walks over.
    pub fn archive(&mut self) -> &mut R {
        &mut self.archive
    }

    /// Offset of the next header: all before it was walked over without fault.
    pub fn offset(&self) -> u64 {
        self.extended.start.unwrap_or(self.at)
    }

    /// Whether the walk has come to an empty block, as every whole archive has behind its last member. One that was cut
    /// between two members has none.
    pub fn is_closed(&self) -> bool {
        self.closed
    }

    fn step(&mut self) -> Result<Option<Member>, DataError> {
        while let Some(header) = self.header()? {
            let data_start = self.at + BLOCK;
            let kind = header[156];
            let bytes = self.member_bytes(&header, kind)?;
            // Links, folders and devices carry no data whatever their size field says.
            let bytes = if matches!(kind, b'1'..=b'6') { 0 } else { bytes };
            let size = self.archive.size();
            if bytes > size - data_start {
                let why = format!(
                    "the archive is cut: a member of {bytes} bytes starts here, {} follow",
                    size - data_start
                );
                return Err(DataError::Tar { at: self.at, why });
            }
            let start = self.extended.start.unwrap_or(self.at);
            let data = data_start..data_start + bytes;
            match kind {
                b'L' | b'x' => {
                    self.read_extended(kind, data.clone())?;
                    self.extended.start = Some(start);
                }
                // A long link name or global records; the file they announce is taken without them.
                b'K' | b'g' => self.extended.start = Some(start),
                _ => {
                    let extended = std::mem::take(&mut self.extended);
                    self.at = padded(data.end).min(size);
                    if !matches!(kind, b'0' | b'7' | 0) {
                        continue;
                    }
                    let name = extended.name.unwrap_or_else(|| header_name(&header));
                    // An old way to say "folder" is a regular file whose name ends with a slash.
                    if name.ends_with('/') {
                        continue;
                    }
                    return Ok(Some(Member { name, start, data }));
                }
            }
            self.at = padded(data.end).min(size);
        }
        Ok(None)
    }

    /// The next header block with a good checksum; `None` at the archive's end.
    fn header(&mut self) -> Result<Option<[u8; BLOCK as usize]>, DataError> {
        let left = self.archive.size().saturating_sub(self.at);
        if left == 0 {
            return Ok(None);
        }
        if left < BLOCK {
            let why = format!("the archive is cut: {left} bytes are left where a header of {BLOCK} belongs");
            return Err(DataError::Tar { at: self.at, why });
        }
        let bytes = self.archive.read_at(self.at..self.at + BLOCK)?;
        let header: [u8; BLOCK as usize] = bytes.as_ref().try_into().map_err(|_| DataError::Tar {
            at: self.at,
            why: format!("{} bytes came instead of {BLOCK}", bytes.len()),
        })?;
        if header.iter().all(|b| *b == 0) {
            self.closed = true;
            return Ok(None);
        }
        self.headers += 1;
        if self.headers > HEADERS_MAX {
            let why = format!("more than {HEADERS_MAX} members; split the shard");
            return Err(DataError::Tar { at: self.at, why });
        }
        let claimed = octal(&header[148..156]);
        if claimed.is_none_or(|sum| !sum_holds(&header, sum)) {
            return Err(DataError::Tar {
                at: self.at,
                why: "no tar header here: its checksum does not match".into(),
            });
        }
        Ok(Some(header))
    }

    fn member_bytes(&mut self, header: &[u8; BLOCK as usize], kind: u8) -> Result<u64, DataError> {
        let own = number(&header[124..136]).ok_or_else(|| DataError::Tar {
            at: self.at,
            why: "the size of a member is not a number".into(),
        })?;
        // A pax size is for the file, not for another extended header that may stand between.
        let wanted = if matches!(kind, b'L' | b'K' | b'x' | b'g') {
            own
        } else {
            self.extended.bytes.unwrap_or(own)
        };
        if matches!(kind, b'L' | b'K' | b'x' | b'g') && wanted > EXTENDED_BYTES_MAX {
            let why = format!("an extended header of {wanted} bytes, at most {EXTENDED_BYTES_MAX} are read");
            return Err(DataError::Tar { at: self.at, why });
        }
        Ok(wanted)
    }

    fn read_extended(&mut self, kind: u8, data: Range<u64>) -> Result<(), DataError> {
        let at = self.at;
        let bytes = if data.is_empty() {
            Bytes::new()
        } else {
            self.archive.read_at(data)?
        };
        if kind == b'L' {
            self.extended.name = Some(long_name(&bytes, at)?);
            return Ok(());
        }
        let mut rest: &[u8] = &bytes;
        while let Some((key, value, tail)) = pax_record(rest) {
            match key {
                b"path" => self.extended.name = Some(long_name(value, at)?),
                b"size" => {
                    let size = std::str::from_utf8(value).ok().and_then(|v| v.parse().ok());
                    let why = || DataError::Tar {
                        at,
                        why: "a pax size is not a number".into(),
                    };
                    self.extended.bytes = Some(size.ok_or_else(why)?);
                }
                _ => {}
            }
            rest = tail;
        }
        Ok(())
    }
}

impl<R: ReadAt> Iterator for Walker<R> {
    type Item = Result<Member, DataError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.done {
            return None;
        }
        let item = self.step();
        self.done = !matches!(item, Ok(Some(_)));
        item.transpose()
    }
}

/// Rounds up to whole blocks.
fn padded(at: u64) -> u64 {
    at.div_ceil(BLOCK).saturating_mul(BLOCK)
}

/// Whether `claimed` is the sum of the header's bytes with its checksum field read as spaces: as unsigned bytes or, as old tars
/// did, signed.
fn sum_holds(header: &[u8; BLOCK as usize], claimed: u64) -> bool {
    // Plain sums over all, which the compiler makes vectors of where it need not look for an overflow (there is none: 512
    // bytes); the field is put right afterwards.
    let unsigned = |bytes: &[u8]| bytes.iter().fold(0u32, |sum, b| sum.wrapping_add(u32::from(*b)));
    let signed = |bytes: &[u8]| bytes.iter().fold(0i32, |sum, b| sum.wrapping_add(i32::from(*b as i8)));
    let (field, spaces) = (&header[148..156], 8 * u32::from(b' '));
    let old = || i64::from(signed(header) - signed(field) + spaces as i32);
    claimed == u64::from(unsigned(header) - unsigned(field) + spaces) || i64::try_from(claimed) == Ok(old())
}

/// An octal field padded with spaces or NULs.
fn octal(field: &[u8]) -> Option<u64> {
    let digits = field
        .iter()
        .skip_while(|b| **b == b' ')
        .take_while(|b| !matches!(**b, 0 | b' '));
    digits.clone().try_fold(0u64, |n, b| match b {
        b'0'..=b'7' => n.checked_mul(8)?.checked_add(u64::from(b - b'0')),
        _ => None,
    })
}

/// An octal field or GNU's binary form for sizes beyond 8 GiB.
fn number(field: &[u8]) -> Option<u64> {
    let (first, rest) = field.split_first()?;
    match first {
        0x80 => rest
            .iter()
            .try_fold(0u64, |n, b| n.checked_mul(256)?.checked_add(u64::from(*b))),
        0xff => None,
        _ => octal(field),
    }
}

/// Bytes up to the first NUL as text.
fn text(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|b| *b == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..end]).into_owned()
}

/// A name of an extended header, which could be as long as that.
fn long_name(bytes: &[u8], at: u64) -> Result<String, DataError> {
    let length = bytes.iter().position(|b| *b == 0).unwrap_or(bytes.len());
    if length > NAME_BYTES_MAX {
        let why = format!("a member's name has {length} bytes, at most {NAME_BYTES_MAX} are taken");
        return Err(DataError::Tar { at, why });
    }
    Ok(text(bytes))
}

fn header_name(header: &[u8; BLOCK as usize]) -> String {
    let name = text(&header[..100]);
    // GNU's own format uses the prefix's place for other things.
    let prefix = if &header[257..263] == b"ustar\0" {
        text(&header[345..500])
    } else {
        String::new()
    };
    if prefix.is_empty() {
        name
    } else {
        format!("{prefix}/{name}")
    }
}

/// Splits one `length key=value\n` record off.
fn pax_record(bytes: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    let space = bytes.iter().take(20).position(|b| *b == b' ')?;
    let length: usize = std::str::from_utf8(&bytes[..space]).ok()?.parse().ok()?;
    let record = bytes.get(space + 1..length)?.strip_suffix(b"\n")?;
    let equals = record.iter().position(|b| *b == b'=')?;
    Some((&record[..equals], &record[equals + 1..], &bytes[length..]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A ustar header with a good checksum.
    fn header(name: &str, bytes: u64, kind: u8) -> Vec<u8> {
        let mut h = vec![0u8; 512];
        h[..name.len()].copy_from_slice(name.as_bytes());
        h[124..135].copy_from_slice(format!("{bytes:011o}").as_bytes());
        h[156] = kind;
        h[257..263].copy_from_slice(b"ustar\0");
        seal(&mut h);
        h
    }

    fn seal(h: &mut [u8]) {
        h[148..156].fill(b' ');
        let sum: u32 = h[..512].iter().map(|b| u32::from(*b)).sum();
        h[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    }

    fn file(name: &str, data: &[u8], kind: u8) -> Vec<u8> {
        let mut out = header(name, data.len() as u64, kind);
        out.extend_from_slice(data);
        out.resize(out.len().div_ceil(512) * 512, 0);
        out
    }

    fn walk(archive: &[u8]) -> (Vec<(String, Vec<u8>)>, Option<String>) {
        let mut files = Vec::new();
        for member in Walker::new(Bytes::copy_from_slice(archive)) {
            match member {
                Ok(m) => files.push((m.name, archive[m.data.start as usize..m.data.end as usize].to_vec())),
                Err(e) => return (files, Some(e.to_string())),
            }
        }
        (files, None)
    }

    #[test]
    fn walker_ustar_gnu_and_pax_names_are_whole() {
        let long = "d/".repeat(80) + "long.txt";
        let mut archive = file("a.txt", b"alpha", b'0');
        archive.extend(file("folder/", b"", b'5'));
        archive.extend(file("././@LongLink", long.as_bytes(), b'L'));
        archive.extend(file("short", b"beta", b'0'));
        archive.extend(file("pax", b"18 path=p/q/r.txt\n", b'x'));
        archive.extend(file("other", b"gamma", b'0'));
        archive.extend([0u8; 1024]);
        let (files, error) = walk(&archive);
        assert_eq!(error, None);
        let expected = [("a.txt", "alpha"), (long.as_str(), "beta"), ("p/q/r.txt", "gamma")];
        assert_eq!(files, expected.map(|(n, d)| (n.to_owned(), d.as_bytes().to_vec())));
        let starts: Vec<u64> = Walker::new(Bytes::from(archive))
            .map(|m| m.expect("good").start)
            .collect();
        assert_eq!(starts, [0, 1536, 3584], "a member starts with its extended headers");
    }

    #[test]
    fn walker_prefix_and_binary_size_are_understood() {
        let mut h = header("name.txt", 0, b'0');
        h[345..351].copy_from_slice(b"folder");
        h[124..136].copy_from_slice(&[0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 3]);
        seal(&mut h);
        h.extend([b'x'; 512]);
        assert_eq!(walk(&h).0, vec![("folder/name.txt".to_owned(), b"xxx".to_vec())]);
    }

    #[test]
    fn walker_cut_archive_keeps_what_came_before_and_says_where() {
        let mut archive = file("a.txt", b"alpha", b'0');
        archive.extend(file("b.txt", &[7; 2000], b'0'));
        let (files, error) = walk(&archive[..2000]);
        assert_eq!(files.len(), 1);
        assert!(error.expect("cut").contains("byte 1024"));
        let (files, error) = walk(&archive[..1200]);
        assert_eq!(files.len(), 1);
        assert!(error.expect("cut inside a header").contains("176 bytes"));
        assert_eq!(walk(&[]), (vec![], None));
    }

    #[test]
    fn walker_archive_cut_between_members_is_not_closed() {
        let mut archive = file("a.txt", b"alpha", b'0');
        let closed = |archive: &[u8]| {
            let mut walker = Walker::new(Bytes::copy_from_slice(archive));
            assert_eq!(walker.by_ref().flatten().count(), 1);
            walker.is_closed()
        };
        assert!(!closed(&archive));
        archive.extend([0u8; 512]);
        assert!(closed(&archive));
    }

    #[test]
    fn walker_bad_checksum_ends_the_walk() {
        let mut archive = file("a.txt", b"alpha", b'0');
        archive.extend(file("b.txt", b"beta", b'0'));
        archive[1024] ^= 1;
        let (files, error) = walk(&archive);
        assert_eq!(files.len(), 1);
        assert!(error.expect("checksum").contains("checksum"));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(400))]

        #[test]
        fn walker_mutated_archive_never_panics_or_leaves_the_bytes(
            edits in proptest::collection::vec((0usize..4608, any::<u8>()), 0..24),
            cut in 0usize..4608,
            reseal in any::<bool>(),
        ) {
            let mut archive = file("a.txt", &[1; 700], b'0');
            archive.extend(file("l", b"longer.txt", b'L'));
            archive.extend(file("b.jpg", &[2; 600], b'0'));
            archive.extend(file("p", b"12 size=90\n", b'x'));
            for (at, value) in edits {
                let n = archive.len();
                archive[at % n] = value;
            }
            if reseal {
                // Good checksums let the mutations reach the fields behind them.
                for at in [0, 1536, 2560, 4096] {
                    if at + 512 <= archive.len() {
                        seal(&mut archive[at..at + 512]);
                    }
                }
            }
            archive.truncate(archive.len().min(cut.max(1)));
            let size = archive.len() as u64;
            let mut last = 0;
            for member in Walker::new(Bytes::from(archive)).flatten() {
                prop_assert!(member.start >= last && member.data.start <= member.data.end && member.data.end <= size);
                last = member.data.end;
            }
        }
    }
}
