//! The whole loader over an S3 server that fails on purpose: planted damage is named, every good key is trained once.
//! Numbers are those of the project's list of faults (object store and data, 34 to 40).

use crate::support::{data_config, good_members, loader_config, picture, tar};
use argosy_common::config::{FilterConfig, Source};
use argosy_common::steplog::RowState;
use argosy_shard_loader::check::{self, CheckConfig};
use argosy_shard_loader::index::{self, BuildReport};
use argosy_shard_loader::{BlockCause, BuildConfig, DataError, Filter, Index, Loader, LoaderError, RetryPolicy, Store};
use argosy_test_stores::{Fault, Faults, Op, Rule, S3Double, StoreDouble, Storm};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

const WAIT: Duration = Duration::from_secs(60);
pub(crate) const BUCKET: &str = "bucket";
pub(crate) const PREFIX: &str = "s3://bucket/set/";

/// Pauses of no length: what a storm tests here is what comes out, not how long it takes.
pub(crate) fn store(double: &S3Double) -> Store {
    store_at("s3://bucket", double)
}

pub(crate) fn store_at(root: &str, double: &StoreDouble) -> Store {
    let policy = RetryPolicy {
        backoff_first_ms: 0,
        ..RetryPolicy::default()
    };
    let store = Store::new(policy).expect("a store");
    store.put_root(root, double.client(BUCKET).expect("a client"));
    store
}

pub(crate) fn build(store: &Store, shards: &str, config: &BuildConfig) -> Result<(Index, BuildReport), DataError> {
    let source = Source {
        name: "all".into(),
        shards: shards.into(),
    };
    index::build(store, &[source], Path::new("/"), config, &|_| {})
}

pub(crate) fn config() -> BuildConfig {
    BuildConfig::new("jpg;png;jpeg;webp", "txt")
}

/// Names and archives.
pub(crate) type Shards = Vec<(String, Vec<u8>)>;
/// Keys and what must be said of them.
pub(crate) type Bad = BTreeSet<(String, String)>;

/// Shards with planted damage.
pub(crate) fn planted() -> (Shards, Bad) {
    let mut bad = BTreeSet::new();
    let mut plant = |members: &mut Vec<(String, Vec<u8>)>, key: &str, reason: &str, image: Vec<u8>, caption: &[u8]| {
        members.push((format!("{key}.jpg"), image));
        members.push((format!("{key}.txt"), caption.to_vec()));
        bad.insert((key.to_owned(), reason.to_owned()));
    };
    let mut first = good_members(0, 9);
    plant(&mut first, "bad/cut", "format", picture("cut.jpg"), b"a cut picture");
    plant(&mut first, "bad/html", "format", picture("text.jpg"), b"a page");
    let mut second = good_members(1, 6);
    plant(&mut second, "bad/empty", "caption", picture("420.jpg"), b" \n");
    plant(&mut second, "bad/latin", "caption", picture("420.jpg"), &[b'a', 0xff]);
    second.push(("bad/alone.jpg".into(), picture("420.jpg")));
    bad.insert(("bad/alone".to_owned(), "missing".to_owned()));
    let whole = tar(&good_members(2, 8));
    let cut = whole[..whole.len() - 1024 - 600].to_vec();
    bad.insert((String::new(), "damage".to_owned()));
    // The cut took the caption of the last sample.
    bad.insert(("0007".to_owned(), "missing".to_owned()));
    let shards = [tar(&first), tar(&second), cut, Vec::new(), tar(&good_members(4, 7))];
    // The empty shard is damage as well; both have no key.
    let named = shards.into_iter().enumerate().map(|(i, s)| (format!("set/{i}.tar"), s));
    (named.collect(), bad)
}

pub(crate) fn put(double: &S3Double, shards: &[(String, Vec<u8>)]) {
    for (name, bytes) in shards {
        double.insert(BUCKET, name, bytes.clone());
    }
}

/// Captions that were trained, and how often.
fn trained(loader: &Loader, steps: u64) -> BTreeMap<Vec<i32>, u32> {
    let mut seen = BTreeMap::new();
    for _ in 0..steps {
        for batch in loader.next(WAIT).expect("loads").expect("in time") {
            for (row, state) in batch.states.iter().enumerate() {
                if *state == RowState::Valid {
                    *seen.entry(batch.tokens[row * 12..(row + 1) * 12].to_vec()).or_default() += 1;
                }
            }
        }
    }
    seen
}

pub(crate) fn run(index: &Arc<Index>, store: &Store) -> (BTreeMap<Vec<i32>, u32>, u64) {
    let config = loader_config(index.to_shape(), 6, 3, 1);
    let steps = config.shape.total_steps();
    let loader = Loader::over(Arc::clone(index), config, store.clone()).expect("a loader");
    loader.assign(&[0, 1, 2], 0);
    let seen = trained(&loader, steps);
    (seen, loader.stats().masked.values().sum())
}

