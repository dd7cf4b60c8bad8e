use super::*;
use argosy_common::events::MANIFEST_VERSION;
use argosy_common::ids::{Generation, StateName};
use argosy_common::steplog::{MaskReason, MaskedRow};
use argosy_test_stores::{Fault, Faults, Moto, Op, Rule, S3Double};
use object_store::memory::InMemory;

fn state() -> State {
    State {
        store: Arc::new(InMemory::new()),
        last: None,
    }
}

impl State {
    async fn put(&self, key: &str, bytes: &[u8]) {
        let payload = PutPayload::from(bytes.to_vec());
        self.store.put(&Key::from(key), payload).await.unwrap();
    }

    async fn has(&self, key: &str) -> bool {
        self.store.head(&Key::from(key)).await.is_ok()
    }

    /// Stores a part of the state and the log of `steps`; the manifest that names both.
    async fn attempt(&self, attempt: u64, steps: std::ops::RangeInclusive<u64>, parent: Option<&str>) -> Manifest {
        let log: String = steps.clone().map(line).collect();
        let mut parts = Vec::new();
        for (index, name, bytes) in [(0, "part-00000.safetensors", "abc"), (1, LOG_NAME, log.as_str())] {
            let key = format!("{attempt}/{name}");
            self.put(&key, bytes.as_bytes()).await;
            parts.push(PartInfo {
                index,
                key,
                bytes: bytes.len() as u64,
                checksum: digest64(bytes.as_bytes()),
            });
        }
        Manifest {
            version: MANIFEST_VERSION,
            argosy: String::new(),
            run: "r".into(),
            attempt,
            name: name(*steps.end()),
            positions_seen: 0,
            seed: 0,
            config_hash: 0,
            index_hash: 0,
            parent: parent.map(str::to_owned),
            parts,
            history: Vec::new(),
            ledger: PositionCounts::default(),
            job: serde_json::Value::Null,
            model: serde_json::json!({}),
        }
    }
}

fn name(step: u64) -> StateName {
    StateName {
        step,
        applied_gen: Generation(1),
    }
}

/// Seven trained rows and one masked; of step 3 all are passed over.
fn line(step: u64) -> String {
    let record = StepRecord::Applied {
        name: name(step),
        plan_hash: 0,
        lanes: vec![0],
        valid: 7,
        masked: vec![MaskedRow {
            lane: 0,
            row: 1,
            reason: MaskReason::Format,
        }],
        skipped: (step == 3).then(|| "why".into()),
        loss: None,
    };
    serde_json::to_string(&record).unwrap() + "\n"
}

#[tokio::test]
async fn manifest_written_again_is_the_same_one_and_never_another() {
    let mut state = state();
    let manifest = state.attempt(4, 1..=2, None).await;
    assert_eq!(state.write(manifest.clone()).await.unwrap(), "4/manifest.json");
    assert_eq!(state.write(manifest.clone()).await.unwrap(), "4/manifest.json");
    let other = Manifest { seed: 2, ..manifest };
    let refused = state.write(other).await.unwrap_err();
    assert!(refused.contains("exists with other content"), "{refused}");
}

