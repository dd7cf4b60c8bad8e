use super::*;

fn key(n: u32) -> ShardKey {
    ShardKey::new("bytes", &format!("s3://bucket/{n}.tar"), 1000, "\"etag\"")
}

fn row(n: u8) -> Vec<u8> {
    vec![n; 500]
}

fn cache(folder: &Path, bytes_max: u64) -> DiskCache {
    DiskCache::open(folder, bytes_max, 0).expect("opened")
}

fn got(cache: &DiskCache, shard: u32, start: u64) -> Option<Vec<u8>> {
    cache.get(key(shard), start).map(|row| row.bytes.to_vec())
}

/// Bytes of all files but the ledger.
fn on_disk(folder: &Path) -> u64 {
    let entries = std::fs::read_dir(folder)
        .expect("a folder")
        .map(|e| e.expect("an entry"));
    let rows = entries.filter(|e| e.file_name() != "ledger");
    rows.map(|e| e.metadata().expect("there").len()).sum()
}

#[test]
fn row_kept_comes_back_under_its_own_shard_etag_form_and_start_only() {
    let folder = tempfile::tempdir().expect("a folder");
    let kept = cache(folder.path(), 1 << 20);
    kept.put(key(1), 512, &row(7), false);
    for cache in [&kept, &cache(folder.path(), 1 << 20)] {
        assert_eq!(got(cache, 1, 512), Some(row(7)));
        assert!(cache.has(key(1), 512) && !cache.has(key(1), 1024) && !cache.has(key(2), 512));
        for (form, bytes, etag) in [
            ("bytes", 1000, "\"new\""),
            ("bytes", 1001, "\"etag\""),
            ("other", 1000, "\"etag\""),
        ] {
            let other = ShardKey::new(form, "s3://bucket/1.tar", bytes, etag);
            assert_eq!(cache.get(other, 512), None, "{form} {bytes} {etag}");
        }
    }
}

#[test]
fn rows_of_another_process_are_seen_and_not_kept_twice() {
    let folder = tempfile::tempdir().expect("a folder");
    let (one, other) = (cache(folder.path(), 1 << 20), cache(folder.path(), 1 << 20));
    one.put(key(1), 0, &row(1), false);
    assert_eq!(got(&other, 1, 0), Some(row(1)));
    other.put(key(1), 512, &row(2), false);
    assert_eq!(got(&one, 1, 512), Some(row(2)));
    let before = on_disk(folder.path());
    one.put(key(1), 512, &row(2), false);
    assert_eq!((on_disk(folder.path()), one.stats().kept), (before, 1));
    // That it was confirmed is news.
    one.put(key(1), 512, &row(2), true);
    assert!(one.get(key(1), 512).expect("there").confirmed);
    assert!(cache(folder.path(), 1 << 20).get(key(1), 512).expect("there").confirmed);
}

#[test]
fn row_turned_on_the_disk_is_not_served_and_can_be_kept_anew() {
    let folder = tempfile::tempdir().expect("a folder");
    let first = cache(folder.path(), 1 << 20);
    first.put(key(1), 0, &row(1), false);
    first.put(key(1), 512, &row(2), false);
    let path = key(1).file(folder.path(), pack::DATA);
    let mut bytes = std::fs::read(&path).expect("there");
    bytes[100] ^= 1;
    std::fs::write(&path, bytes).expect("written");
    let cache = cache(folder.path(), 1 << 20);
    assert_eq!((got(&cache, 1, 0), got(&cache, 1, 512)), (None, Some(row(2))));
    assert_eq!(cache.stats().broken, 1);
    cache.put(key(1), 0, &row(1), false);
    assert_eq!(got(&cache, 1, 0), Some(row(1)));
}

#[test]
fn files_cut_at_any_byte_serve_whole_rows_only_and_take_new_ones() {
    let folder = tempfile::tempdir().expect("a folder");
    for suffix in [pack::LIST, pack::DATA] {
        let whole = folder.path().join(suffix);
        let first = cache(&whole, 1 << 20);
        for n in 0..3 {
            first.put(key(1), n * 512, &row(n as u8), false);
        }
        let path = key(1).file(&whole, suffix);
        let length = std::fs::metadata(&path).expect("there").len();
        for cut in (0..length).rev().step_by(7) {
            File::options()
                .write(true)
                .open(&path)
                .expect("there")
                .set_len(cut)
                .expect("cut");
            let cache = cache(&whole, 1 << 20);
            for n in 0..3 {
                let found = got(&cache, 1, n * 512);
                assert!(found.is_none_or(|bytes| bytes == row(n as u8)), "{suffix} cut at {cut}");
            }
        }
        let cache = cache(&whole, 1 << 20);
        cache.put(key(1), 4096, &row(9), false);
        assert_eq!(got(&cache, 1, 4096), Some(row(9)), "{suffix}");
        assert_eq!(got(&self::cache(&whole, 1 << 20), 1, 4096), Some(row(9)), "{suffix}");
    }
}

