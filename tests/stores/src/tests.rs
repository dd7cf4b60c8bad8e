//! All stores behave as stores, and as planned otherwise.

use crate::{Fault, Faults, FaultyStore, Kind, Op, Rule, S3Double, StoreDouble};
use bytes::Bytes;
use object_store::aws::AmazonS3Builder;
use object_store::azure::MicrosoftAzureBuilder;
use object_store::gcp::GoogleCloudStorageBuilder;
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{Error, GetOptions, ObjectStore, ObjectStoreExt, PutMode, PutOptions};
use std::collections::BTreeMap;
use std::sync::Arc;

async fn all(test: impl AsyncFn(Arc<dyn ObjectStore>, Faults)) {
    let faults = Faults::default();
    test(
        Arc::new(FaultyStore::with_pages(Arc::new(InMemory::new()), faults.clone(), 2)),
        faults,
    )
    .await;
    for kind in [Kind::S3, Kind::Gcs] {
        let double = StoreDouble::start_as(kind, Faults::default(), 2).expect("a port");
        let client = double.client("bucket").expect("a client");
        test(client, double.faults().clone()).await;
    }
}

#[tokio::test]
async fn azure_without_faults_reads_writes_and_lists() {
    let double = StoreDouble::start_as(Kind::Azure, Faults::default(), 2).expect("a port");
    let store = double.client("container").expect("a client");
    for i in 0..5u8 {
        let key = Path::from(format!("d/{i} & co.tar"));
        store.put(&key, vec![i; 10].into()).await.expect("written");
    }
    assert_eq!(keys(&store).await.len(), 5, "over several pages");
    let key = Path::from("d/3 & co.tar");
    assert_eq!(store.get_range(&key, 2..5).await.expect("read"), vec![3; 3]);
    let create = PutOptions::from(PutMode::Create);
    let again = store.put_opts(&key, "two".into(), create).await;
    assert!(matches!(again, Err(Error::AlreadyExists { .. })), "{again:?}");
    let etag = store.head(&key).await.expect("there").e_tag;
    store.put(&key, "three".into()).await.expect("overwritten");
    let pinned = GetOptions {
        if_match: etag,
        ..GetOptions::default()
    };
    assert!(matches!(
        store.get_opts(&key, pinned).await,
        Err(Error::Precondition { .. })
    ));
    let mut upload = store.put_multipart(&"parts".into()).await.expect("begun");
    upload.put_part("one ".into()).await.expect("a part");
    upload.put_part("two".into()).await.expect("a part");
    upload.complete().await.expect("complete");
    assert_eq!(double.content("container", "parts"), Some("one two".into()));
    assert!(matches!(store.head(&"none".into()).await, Err(Error::NotFound { .. })));
    double.faults().add(Rule::new(Op::Get, Fault::CutAfter(1)));
    let read = async || store.get(&key).await?.bytes().await;
    assert!(read().await.is_err());
    assert_eq!(read().await.expect("whole again"), "three");
}

#[tokio::test]
async fn doubles_of_google_and_azure_know_nobody_without_credentials() {
    let google = StoreDouble::start_as(Kind::Gcs, Faults::default(), 2).expect("a port");
    let azure = StoreDouble::start_as(Kind::Azure, Faults::default(), 2).expect("a port");
    for double in [&google, &azure] {
        double.insert("bucket", "k", "v");
        let owner = double.client("bucket").expect("a client");
        assert_eq!(owner.head(&"k".into()).await.expect("there").size, 1);
        assert!(
            double
                .environment()
                .iter()
                .any(|(_, value)| *value == double.endpoint())
        );
    }
    let google = GoogleCloudStorageBuilder::new()
        .with_base_url(&google.endpoint())
        .with_bucket_name("bucket")
        .with_skip_signature(true)
        .build()
        .expect("a client");
    let azure = MicrosoftAzureBuilder::new()
        .with_account("testaccount")
        .with_endpoint(azure.endpoint())
        .with_allow_http(true)
        .with_container_name("bucket")
        .with_skip_signature(true)
        .build()
        .expect("a client");
    let strangers: [&dyn ObjectStore; 2] = [&google, &azure];
    for store in strangers {
        let refused = store.head(&"k".into()).await;
        assert!(matches!(refused, Err(Error::PermissionDenied { .. })), "{refused:?}");
    }
}