// 34, 37, 40: what passes passes, and no sample comes twice for it.
#[test]
fn shards_with_planted_damage_over_a_failing_store_train_every_good_key_once() {
    let (shards, bad) = planted();
    let calm = S3Double::start_with_pages(Faults::default(), 2).expect("a port");
    put(&calm, &shards);
    let (index, report) = build(&store(&calm), PREFIX, &config()).expect("indexed");
    assert_eq!((report.missing, report.damaged.len()), (2, 2), "{report:?}");
    let (expected, masked) = run(&Arc::new(index), &store(&calm));
    // 9 + 6 + 7 whole ones of the cut shard's 8 + 7, each with a caption of its own.
    assert_eq!((expected.len(), masked), (29, 4));
    assert!(expected.values().all(|n| *n == 1), "every good key once");

    for seed in 0..3 {
        println!("SEED store_storm {seed}");
        let wild = S3Double::start_with_pages(Faults::default(), 2).expect("a port");
        put(&wild, &shards);
        wild.faults().storm(Storm { seed, per_mille: 400 });
        let patient = store(&wild);
        let (index, _) = build(&patient, PREFIX, &config()).expect("indexed");
        let (seen, masked) = run(&Arc::new(index), &patient);
        assert!(seen == expected && masked == 4, "seed {seed}");
        assert!(
            wild.faults().fired().values().sum::<u64>() > 3,
            "{:?}",
            wild.faults().fired()
        );
        assert!(patient.stats().retries > 3);
    }

    let checked = CheckConfig {
        build: config(),
        max_image_pixels: 1 << 20,
        max_sample_bytes: 1 << 20,
        listed_max: 100,
    };
    let report = check::check(&store(&calm), PREFIX, Path::new("/"), &checked, &|_, _| {}).expect("checked");
    assert_eq!((report.shards, report.samples, report.good), (5, 35, 29));
    let named: BTreeSet<(String, String)> = report.problems.into_iter().map(|p| (p.key, p.reason)).collect();
    assert_eq!(named, bad, "every bad one is named with its reason");
    assert_eq!(report.reasons["damage"], 2);
}

// 35, 36, 37: what does not pass blocks the lane, says which kind it is, and asks no more than needed.
#[test]
fn shard_that_is_denied_gone_or_changed_in_a_run_blocks_its_lane() {
    let cases = [
        (Fault::Status(403), BlockCause::Denied, "AWS_*", 2),
        (Fault::Status(400), BlockCause::Denied, "renew the credentials", 2),
        (Fault::Status(404), BlockCause::Missing, "does not exist", 1),
        (
            Fault::Changed("other".into()),
            BlockCause::Changed,
            "has changed since it was indexed",
            1,
        ),
    ];
    for (fault, wanted, words, requests) in cases {
        let double = S3Double::start(Faults::default()).expect("a port");
        put(&double, &[("set/0.tar".into(), tar(&good_members(0, 12)))]);
        let store = store(&double);
        let (index, _) = build(&store, PREFIX, &config()).expect("indexed");
        let mut config = loader_config(index.to_shape(), 4, 1, 1);
        config.shape.window_factor = 1;
        let loader = Loader::over(Arc::new(index), config, store).expect("a loader");
        let before = double.faults().count(Op::Get);
        double.faults().add(Rule::new(Op::Get, fault).forever());
        loader.assign(&[0], 0);
        let error = loader.next(WAIT).expect_err("blocked");
        let LoaderError::LaneBlocked {
            cause,
            error: why,
            shard,
            ..
        } = &error
        else {
            panic!("{error}");
        };
        assert_eq!((*cause, shard.as_str()), (wanted, "s3://bucket/set/0.tar"), "{error}");
        assert!(why.contains(words) && !why.contains("canary-secret"), "{why}");
        assert_eq!(
            double.faults().count(Op::Get) - before,
            requests,
            "no storm of requests: {why}"
        );
        double.faults().clear();
    }
}

// 38: a page that answers for the store is not trained.
#[test]
fn portal_that_answers_for_the_store_is_asked_again() {
    let double = S3Double::start(Faults::default()).expect("a port");
    put(&double, &[("set/0.tar".into(), tar(&good_members(0, 12)))]);
    let store = store(&double);
    let (index, _) = build(&store, PREFIX, &config()).expect("indexed");
    let page = Fault::WrongContent("<html>please log in</html>".into());
    double.faults().add(Rule::new(Op::Get, page).times(3));
    let (seen, masked) = run(&Arc::new(index), &store);
    assert_eq!((seen.len(), masked), (12, 0));
    assert_eq!(double.faults().fired()["wrong_content"], 3);
}