#[test]
fn budget_is_never_exceeded_and_shards_of_others_go_first_oldest_first() {
    let folder = tempfile::tempdir().expect("a folder");
    let budget = 4 * (500 + pack::RECORD_BYTES);
    let before = cache(folder.path(), budget);
    for n in 0..4 {
        before.put(key(n), 0, &row(n as u8), false);
        let changed = File::options()
            .write(true)
            .open(key(n).file(folder.path(), pack::LIST))
            .expect("there");
        let age = std::time::Duration::from_secs(u64::from(100 - n));
        changed.set_modified(std::time::SystemTime::now() - age).expect("set");
    }
    // Another run, which reads shards 0, 8 and 9 and 10.
    let run = cache(folder.path(), budget);
    run.own([0, 8, 9, 10].map(key));
    run.put(key(8), 0, &row(8), false);
    assert_eq!(on_disk(folder.path()), budget);
    let there: Vec<bool> = (0..4)
        .map(|n| got(&cache(folder.path(), budget), n, 0).is_some())
        .collect();
    assert_eq!(
        there,
        [true, false, true, true],
        "the oldest that the run does not read"
    );
    for n in 8..11 {
        for start in 0..4 {
            run.put(key(n), start * 512, &row(n as u8), false);
            assert!(on_disk(folder.path()) <= budget);
        }
    }
    // Its own rows stay; there is no room for more.
    assert!(got(&run, 0, 0).is_some() && got(&run, 8, 0).is_some());
    assert_eq!((got(&run, 2, 0), got(&run, 3, 0), got(&run, 10, 0)), (None, None, None));
    assert!(run.stats().refused > 0 && on_disk(folder.path()) > budget / 2);
}

#[test]
fn ledger_that_is_lost_or_too_high_is_counted_again() {
    let folder = tempfile::tempdir().expect("a folder");
    let budget = 4 * (500 + pack::RECORD_BYTES);
    cache(folder.path(), budget).put(key(1), 0, &row(1), false);
    for ledger in [&[][..], &u64::MAX.to_le_bytes()] {
        std::fs::write(folder.path().join("ledger"), ledger).expect("written");
        let again = cache(folder.path(), budget);
        again.own([key(1)]);
        again.put(key(1), 512 + ledger.len() as u64, &row(2), false);
        assert_eq!(again.stats().kept, 1, "{ledger:?}");
    }
    assert!(on_disk(folder.path()) <= budget);
}

#[test]
fn disk_without_free_space_takes_nothing_in_and_fails_nothing() {
    let folder = tempfile::tempdir().expect("a folder");
    let full = DiskCache::open(folder.path(), 1 << 20, 1 << 60).expect("opened");
    full.put(key(1), 0, &row(1), false);
    full.put(key(1), 512, &row(2), false);
    assert_eq!((got(&full, 1, 0), full.stats().refused), (None, 2));
    assert_eq!(on_disk(folder.path()), 0);
}

#[test]
fn neighbour_that_stops_while_it_writes_holds_nobody_up() {
    let folder = tempfile::tempdir().expect("a folder");
    let cache = cache(folder.path(), 1 << 20);
    cache.put(key(1), 0, &row(1), false);
    // As a process that was stopped behind its lock: a handle of its own has it.
    let neighbour = File::options()
        .write(true)
        .open(folder.path().join("ledger"))
        .expect("there");
    neighbour.lock().expect("locked");
    cache.put(key(1), 512, &row(2), false);
    assert_eq!((got(&cache, 1, 0), got(&cache, 1, 512)), (Some(row(1)), None));
    assert_eq!((cache.stats().busy, cache.stats().refused), (1, 0));
    neighbour.unlock().expect("unlocked");
    cache.put(key(1), 512, &row(2), false);
    assert_eq!(got(&cache, 1, 512), Some(row(2)), "it goes on when the other one does");
}

#[test]
fn folder_that_cannot_be_made_is_an_error_that_names_it() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("file");
    std::fs::write(&file, "").expect("written");
    let text = DiskCache::open(&file.join("cache"), 1, 0)
        .expect_err("refused")
        .to_string();
    assert!(text.contains("cache folder") && text.contains("file/cache"), "{text}");
}

#[test]
fn kept_picture_comes_back_and_other_bytes_do_not() {
    let picture = crate::decode::Rgb {
        width: 3,
        height: 2,
        pixels: (0..18).collect(),
    };
    let captions = [(0, "a cat"), (2, "καλημέρα")].map(|(entry, text)| crate::sample::Caption {
        entry,
        text: text.to_owned(),
    });
    let bytes = Kept::write((640, 480), &picture, &captions);
    let kept = Kept::read(&bytes).expect("whole");
    assert_eq!(
        (kept.full, &kept.picture, &kept.captions[..]),
        ((640, 480), &picture, &captions[..])
    );
    for cut in 0..bytes.len() {
        assert_eq!(Kept::read(&bytes[..cut]), None, "cut at {cut}");
    }
}
