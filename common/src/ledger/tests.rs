use super::*;
use crate::ids::{Generation, Term};
use crate::rules::Shipped;
use proptest::prelude::*;

const PARTS: u32 = 3;
const WORKERS: u32 = 4;

fn name(step: u64) -> StateName {
    StateName {
        step,
        applied_gen: Generation(1),
    }
}

fn committed(steps: &[u64]) -> Vec<Committed> {
    let at = |(attempt, step): (u64, &u64)| Committed {
        attempt,
        key: format!("{attempt}/manifest.json"),
        name: name(*step),
    };
    (1..).zip(steps).map(at).collect()
}

#[test]
fn checkpoints_expire_but_the_newest_and_one_of_every_so_many_steps() {
    let list = committed(&[4, 9, 10, 14, 20, 25, 31, 33]);
    let expired = |last, every_steps| Keep { last, every_steps }.expired(&list);
    assert_eq!(expired(0, 0), [0; 0]);
    assert_eq!(expired(3, 0), [1, 2, 3, 4, 5]);
    // Kept for good: 10, 20 and 31.
    assert_eq!(expired(1, 10), [1, 2, 4, 6]);
    assert_eq!(expired(20, 10), [0; 0]);
}

/// What happens to the ledger. Attempts are meant relative to the last one, so that old and unknown ones turn up as well.
#[derive(Clone, Copy, Debug)]
enum Turn {
    Open,
    Uploaded { by: u32, part: u32, back: u64, other: bool },
    Lost { worker: u32 },
    Abandon { back: u64 },
    Sealed { written: bool, back: u64 },
    Reject { back: u64 },
}

fn turns() -> impl Strategy<Value = Vec<Turn>> {
    let back = prop_oneof![8 => Just(0u64), 1 => 0u64..3];
    let uploaded = (0..WORKERS, 0..PARTS + 1, back.clone(), 0u32..12);
    let uploaded = uploaded.prop_map(|(by, part, back, other)| Turn::Uploaded {
        by,
        part,
        back,
        other: other == 0,
    });
    let turn = prop_oneof![
        3 => Just(Turn::Open),
        12 => uploaded,
        2 => (0..WORKERS).prop_map(|worker| Turn::Lost { worker }),
        1 => back.clone().prop_map(|back| Turn::Abandon { back }),
        4 => (any::<bool>(), back.clone()).prop_map(|(written, back)| Turn::Sealed { written, back }),
        1 => back.prop_map(|back| Turn::Reject { back }),
    ];
    proptest::collection::vec(turn, 0..80)
}

/// The plain reference: everything that happened to each attempt, and answers read off that.
#[derive(Clone, Debug, Default)]
struct Plain {
    number: u64,
    /// Parts that are there, each with who brought it.
    stored: BTreeMap<u32, u32>,
    lost: Vec<u32>,
    over: bool,
    sealed: bool,
}

impl Plain {
    /// Part `i` is owed by worker `i`, and when that is lost by the next; whoever is gone is gone for good.
    fn holder(&self, part: u32) -> Option<u32> {
        if let Some(by) = self.stored.get(&part) {
            return Some(*by);
        }
        let owner = part % WORKERS;
        let buddy = (part + 1) % WORKERS;
        [owner, buddy].into_iter().find(|w| !self.lost.contains(w))
    }
}

fn settings() -> Settings {
    let policy = crate::conductor::Policy::default();
    Settings {
        run: "r".into(),
        term: Term(1),
        lanes: 1,
        total_steps: 100,
        workers_min: 1,
        workers_target: 1,
        workers_max: 1,
        spawns: false,
        failure_budget_ms: 1,
        worker_errors_max: 1,
        checkpoint_steps: 1,
        checkpoint_ms: 0,
        keep: Keep {
            last: 2,
            every_steps: 0,
        },
        parts_total: PARTS,
        seed: 0,
        policy,
    }
}

