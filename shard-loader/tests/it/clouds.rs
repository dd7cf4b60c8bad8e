//! The loader over Google's and Azure's storage: what holds for S3 holds there.

use crate::stores::{BUCKET, build, config, planted, put, run, store_at};
use crate::support::{good_members, tar};
use argosy_shard_loader::{BuildConfig, DataError, RetryPolicy, Store};
use argosy_test_stores::{Fault, Faults, Kind, Op, Rule, StoreDouble, Storm};
use std::process::Command;
use std::sync::Arc;

const CLOUDS: [(Kind, &str); 2] = [(Kind::Gcs, "gs://bucket"), (Kind::Azure, "az://bucket")];

fn start(kind: Kind) -> StoreDouble {
    StoreDouble::start_as(kind, Faults::default(), 2).expect("a port")
}

#[test]
fn shards_on_google_and_azure_train_every_good_key_once_through_a_storm() {
    let (shards, _) = planted();
    for (kind, root) in CLOUDS {
        let double = start(kind);
        put(&double, &shards);
        let store = store_at(root, &double);
        let prefix = format!("{root}/set/");
        let (index, report) = build(&store, &prefix, &config()).expect("indexed");
        assert_eq!((report.missing, report.damaged.len()), (2, 2), "{kind:?}: {report:?}");
        let index = Arc::new(index);
        let (calm, masked) = run(&index, &store);
        assert_eq!((calm.len(), masked), (29, 4), "{kind:?}");
        assert!(calm.values().all(|n| *n == 1), "{kind:?}: every good key once");
        println!("SEED cloud_storm 7");
        double.faults().storm(Storm {
            seed: 7,
            per_mille: 400,
        });
        assert!(run(&index, &store) == (calm, masked), "{kind:?}");
        let fired: u64 = double.faults().fired().values().sum();
        assert!(fired > 3 && store.stats().retries > 3, "{kind:?}: {fired}");
    }
}

#[test]
fn index_of_google_and_azure_made_again_knows_what_has_not_changed() {
    for (kind, root) in CLOUDS {
        let double = start(kind);
        for i in 0..3 {
            double.insert(BUCKET, &format!("set/{i}.tar"), tar(&good_members(i, 3)));
        }
        let store = store_at(root, &double);
        let prefix = format!("{root}/set/");
        let (index, _) = build(&store, &prefix, &config()).expect("indexed");
        double.insert(BUCKET, "set/1.tar", tar(&good_members(1, 4)));
        let again = BuildConfig {
            known: Some(Arc::new(index)),
            ..config()
        };
        let (_, report) = build(&store, &prefix, &again).expect("indexed again");
        assert_eq!((report.known, report.rows), (2, 10), "{kind:?}");
    }
}

#[test]
fn google_and_azure_that_deny_are_asked_twice_and_named() {
    for (kind, root) in CLOUDS {
        let double = start(kind);
        double.insert(BUCKET, "set/0.tar", tar(&good_members(0, 3)));
        double.faults().add(Rule::new(Op::Get, Fault::Status(403)).forever());
        let shard = format!("{root}/set/{{0..0}}.tar");
        let error = build(&store_at(root, &double), &shard, &config()).expect_err("denied");
        assert!(matches!(error, DataError::Denied { .. }), "{kind:?}: {error}");
        assert_eq!(double.faults().count(Op::Get), 2, "{kind:?}");
        assert!(!error.to_string().contains("canary-secret"), "{error}");
    }
}

/// Set for the process that has its store from its environment alone: the prefix it shall index.
const CHILD: &str = "ARGOSY_TEST_CLOUD";

#[test]
fn credentials_and_endpoint_of_every_kind_come_from_the_environment() {
    if let Ok(prefix) = std::env::var(CHILD) {
        let store = Store::new(RetryPolicy::default()).expect("a store");
        let (_, report) = build(&store, &prefix, &config()).expect("indexed");
        println!("ROWS {}", report.rows);
        return;
    }
    for (kind, root) in [(Kind::S3, "s3://bucket"), CLOUDS[0], CLOUDS[1]] {
        let double = start(kind);
        for i in 0..3 {
            double.insert(BUCKET, &format!("set/{i}.tar"), tar(&good_members(i, 4)));
        }
        let name = "clouds::credentials_and_endpoint_of_every_kind_come_from_the_environment";
        let out = Command::new(std::env::current_exe().expect("this test"))
            .args(["--exact", name, "--nocapture"])
            .envs(double.environment())
            .env(CHILD, format!("{root}/set/"))
            .output()
            .expect("started");
        let text = String::from_utf8_lossy(&out.stdout);
        assert!(
            text.contains("ROWS 12"),
            "{kind:?}: {text}{}",
            String::from_utf8_lossy(&out.stderr)
        );
    }
}
