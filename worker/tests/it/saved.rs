//! Checkpoints of fleets, with a test in the place of the coordinator that orders and commits them.

use crate::fleet::Worker;
use argosy_common::events::{FromWorker, MANIFEST_VERSION, Manifest, PartInfo, PositionCounts};
use argosy_common::follower::{Event, TrainerOrder};
use argosy_common::ids::StateName;
use argosy_worker::engine::Engine;

/// An order to upload `parts` of a small model's state, which has two: itself and the log.
pub(crate) fn checkpoint(attempt: u64, at_step: u64, parts: Vec<u32>) -> TrainerOrder {
    TrainerOrder::Checkpoint {
        attempt,
        at_step,
        parts,
        spare: Vec::new(),
        parts_total: 2,
        since: 0,
    }
}

/// The next `count` parts that were uploaded, by index.
pub(crate) fn uploads<E: Engine + 'static>(worker: &mut Worker<E>, count: usize) -> Vec<(PartInfo, StateName)> {
    let mut parts: Vec<_> = std::iter::repeat_with(|| match worker.event() {
        Event::Passed(FromWorker::PartUploaded { part, name, .. }) => (part, name),
        other => panic!("{other:?}"),
    })
    .take(count)
    .collect();
    parts.sort_by_key(|(part, _)| part.index);
    parts
}

/// The two parts of a checkpoint in order, and their state.
pub(crate) fn uploaded<E: Engine + 'static>(worker: &mut Worker<E>) -> (Vec<PartInfo>, StateName) {
    let parts = uploads(worker, 2);
    let name = parts[0].1;
    (parts.into_iter().map(|(part, _)| part).collect(), name)
}

/// Writes the first attempt's manifest and gives its key; `model` is the configuration that it holds.
pub(crate) fn write_manifest(
    run_dir: &std::path::Path,
    name: StateName,
    parts: Vec<PartInfo>,
    model: serde_json::Value,
) -> String {
    let manifest = Manifest {
        version: MANIFEST_VERSION,
        argosy: String::new(),
        run: "test".into(),
        attempt: 1,
        name,
        positions_seen: 0,
        seed: 11,
        config_hash: 0,
        index_hash: 0,
        parent: None,
        parts,
        history: Vec::new(),
        ledger: PositionCounts::default(),
        job: serde_json::Value::Null,
        model,
    };
    let key = "1/manifest.json".to_owned();
    std::fs::write(
        run_dir.join("checkpoints").join(&key),
        serde_json::to_vec(&manifest).unwrap(),
    )
    .unwrap();
    key
}