async fn keys(store: &dyn ObjectStore) -> Vec<String> {
    use futures_util::TryStreamExt;
    let listed: Vec<_> = store.list(Some(&"d".into())).try_collect().await.expect("listed");
    listed.into_iter().map(|m| m.location.to_string()).collect()
}

#[tokio::test]
async fn list_behind_a_key_comes_in_pages_that_fail_one_by_one() {
    use futures_util::TryStreamExt;
    all(async |store, faults| {
        for i in 0..7 {
            store.put(&format!("d/{i}").into(), "x".into()).await.expect("written");
        }
        faults.add(Rule::new(Op::List, Fault::Status(503)).after(2));
        let (prefix, behind) = (Path::from("d"), Path::from("d/1"));
        let mut listed = store.list_with_offset(Some(&prefix), &behind);
        let mut keys = Vec::new();
        while let Ok(Some(meta)) = listed.try_next().await {
            keys.push(meta.location.to_string());
        }
        assert_eq!(keys, ["d/2", "d/3", "d/4", "d/5"], "two pages, and the third fails");
        assert_eq!(faults.count(Op::List), 3);
    })
    .await;
}

#[tokio::test]
async fn etag_that_is_weak_matches_no_condition() {
    let double = S3Double::start(Faults::default()).expect("a port");
    double.insert("bucket", "k", "x");
    double.weaken("bucket", "k");
    let client = double.client("bucket").expect("a client");
    let etag = client.head(&"k".into()).await.expect("there").e_tag;
    assert!(etag.as_ref().is_some_and(|etag| etag.starts_with("W/")), "{etag:?}");
    let pinned = GetOptions {
        if_match: etag,
        ..GetOptions::default()
    };
    let refused = client.get_opts(&"k".into(), pinned).await;
    assert!(matches!(refused, Err(Error::Precondition { .. })), "{refused:?}");
}

#[tokio::test]
async fn stores_without_faults_read_write_list_and_delete() {
    all(async |store, _| {
        for i in 0..5 {
            let key = Path::from(format!("d/{i} & co.tar"));
            store.put(&key, vec![i; 10].into()).await.expect("written");
        }
        assert_eq!(keys(&store).await.len(), 5, "over several pages");
        let key = Path::from("d/3 & co.tar");
        let part = store.get_range(&key, 2..5).await.expect("read");
        assert_eq!(part, Bytes::from(vec![3; 3]));
        assert_eq!(store.head(&key).await.expect("there").size, 10);
        store.copy(&key, &"d/copy".into()).await.expect("copied");
        store.delete(&key).await.expect("deleted");
        assert!(matches!(store.head(&key).await, Err(Error::NotFound { .. })));
        assert_eq!(keys(&store).await.len(), 5);
        assert_eq!(store.get(&"d/copy".into()).await.expect("there").range, 0..10);
    })
    .await;
}

#[tokio::test]
async fn conditions_that_do_not_hold_are_refused() {
    all(async |store, _| {
        let key = Path::from("head");
        let create = PutOptions::from(PutMode::Create);
        let first = store
            .put_opts(&key, "one".into(), create.clone())
            .await
            .expect("created");
        assert!(matches!(
            store.put_opts(&key, "two".into(), create).await,
            Err(Error::AlreadyExists { .. })
        ));
        let pinned = |etag: Option<String>| GetOptions {
            if_match: etag,
            ..GetOptions::default()
        };
        store
            .get_opts(&key, pinned(first.e_tag.clone()))
            .await
            .expect("the same");
        store.put(&key, "three".into()).await.expect("overwritten");
        assert!(matches!(
            store.get_opts(&key, pinned(first.e_tag)).await,
            Err(Error::Precondition { .. })
        ));
    })
    .await;
}

#[tokio::test]
async fn upload_in_parts_is_one_object() {
    all(async |store, _| {
        let key = Path::from("parts");
        let mut upload = store.put_multipart(&key).await.expect("begun");
        upload.put_part("one ".into()).await.expect("a part");
        upload.put_part("two".into()).await.expect("a part");
        assert!(matches!(store.head(&key).await, Err(Error::NotFound { .. })));
        upload.complete().await.expect("complete");
        let whole = store.get(&key).await.expect("there").bytes().await.expect("read");
        assert_eq!(whole, "one two");
    })
    .await;
}