/// Twin in the simulator: `two-leaders`.
#[tokio::test]
async fn leaders_who_race_for_one_manifest_in_a_bucket_leave_the_first_ones_and_both_know_which() {
    let double = S3Double::start(Faults::default()).unwrap();
    race(8, || double.client("bucket").unwrap()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs moto: the long tier"]
async fn leaders_who_race_for_one_manifest_in_motos_bucket_leave_the_first_ones_and_both_know_which() {
    let Some(moto) = Moto::start(&["bucket"]).unwrap() else {
        println!("SKIP {}", Moto::SKIP);
        return;
    };
    let client = || moto.client("bucket").unwrap();
    race(50, client).await;
    let mut state = State {
        store: client(),
        last: None,
    };
    // What is deleted is gone, what later manifests refer to stays.
    let parent = "50/manifest.json";
    let next = state.attempt(51, 3..=4, Some(parent)).await;
    assert_eq!(state.write(next).await.unwrap(), "51/manifest.json");
    collect(state.store.as_ref(), 50, true).await.unwrap();
    assert!(state.has("50/steps.jsonl").await && !state.has(parent).await);
    assert!(state.has("5/manifest.json").await && state.has("51/manifest.json").await);
}

async fn race(rounds: u64, client: impl Fn() -> Arc<dyn ObjectStore>) {
    for round in 1..=rounds {
        let leaders = [1, 2].map(|_| State {
            store: client(),
            last: None,
        });
        let [mut one, mut other] = leaders;
        // A deposed leader and its successor: the same parts, another head before it.
        let manifest = one.attempt(round, 1..=2, None).await;
        let theirs = Manifest {
            seed: 2,
            ..manifest.clone()
        };
        let (ours, their_end) = tokio::join!(one.write(manifest.clone()), other.write(theirs.clone()));
        let stored = read(one.store.as_ref(), &format!("{round}/manifest.json"))
            .await
            .unwrap();
        let stored: Manifest = serde_json::from_slice(&stored).unwrap();
        let (winner, loser) = match stored.seed {
            2 => (their_end, ours),
            _ => (ours, their_end),
        };
        winner.unwrap();
        let refused = loser.unwrap_err();
        assert!(refused.contains("exists with other content"), "{refused}");
    }
}

/// Twin in the simulator: `object-lost-reply`.
#[tokio::test]
async fn manifest_whose_put_was_carried_out_without_a_reply_is_read_back_and_counts() {
    let faults = Faults::default();
    let double = S3Double::start(faults.clone()).unwrap();
    let mut state = State {
        store: double.client("bucket").unwrap(),
        last: None,
    };
    let manifest = state.attempt(1, 1..=2, None).await;
    faults.add(Rule::new(Op::Put, Fault::LostReply).key("manifest.json"));
    assert_eq!(state.write(manifest).await.unwrap(), "1/manifest.json");
    let torn = state.attempt(2, 3..=3, Some("1/manifest.json")).await;
    faults.add(Rule::new(Op::Put, Fault::Torn(20)).key("2/manifest.json"));
    let refused = state.write(torn).await.unwrap_err();
    assert!(
        refused.contains("exists with other content"),
        "half a manifest is none: {refused}"
    );
    assert_eq!(faults.fired().values().sum::<u64>(), 2, "{:?}", faults.fired());
}

#[tokio::test]
async fn manifest_of_a_part_that_is_missing_or_short_is_refused() {
    let mut state = state();
    let manifest = state.attempt(1, 1..=2, None).await;
    state.put("1/part-00000.safetensors", b"ab").await;
    let short = state.write(manifest.clone()).await.unwrap_err();
    assert!(short.contains("2 bytes"), "{short}");
    let key = Key::from("1/part-00000.safetensors");
    state.store.delete(&key).await.unwrap();
    let missing = state.write(manifest).await.unwrap_err();
    assert!(missing.contains("part 0 is not stored"), "{missing}");
    assert!(!state.has("1/manifest.json").await);
}

#[tokio::test]
async fn manifest_carries_the_history_of_its_lineage_and_its_counts() {
    let mut state = state();
    let first = state.attempt(1, 1..=2, None).await;
    let parent = state.write(first).await.unwrap();
    for restarted in [false, true] {
        // The parent is read back by a coordinator that did not write it.
        state.last = state.last.take().filter(|_| !restarted);
        let attempt = 2 + u64::from(restarted);
        let manifest = state.attempt(attempt, 3..=5, Some(&parent)).await;
        state.write(manifest).await.unwrap();
        let json = read(state.store.as_ref(), &format!("{attempt}/manifest.json"))
            .await
            .unwrap();
        let written: Manifest = serde_json::from_slice(&json).unwrap();
        let spans: Vec<_> = written
            .history
            .iter()
            .map(|l| (l.attempt, l.from_step, l.to_step))
            .collect();
        assert_eq!(spans, [(1, 0, 2), (attempt, 2, 5)]);
        assert_eq!((written.ledger.trained, written.ledger.skipped["why"]), (4 * 7, 7));
        assert_eq!(written.ledger.masked[&MaskReason::Format], 5);
    }
    let gap = state.attempt(5, 4..=5, Some(&parent)).await;
    let refused = state.write(gap).await.unwrap_err();
    assert!(refused.contains("the steps from 2 to 5"), "{refused}");
}

#[tokio::test]
async fn collected_attempt_takes_nothing_of_others_with_it_nor_a_log_that_is_referred_to() {
    let state = state();
    for attempt in [1, 11, 2] {
        state.attempt(attempt, 1..=1, None).await;
    }
    let store = state.store.as_ref();
    collect(store, 1, false).await.unwrap();
    collect(store, 2, true).await.unwrap();
    collect(store, 7, false).await.unwrap();
    assert!(!state.has("1/steps.jsonl").await && !state.has("1/part-00000.safetensors").await);
    assert!(state.has("2/steps.jsonl").await && !state.has("2/part-00000.safetensors").await);
    assert!(state.has("11/steps.jsonl").await && state.has("11/part-00000.safetensors").await);
}