#[test]
fn index_made_again_reads_only_what_is_new_or_changed() {
    let double = S3Double::start(Faults::default()).expect("a port");
    let shard = |i: usize, rows| (format!("set/{i}.tar"), tar(&good_members(i, rows)));
    put(&double, &[shard(0, 3), shard(1, 3), shard(2, 3)]);
    let store = store(&double);
    let (index, _) = build(&store, PREFIX, &config()).expect("indexed");
    put(&double, &[shard(1, 4), shard(3, 2)]);
    let again = BuildConfig {
        known: Some(Arc::new(index)),
        ..config()
    };
    let (second, report) = build(&store, PREFIX, &again).expect("indexed again");
    assert_eq!((report.known, report.rows), (2, 12));
    let (fresh, _) = build(&store, PREFIX, &config()).expect("indexed afresh");
    assert_eq!(second.index_hash(), fresh.index_hash(), "as if nothing had been known");
    let other = BuildConfig {
        text_key: "txt;json:caption".into(),
        ..again
    };
    assert_eq!(
        build(&store, PREFIX, &other).expect("indexed").1.known,
        0,
        "other keys know nothing"
    );
}

#[test]
fn index_interrupted_goes_on_where_it_was() {
    let double = S3Double::start(Faults::default()).expect("a port");
    for i in 0..6 {
        put(&double, &[(format!("set/{i}.tar"), tar(&good_members(i, 2)))]);
    }
    let claims = (0..6).map(|i| format!("\"{i}.tar\": 9")).collect::<Vec<_>>();
    double.insert(BUCKET, "set/sizes.json", format!("{{{}}}", claims.join(", ")));
    let folder = tempfile::tempdir().expect("a folder");
    let journal = folder.path().join("index.partial");
    let noting = BuildConfig {
        journal: Some(journal.clone()),
        ..config()
    };
    double
        .faults()
        .add(Rule::new(Op::Get, Fault::Status(403)).key("5.tar").forever());
    let error = build(&store(&double), PREFIX, &noting).expect_err("refused");
    assert!(matches!(error, DataError::Denied { .. }), "{error}");
    double.faults().clear();
    let (index, report) = build(&store(&double), PREFIX, &noting).expect("goes on");
    assert!(report.known > 0 && report.known < 6, "{report:?}");
    let (fresh, once) = build(&store(&double), PREFIX, &config()).expect("afresh");
    assert_eq!(index.index_hash(), fresh.index_hash());
    assert_eq!(
        report.wrong_claims, once.wrong_claims,
        "those of the first try are not lost"
    );
    assert_eq!(report.wrong_claims.len(), 6);
    // The index may not come to be written; then nothing has to be read again.
    let (_, report) = build(&store(&double), PREFIX, &noting).expect("once more");
    assert_eq!(report.known, 6, "{report:?}");
    index::remove_journal(&journal);
    assert!(!journal.exists(), "it has done its duty");
}

// 37, 47: bytes that broke on their way to the index are no damage of the shard.
#[test]
fn shard_whose_header_broke_on_its_way_to_the_index_is_walked_again() {
    let double = S3Double::start(Faults::default()).expect("a port");
    put(&double, &[("set/0.tar".into(), tar(&good_members(0, 6)))]);
    double.faults().add(Rule::new(Op::Get, Fault::Flipped(3)).key("0.tar"));
    let (_, report) = build(&store(&double), PREFIX, &config()).expect("indexed");
    assert_eq!((report.rows, report.damaged.len()), (6, 0), "{report:?}");
    assert_eq!(double.faults().fired()["flipped"], 1);
}

#[test]
fn shard_cut_between_two_samples_keeps_its_rows_and_is_reported() {
    let double = S3Double::start(Faults::default()).expect("a port");
    let whole = tar(&good_members(0, 6));
    let cut = whole.len() - tar(&good_members(0, 6)[10..]).len();
    put(&double, &[("set/0.tar".into(), whole[..cut].to_vec())]);
    let (_, report) = build(&store(&double), PREFIX, &config()).expect("indexed");
    assert_eq!((report.rows, report.damaged.len()), (5, 1), "{report:?}");
    let why = &report.damaged[0].why;
    assert!(
        why.contains("no empty block") && why.contains(&format!("byte {cut}")),
        "{why}"
    );
    let checked = CheckConfig {
        build: config(),
        max_image_pixels: 1 << 20,
        max_sample_bytes: 1 << 20,
        listed_max: 100,
    };
    let report = check::check(&store(&double), PREFIX, Path::new("/"), &checked, &|_, _| {}).expect("checked");
    assert_eq!(report.reasons, [("damage".to_owned(), 1)].into());
}

