//! The fuzz targets on their committed corpus, and on seeded mutations of it.

use crate::support::goldens;
use argosy_shard_loader::index::{Body, ShardRecord, SourceRecord};
use argosy_shard_loader::{Index, fuzzing};
use std::path::{Path, PathBuf};

/// Mutations per target on push; the fuzzer itself (`shard-loader/fuzz`) goes on for as long as it is let.
const ROUNDS: usize = 3000;
const SEED: u64 = 0x5eed_0042;

/// The same numbers on every machine.
struct Dice(u64);

impl Dice {
    fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % n.max(1) as u64) as usize
    }
}

fn corpus(name: &str) -> Vec<Vec<u8>> {
    seeds(&Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(name))
}

fn seeds(folder: &Path) -> Vec<Vec<u8>> {
    let entries = std::fs::read_dir(folder).expect("the corpus");
    let mut files: Vec<PathBuf> = entries.map(|e| e.expect("an entry").path()).collect();
    files.sort();
    files.iter().map(|f| std::fs::read(f).expect("a seed")).collect()
}

/// One to eight small changes.
fn mutate(seed: &[u8], dice: &mut Dice) -> Vec<u8> {
    let mut bytes = seed.to_vec();
    for _ in 0..=dice.below(8) {
        let at = dice.below(bytes.len() + 1);
        let end = (at + 1 + dice.below(40)).min(bytes.len());
        match dice.below(7) {
            0 if at < bytes.len() => bytes[at] ^= 1 << dice.below(8),
            1 if at < bytes.len() => bytes[at] = [0, 0xff, b'9', b' ', b'&', 0x80, 0xc3, 0x7f][dice.below(8)],
            2 => bytes.insert(at, dice.below(256) as u8),
            3 => drop(bytes.drain(at..end)),
            4 => bytes.extend_from_within(at..end),
            5 => bytes.truncate(at),
            _ if at < bytes.len() => bytes[at] = dice.below(256) as u8,
            _ => {}
        }
    }
    bytes
}

/// Makes the checksums of headers good again, so that changes reach what lies behind them.
fn reseal(archive: &mut [u8]) {
    for header in archive.chunks_exact_mut(512).filter(|h| h[257..262] == *b"ustar") {
        header[148..156].fill(b' ');
        let sum: u32 = header.iter().map(|b| u32::from(*b)).sum();
        header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    }
}

#[allow(clippy::print_stdout, reason = "a test's seed goes into the long run's report")]
fn run(name: &str, seeds: &[Vec<u8>], rounds: usize, target: fn(&[u8]), mend: fn(&mut [u8])) {
    println!("SEED fuzz-{name} {SEED:#x}");
    assert!(!seeds.is_empty(), "no corpus for {name}");
    seeds.iter().for_each(|seed| target(seed));
    let mut dice = Dice(SEED);
    for round in 0..rounds {
        let mut bytes = mutate(&seeds[dice.below(seeds.len())], &mut dice);
        if round % 2 == 0 {
            mend(&mut bytes);
        }
        // The bytes of a failure come out, ready for the corpus.
        let result = std::panic::catch_unwind(|| target(&bytes));
        assert!(result.is_ok(), "{name} breaks in round {round} on {bytes:?}");
    }
}

#[test]
fn fuzz_tar_corpus_and_mutations_keep_every_promise() {
    run("tar", &corpus("tar"), 4 * ROUNDS, fuzzing::tar, reseal);
}

#[test]
fn fuzz_caption_corpus_and_mutations_keep_every_promise() {
    run("caption", &corpus("caption"), ROUNDS, fuzzing::caption, |_| {});
}

#[test]
fn fuzz_index_corpus_and_mutations_keep_every_promise() {
    run("index", &corpus("index"), ROUNDS, fuzzing::index, |_| {});
}

/// What stands before table and places in an index file, and where in it the table's length is.
const HEADER_BYTES: usize = 64;
const TABLE_BYTES_AT: std::ops::Range<usize> = 24..32;

/// A shard of rows at `starts`, each of `length` bytes; `kept` are its samples.
fn shard(name: &str, starts: &[u64], length: u32, kept: &[bool]) -> ShardRecord {
    ShardRecord {
        location: format!("s3://bucket/set/{name}.tar"),
        bytes: starts.last().map_or(1024, |last| last + u64::from(length) + 1024),
        etag: Some(format!("\"{name}\"")),
        modified_ms: 1_700_000_000_000,
        starts: starts.to_vec(),
        lengths: vec![length; starts.len()],
        kept: kept.to_vec(),
        filtered: kept.iter().filter(|kept| !**kept).count() as u32,
        ..ShardRecord::default()
    }
}

/// Small indexes of every kind: rows without gaps and with, more than one known offset, a claim, damage, several sources.
fn indexes() -> Vec<(&'static str, Body)> {
    let source = |name: &str, shards: Vec<ShardRecord>| SourceRecord {
        name: name.to_owned(),
        shards,
    };
    let body = |filter: &str, sources: Vec<SourceRecord>| Body {
        image_key: "jpg;png;jpeg;webp".into(),
        text_key: "txt".into(),
        filter: filter.to_owned(),
        sources,
    };
    let plain = || shard("0", &[0, 2048, 4096], 2048, &[true; 3]);
    let gaps = shard("1", &[1024, 4096], 1536, &[false, true, false, true]);
    let claim = ShardRecord {
        claimed: Some(7),
        ..shard("2", &[], 0, &[])
    };
    let damage = ShardRecord {
        damage: Some("at byte 6144: no tar header here".into()),
        ..shard("3", &[0], 1536, &[true])
    };
    let many: Vec<u64> = (0..130).map(|row| row * 2048 + u64::from(row > 70) * 512).collect();
    let many = shard("4", &many, 1536, &[true; 130]);
    let filtered = body("similarity >= 0.3", vec![source("a", vec![gaps.clone()])]);
    let sources = vec![
        source("a", vec![plain(), gaps]),
        source("b", vec![claim.clone(), damage]),
    ];
    vec![
        ("plain", body("", vec![source("a", vec![plain()])])),
        ("filtered", filtered),
        ("claimed", body("", vec![source("a", vec![claim])])),
        ("sources", body("", sources)),
        ("anchors", body("", vec![source("a", vec![many])])),
    ]
}

/// The seeds are real indexes, or mutations would only ever try how nonsense is refused. `ARGOSY_BLESS=1` writes them.
#[test]
fn fuzz_index_corpus_holds_what_is_written_today() {
    let folder = tempfile::tempdir().expect("a folder");
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus/index");
    for (name, body) in indexes() {
        let file = folder.path().join(name);
        Index::from_body(&body).expect(name).write(&file).expect("written");
        let whole = std::fs::read(&file).expect("the index");
        let payload = [&whole[TABLE_BYTES_AT], &whole[HEADER_BYTES..]].concat();
        if std::env::var_os("ARGOSY_BLESS").is_some() {
            std::fs::write(corpus.join(name), &payload).expect("written");
        }
        assert!(std::fs::read(corpus.join(name)).expect("a seed") == payload, "{name}");
        Index::sealed(&payload).expect("a good payload is taken");
    }
}

#[test]
fn fuzz_picture_corpus_and_mutations_keep_every_promise() {
    // The golden pictures are the corpus; those that unpack to megabytes only slow it down.
    let seeds: Vec<Vec<u8>> = seeds(&goldens().join("pictures"))
        .into_iter()
        .filter(|s| s.len() < 20_000)
        .collect();
    run("picture", &seeds, ROUNDS / 3, fuzzing::picture, |_| {});
}