fn info(index: u32) -> PartInfo {
    PartInfo {
        index,
        key: format!("{index}"),
        bytes: 1,
        checksum: 0,
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn checkpoint_ledger_any_history_matches_the_plain_reference(history in turns()) {
        let mut ledger = Ledger::new(&settings(), &Restored::default());
        let mut attempts: Vec<Plain> = Vec::new();
        let mut heads: Vec<u64> = Vec::new();
        for turn in history {
            let last = attempts.len() as u64;
            let open = attempts.last().is_some_and(|a| !a.over);
            match turn {
                // The conductor asks first (INV16).
                Turn::Open if open => {}
                Turn::Open => {
                    let number = ledger.open::<Shipped>(last + 1);
                    prop_assert_eq!(number, last + 1, "numbers are used once");
                    let owners = (0..PARTS).map(|part| WorkerId(part % WORKERS)).collect();
                    let buddies = (0..PARTS).map(|part| Some(WorkerId((part + 1) % WORKERS))).collect();
                    ledger.assign(owners, buddies);
                    attempts.push(Plain { number, ..Plain::default() });
                }
                Turn::Uploaded { by, part, back, other } => {
                    let number = last.saturating_sub(back);
                    let at = number + u64::from(other);
                    let answer = ledger.part_uploaded::<Shipped>(WorkerId(by), number, info(part), name(at));
                    let mine = attempts.last_mut().filter(|a| a.number == number && !a.over);
                    let Some(attempt) = mine.filter(|a| part < PARTS && a.holder(part) == Some(by)) else {
                        prop_assert_eq!(answer, Ok(None), "nothing to it");
                        continue;
                    };
                    if other {
                        prop_assert!(answer.is_err(), "a part of another state");
                        if ledger.abandon(number) {
                            attempt.over = true;
                        }
                        continue;
                    }
                    attempt.stored.insert(part, by);
                    let all = attempt.stored.len() as u32 == PARTS && !attempt.sealed;
                    attempt.sealed |= all;
                    let parts = (0..PARTS).map(info).collect();
                    prop_assert_eq!(answer, Ok(all.then_some((name(number), parts))));
                }
                Turn::Lost { worker } => {
                    let loss = ledger.lost(WorkerId(worker));
                    let Some(attempt) = attempts.last_mut().filter(|a| !a.over && !a.sealed) else {
                        prop_assert_eq!(loss, Loss::None);
                        continue;
                    };
                    let owed: Vec<u32> = (0..PARTS).filter(|p| !attempt.stored.contains_key(p)).collect();
                    let before: Vec<Option<u32>> = owed.iter().map(|p| attempt.holder(*p)).collect();
                    attempt.lost.push(worker);
                    let moved = |(p, before): (&u32, &Option<u32>)| (*before == Some(worker)).then_some(*p);
                    let moved: Vec<u32> = owed.iter().zip(&before).filter_map(moved).collect();
                    if moved.iter().any(|p| attempt.holder(*p).is_none()) {
                        prop_assert_eq!(loss, Loss::Hopeless(attempt.number));
                        attempt.over = ledger.abandon(attempt.number);
                        prop_assert!(attempt.over);
                        continue;
                    }
                    let mut spare: BTreeMap<WorkerId, Vec<u32>> = BTreeMap::new();
                    for part in moved {
                        let buddy = attempt.holder(part).map(WorkerId).expect("looked at before");
                        spare.entry(buddy).or_default().push(part);
                    }
                    let expected = if spare.is_empty() { Loss::None } else { Loss::Spare(spare) };
                    prop_assert_eq!(loss, expected);
                }
                Turn::Abandon { back } => {
                    let number = last.saturating_sub(back);
                    let mine = attempts.last_mut().filter(|a| a.number == number && !a.over && !a.sealed);
                    prop_assert_eq!(ledger.abandon(number), mine.is_some());
                    if let Some(attempt) = mine {
                        attempt.over = true;
                    }
                }
                Turn::Sealed { written, back } => {
                    let number = last.saturating_sub(back);
                    let mine = attempts.last_mut().filter(|a| a.number == number && !a.over && a.sealed);
                    prop_assert_eq!(ledger.complete_name(number), mine.as_ref().map(|_| name(number)));
                    let Some(attempt) = mine else { continue };
                    if !written {
                        ledger.unseal(number);
                        prop_assert!(ledger.abandon(number));
                        attempt.over = true;
                        continue;
                    }
                    attempt.over = true;
                    heads.push(number);
                    let expired = ledger.committed(number, format!("{number}"), name(number));
                    let old = heads.len().saturating_sub(2);
                    prop_assert_eq!(expired, heads.drain(..old).collect::<Vec<_>>());
                }
                Turn::Reject { back } => {
                    let number = last.saturating_sub(back);
                    let is_head = heads.last() == Some(&number);
                    prop_assert_eq!(ledger.reject(&format!("{number}")), is_head.then_some(number));
                    heads.pop_if(|_| is_head);
                }
            }
            let head = heads.last().map(|n| (format!("{n}"), name(*n)));
            prop_assert_eq!(ledger.head().map(|h| (h.key.clone(), h.name)), head);
            prop_assert_eq!(ledger.is_open(), attempts.last().is_some_and(|a| !a.over));
            let sealed = attempts.last().filter(|a| !a.over && a.sealed).map(|a| name(a.number));
            prop_assert_eq!(ledger.sealed_name(), sealed);
        }
    }
}