#[test]
fn counts_claimed_by_others_are_hints_until_a_shard_is_read() {
    let double = S3Double::start(Faults::default()).expect("a port");
    for i in 0..3 {
        put(&double, &[(format!("set/{i}.tar"), tar(&good_members(i, 6)))]);
    }
    // One is right, one claims more than there is, one less; img2dataset speaks for the third.
    double.insert(BUCKET, "set/sizes.json", r#"{"0.tar": 6, "1.tar": 8}"#);
    double.insert(BUCKET, "set/2_stats.json", r#"{"count": 9, "successes": 5}"#);
    let store = store(&double);
    let adopting = BuildConfig {
        adopt: true,
        ..config()
    };
    let (index, report) = build(&store, PREFIX, &adopting).expect("adopted");
    assert_eq!((report.adopted, report.rows), (3, 19));
    assert_eq!(index.to_shape()[0].shard_rows, [6, 8, 5]);
    assert!(index.shards().all(|s| !s.verified));
    let run_config = loader_config(index.to_shape(), 19, 1, 1);
    let loader = Loader::over(Arc::new(index), run_config, store.clone()).expect("a loader");
    loader.assign(&[0], 0);
    assert_eq!(trained(&loader, 1).len(), 17, "6 + 6 + 5: what is claimed and there");
    let stats = loader.stats();
    assert_eq!(stats.masked.values().sum::<u64>(), 2, "claimed and not there: missing");
    assert_eq!(stats.rows_beyond, 1, "there and not claimed: told, not trained");
    // Read, the claims are held against the shards.
    let (_, report) = build(&store, PREFIX, &config()).expect("read");
    assert_eq!((report.rows, report.wrong_claims.len()), (18, 2), "{report:?}");
}

#[test]
fn filter_keeps_the_rows_it_names_and_positions_number_only_those() {
    let double = S3Double::start(Faults::default()).expect("a port");
    let mut members = Vec::new();
    for i in 0..10 {
        members.push((format!("{i:04}.jpg"), picture("420.jpg")));
        members.push((format!("{i:04}.txt"), format!("caption {}", "x".repeat(i)).into_bytes()));
        members.push((
            format!("{i:04}.json"),
            format!("{{\"score\": {i}, \"alt\": \"alt {i}\"}}").into_bytes(),
        ));
    }
    put(&double, &[("set/0.tar".into(), tar(&members))]);
    let folder = tempfile::tempdir().expect("a folder");
    std::fs::write(folder.path().join("ids"), "0001\n0004\n0005\n0008\n").expect("written");
    let filter = FilterConfig {
        ids: Some("ids".into()),
        caption_chars: Some([0, 15]),
        conditions: vec!["score >= 2".into()],
        ..FilterConfig::default()
    };
    let filtered = BuildConfig {
        filter: Filter::of(&filter, folder.path()).expect("a filter"),
        text_key: "json:alt".into(),
        ..config()
    };
    let store = store(&double);
    let (index, report) = build(&store, PREFIX, &filtered).expect("indexed");
    assert_eq!((report.rows, report.filtered), (3, 7));
    let kept: Vec<usize> = (0..10).filter(|i| [4, 5, 8].contains(i)).collect();
    let bitmap = index.kept(0, 0).expect("whole").expect("known");
    assert_eq!((0..10).filter(|i| bitmap[*i]).collect::<Vec<_>>(), kept);
    let run_config = loader_config(index.to_shape(), 3, 1, 1);
    let loader = Loader::over(Arc::new(index), run_config, store.clone()).expect("a loader");
    loader.assign(&[0], 0);
    assert_eq!(trained(&loader, 1).len(), 3);
    let adopting = BuildConfig {
        adopt: true,
        ..filtered
    };
    assert!(build(&store, PREFIX, &adopting).is_err(), "a claim cannot be filtered");
    assert!(data_config().filter.conditions.is_empty());
}

#[test]
fn addresses_over_http_are_read_without_credentials() {
    let double = S3Double::start(Faults::default()).expect("a port");
    put(&double, &[("set/0.tar".into(), tar(&good_members(0, 5)))]);
    let store = Store::new(RetryPolicy::default()).expect("a store");
    let address = format!("{}/{BUCKET}/set/{{0..0}}.tar", double.endpoint());
    let (index, report) = build(&store, &address, &config()).expect("indexed");
    assert_eq!(report.rows, 5);
    assert_eq!(run(&Arc::new(index), &store).0.len(), 5);
}
