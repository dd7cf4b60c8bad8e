//! The index file: what is written comes back, what is damaged is refused.

use super::*;
use argosy_common::exit::Exit;

fn body() -> Body {
    let shard = ShardEntry {
        location: "/data/0.tar".into(),
        bytes: 10_000,
        etag: Some("e".into()),
        modified_ms: 5,
        starts: vec![0, 2048],
        lengths: vec![2048, 1024],
        missing: 1,
        damage: None,
    };
    let empty = ShardEntry {
        location: "/data/1.tar".into(),
        damage: Some("the file is empty".into()),
        ..ShardEntry::default()
    };
    let source = SourceEntry {
        name: "s".into(),
        shards: vec![shard, empty],
    };
    Body {
        image_key: "jpg".into(),
        text_key: "txt".into(),
        sources: vec![source],
    }
}

#[test]
fn index_written_and_opened_gives_the_same_rows_and_hash() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("x.argosy-index");
    let made = Index::from_body(&body()).expect("made");
    made.write(&path).expect("written");
    made.write(&path).expect("written over");
    let opened = Index::open(&path).expect("opened");
    assert_eq!(opened.index_hash(), made.index_hash());
    assert_eq!(
        opened.to_shape(),
        vec![SourceShape {
            name: "s".into(),
            shard_rows: vec![2, 0]
        }]
    );
    assert_eq!(opened.mean_sample_bytes(), 1536);
    assert_eq!(opened.keys(), ("jpg", "txt"));
    let place = opened
        .place(SampleId {
            source: 0,
            shard: 0,
            row: 1,
        })
        .expect("there");
    assert_eq!(
        place,
        RowPlace {
            location: "/data/0.tar",
            shard_bytes: 10_000,
            etag: Some("e"),
            range: 2048..3072
        }
    );
    for (source, shard, row) in [(0, 0, 2), (0, 1, 0), (0, 2, 0), (1, 0, 0)] {
        assert_eq!(opened.place(SampleId { source, shard, row }), None);
    }
    let left: Vec<_> = std::fs::read_dir(folder.path()).expect("listed").collect();
    assert_eq!(left.len(), 1, "nothing half-written stays");
}

#[test]
fn index_hash_depends_on_rows_but_not_on_where_the_data_lies() {
    let hash = |change: &dyn Fn(&mut ShardEntry)| {
        let mut body = body();
        change(&mut body.sources[0].shards[0]);
        Index::from_body(&body).expect("made").index_hash()
    };
    let base = hash(&|_| {});
    assert_eq!(base, hash(&|s| s.location = "/other/0.tar".into()));
    assert_eq!(base, hash(&|s| s.modified_ms = 9));
    assert_ne!(base, hash(&|s| s.location = "/data/2.tar".into()));
    assert_ne!(base, hash(&|s| s.bytes += 1));
    assert_ne!(base, hash(&|s| s.starts[1] = 2560));
}

#[test]
fn index_with_any_byte_changed_or_cut_is_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("x");
    let made = Index::from_body(&body()).expect("made");
    let good = made.bytes().to_vec();
    let refused = |bytes: &[u8]| {
        std::fs::write(&path, bytes).expect("written");
        Index::open(&path).err()
    };
    assert!(refused(&good).is_none());
    for at in (0..good.len()).filter(|at| !(9..16).contains(at)) {
        let mut bad = good.clone();
        bad[at] ^= 0x10;
        assert!(refused(&bad).is_some(), "byte {at}");
    }
    for length in [0, 7, 31, 32, good.len() - 1] {
        assert!(refused(&good[..length]).is_some(), "{length} bytes");
    }
    let mut newer = good;
    newer[8] = INDEX_VERSION + 1;
    let text = refused(&newer).expect("refused").to_string();
    assert!(text.contains("version 2") && text.contains("argosy index"), "{text}");
}

#[test]
fn index_with_a_row_outside_its_shard_is_refused() {
    let mut body = body();
    body.sources[0].shards[0].lengths[1] = 9_000;
    let text = Index::from_body(&body).expect_err("refused").to_string();
    assert!(text.contains("outside"), "{text}");
}

#[test]
fn index_missing_is_not_found() {
    let error = Index::open(Path::new("/nowhere/at/all")).expect_err("missing");
    assert_eq!(error.exit(), Exit::NotFound);
}