#[tokio::test]
async fn reads_fail_as_planned_and_are_logged() {
    all(async |store, faults| {
        let key = Path::from("0.tar");
        store.put(&key, vec![7; 1000].into()).await.expect("written");
        for fault in [
            Fault::Status(503),
            Fault::CutAfter(300),
            Fault::LostReply,
            Fault::Flipped(4),
            Fault::WrongContent("<html>".into()),
        ] {
            faults.add(Rule::new(Op::Get, fault).key("0.tar"));
        }
        let read = async || store.get(&key).await?.bytes().await;
        for name in ["status", "cut", "lost reply"] {
            assert!(read().await.is_err(), "{name}");
        }
        let bent = read().await.expect("bent");
        assert_eq!((bent.len(), bent[4], bent[5]), (1000, 6, 7));
        match read().await {
            Ok(page) => assert_eq!(page, "<html>"),
            // Google's client misses what the store would have said.
            Err(error) => assert!(format!("{error:?}").contains("MissingEtag"), "{error:?}"),
        }
        assert_eq!(read().await.expect("good again"), vec![7; 1000]);
        let fired = ["cut", "flipped", "lost_reply", "status", "wrong_content"];
        assert_eq!(faults.fired(), fired.map(|name| (name, 1)).into());
        assert_eq!(faults.count(Op::Get), 6);
    })
    .await;
}

#[tokio::test]
async fn lost_and_torn_writes_leave_what_they_say() {
    all(async |store, faults| {
        let key = Path::from("x");
        let content = async || store.get(&key).await.expect("there").bytes().await.expect("read");
        faults.add(Rule::new(Op::Put, Fault::LostReply));
        assert!(store.put(&key, "whole".into()).await.is_err());
        assert_eq!(content().await, "whole", "written, though nobody heard of it");
        faults.add(Rule::new(Op::Put, Fault::Torn(2)));
        assert!(store.put(&key, "later".into()).await.is_err());
        assert_eq!(content().await, "la");
        faults.add(Rule::new(Op::Get, Fault::Changed("other".into())));
        assert_eq!(content().await, "other");
    })
    .await;
}

#[tokio::test]
async fn list_may_repeat_itself_and_run_backwards() {
    all(async |store, faults| {
        for name in ["d/a", "d/b"] {
            store.put(&name.into(), "x".into()).await.expect("written");
        }
        faults.add(Rule::new(Op::List, Fault::ListedTwice));
        assert_eq!(keys(&store).await, ["d/a", "d/b", "d/b", "d/a"]);
        faults.add(Rule::new(Op::List, Fault::ListedReversed));
        assert_eq!(keys(&store).await, ["d/b", "d/a"]);
    })
    .await;
}

#[tokio::test]
async fn request_that_hangs_goes_on_when_released() {
    all(async |store, faults| {
        let key = Path::from("x");
        store.put(&key, "whole".into()).await.expect("written");
        for fault in [Fault::Hang, Fault::StallAfter(2)] {
            let before = faults.count(Op::Get);
            faults.add(Rule::new(Op::Get, fault));
            let (read, ()) = tokio::join!(async { store.get(&key).await?.bytes().await }, async {
                faults
                    .until(|calls| calls.iter().filter(|c| c.op == Op::Get).count() > before)
                    .await;
                faults.release();
            });
            assert_eq!(read.expect("goes on"), "whole");
        }
    })
    .await;
}

#[tokio::test]
async fn client_without_the_key_may_read_but_not_write() {
    let double = S3Double::start(Faults::default()).expect("a port");
    double.insert("b", "k", "v");
    double.client("b").expect("the owner's client");
    let stranger = AmazonS3Builder::new()
        .with_endpoint(double.endpoint())
        .with_allow_http(true)
        .with_bucket_name("b")
        .with_skip_signature(true)
        .build()
        .expect("a client");
    assert_eq!(stranger.head(&"k".into()).await.expect("there").size, 1);
    assert!(matches!(
        stranger.put(&"k".into(), "w".into()).await,
        Err(Error::PermissionDenied { .. })
    ));
    assert_eq!(
        (double.keys("b"), double.content("b", "k")),
        (vec!["k".to_owned()], Some("v".into()))
    );
    assert_eq!(double.open_uploads(), 0);
    let environment: BTreeMap<_, _> = double.environment().into_iter().collect();
    assert!(environment["AWS_ENDPOINT_URL"].starts_with("http://127.0.0.1:"));
}
