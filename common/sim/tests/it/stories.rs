//! What a fleet does when something happens to it, told line by line. Each story is played by the brains that ship; its text
//! is committed and reads as prose, and what it has to prove is asserted apart from the text.
//!
//! `ARGOSY_BLESS=1 cargo nextest run -p argosy-sim` writes texts and hashes anew; then read the difference.

use argosy_common::rules::Shipped;
use argosy_sim::{Config, Fault, Outcome, run, run_with};
use std::fmt::Write as _;
use std::path::PathBuf;

/// One story.
struct Story {
    name: &'static str,
    /// What it tells, as its first line.
    tells: &'static str,
    steps: u64,
    /// The last of its three workers comes so much later.
    late_ms: u64,
    faults: &'static [&'static str],
}

impl Story {
    fn play(&self) -> Outcome {
        let config = Config {
            steps: self.steps,
            workers_min: 2,
            last_comes_ms: self.late_ms,
            checkpoint_steps: 20,
            leases: true,
            orphan_max_ms: 60_000,
            grace_ms: 500,
            late_members: true,
            log: true,
            ..Config::default()
        };
        let faults: Vec<Fault> = self.faults.iter().filter_map(|f| f.parse().ok()).collect();
        assert_eq!(faults.len(), self.faults.len(), "{}: not all are faults", self.name);
        let outcome = run_with::<Shipped>(9, &config, &faults);
        assert_eq!(outcome.violation, None, "{}: {:#?}", self.name, outcome.log);
        let changed: u64 = outcome.effective.values().sum();
        assert_eq!(changed, faults.len() as u64, "{}: a fault changed nothing", self.name);
        let text = format!("{}\n\n{}", self.tells, told(&outcome.log));
        golden(&format!("stories/{}.txt", self.name), &text);
        outcome
    }
}

/// The lines, with applied steps drawn together: who applied how many between two other things that happened.
fn told(log: &[String]) -> String {
    let (mut text, mut applied) = (String::new(), Vec::new());
    for line in log {
        match line.split_once(" applied: ") {
            Some((at, what)) if !what.contains("passed over") => applied.push((at, what)),
            _ => {
                write_applied(&mut text, &mut applied);
                let _ = writeln!(text, "{line}");
            }
        }
    }
    write_applied(&mut text, &mut applied);
    text
}

fn write_applied(text: &mut String, applied: &mut Vec<(&str, &str)>) {
    let (Some((_, first)), Some((at, last))) = (applied.first(), applied.last()) else {
        return;
    };
    let mut who: Vec<&str> = applied.iter().filter_map(|(_, what)| what.split(' ').next()).collect();
    who.sort_unstable();
    who.dedup();
    let name = |what: &str| {
        what.split_once(' ')
            .map_or_else(String::new, |(_, name)| name.to_owned())
    };
    let (first, last) = (name(first), name(last));
    let steps = if first == last {
        last
    } else {
        format!("{first} .. {last}")
    };
    let _ = writeln!(text, "{at} applied: {steps} by {}", who.join(", "));
    applied.clear();
}

/// Compares with the committed file, or writes it.
fn golden(name: &str, text: &str) {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests").join(name);
    if std::env::var_os("ARGOSY_BLESS").is_some() {
        let written = std::fs::write(&path, text);
        assert!(written.is_ok(), "{}: {written:?}", path.display());
        return;
    }
    let kept = std::fs::read_to_string(&path).unwrap_or_default();
    let differs = kept.lines().zip(text.lines()).position(|(a, b)| a != b);
    assert!(
        kept == text,
        "{name} reads otherwise from line {:?} on. If that is meant: ARGOSY_BLESS=1 cargo nextest run -p argosy-sim\n{text}",
        differs.map(|at| at + 1)
    );
}

/// Asserts that lines with these words come in this order, each after the one before.
fn in_order(outcome: &Outcome, words: &[&str]) {
    let mut lines = outcome.log.iter();
    for word in words {
        assert!(
            lines.any(|line| line.contains(word)),
            "no {word:?} where it should come: {:#?}",
            outcome.log
        );
    }
}

fn count(outcome: &Outcome, word: &str) -> usize {
    outcome.log.iter().filter(|line| line.contains(word)).count()
}

/// Steps that were applied in one generation and again in a later one.
fn steps_done_again(outcome: &Outcome) -> usize {
    let mut names: Vec<(u64, u64)> = Vec::new();
    for line in &outcome.log {
        let Some((_, what)) = line.split_once(" applied: ") else {
            continue;
        };
        let mut numbers = what
            .split(' ')
            .filter_map(|word| word.trim_end_matches(',').parse().ok());
        let (Some(step), Some(generation)) = (numbers.next(), numbers.next()) else {
            panic!("no state in {line}");
        };
        names.push((step, generation));
    }
    names.sort_unstable();
    names.dedup();
    names.windows(2).filter(|pair| pair[0].0 == pair[1].0).count()
}

#[test]
fn story_join_moves_lanes_first_and_loses_no_step() {
    let story = Story {
        name: "join",
        tells: "A third worker comes to a run of two. Its lanes are primed before anybody stops; the two go on until then.",
        steps: 40,
        late_ms: 900,
        faults: &[],
    };
    let outcome = story.play();
    in_order(
        &outcome,
        &[
            "formed: gen 1",
            "joins: ",
            "closing: gen 1",
            "left: ",
            "formed: gen 2",
            "healed: ",
            "activated: gen 2",
            "ended: step 40",
        ],
    );
    assert_eq!(steps_done_again(&outcome), 0);
    assert_eq!(outcome.generations, 2);
}

#[test]
fn story_leave_hands_lanes_over_before_the_worker_ends() {
    let story = Story {
        name: "leave",
        tells: "A worker is asked to end (SIGTERM). It trains on until its lanes are primed elsewhere, then leaves at a boundary.",
        steps: 60,
        late_ms: 0,
        faults: &["member-drain@1500:0:500"],
    };
    let outcome = story.play();
    let until_it_is_left = ["member-drain", "drains: ", "prepares: ", " applied: ", "closing: "];
    for then in ["with code 0", "formed: gen 3"] {
        in_order(&outcome, &[&until_it_is_left[..], &[then, "ended: step 60"]].concat());
    }
    assert_eq!(steps_done_again(&outcome), 0);
    assert_eq!(count(&outcome, " lost: "), 0, "who leaves is not lost");
}

#[test]
fn story_flapping_member_costs_at_most_its_own_step() {
    let story = Story {
        name: "flap",
        tells: "A member dies; the one that comes for it dies as well, soon after it joined. The rest go on each time.",
        steps: 100,
        late_ms: 0,
        faults: &["member-flap@1500:1:300"],
    };
    let outcome = story.play();
    in_order(
        &outcome,
        &[
            "killed: ",
            "lost: ",
            "formed: ",
            "healed: ",
            "killed: ",
            "lost: ",
            "formed: ",
            "ended: step 100",
        ],
    );
    assert_eq!(count(&outcome, " killed: "), 2);
    assert!(steps_done_again(&outcome) <= 2);
}

#[test]
fn story_failover_keeps_the_members_training() {
    let story = Story {
        name: "failover",
        tells: "The leading coordinator dies. The members apply steps meanwhile; the standby takes over what they hold.",
        steps: 60,
        late_ms: 0,
        faults: &["coordinator-crash@1500:1:0"],
    };
    let outcome = story.play();
    in_order(
        &outcome,
        &[
            "leads: ",
            "falls: ",
            " applied: ",
            "leads: ",
            "connected: ",
            "ended: step 60",
        ],
    );
    assert_eq!(steps_done_again(&outcome), 0);
}

#[test]
fn story_slow_joiner_makes_nobody_wait() {
    let story = Story {
        name: "slow_joiner",
        tells: "A member dies, and the one that comes for it is slow. The others train on without it until it is ready.",
        steps: 120,
        late_ms: 0,
        faults: &["member-crash@1500:1:0", "trainer-stuck@2290:2:2500"],
    };
    let outcome = story.play();
    in_order(
        &outcome,
        &[
            "killed: ",
            "lost: ",
            "formed: gen 3",
            " applied: ",
            "prepares: ",
            " applied: ",
            "formed: gen 4",
            "ended: step 120",
        ],
    );
    assert!(steps_done_again(&outcome) <= 1);
    let at = |word: &str| outcome.log.iter().position(|line| line.contains(word)).expect(word);
    let meanwhile = &outcome.log[at("trainer-stuck")..at("w4 joins")];
    let applied = meanwhile.iter().filter(|line| line.contains(" applied: ")).count();
    assert!(
        applied >= 60,
        "the two others applied {applied} times while they had to wait for nobody"
    );
}

#[test]
fn story_heal_whose_source_dies_heals_from_another() {
    let story = Story {
        name: "heal_source_dies",
        tells: "A joiner takes the state over from a member that dies while it gives it. It keeps what it had, and heals from another.",
        steps: 100,
        late_ms: 0,
        faults: &["heal-source-dies@1500:1:0"],
    };
    let outcome = story.play();
    in_order(
        &outcome,
        &[
            "killed: ",
            "heals",
            "killed: ",
            "lost: ",
            "formed: ",
            "heals",
            "healed: ",
            "activated: ",
            "ended: step 100",
        ],
    );
    assert_eq!(steps_done_again(&outcome), 0, "no state was lost with the source");
}

#[test]
fn story_zombie_is_dismissed_and_changes_nothing() {
    let story = Story {
        name: "zombie",
        tells: "A member stands still until everybody has gone on without it, then wakes up and wants to go on where it was.",
        steps: 160,
        late_ms: 0,
        faults: &["member-hang@1500:1:5000"],
    };
    let outcome = story.play();
    in_order(
        &outcome,
        &[
            "member-hang",
            "lost: w2",
            "formed: gen 3",
            " applied: ",
            "left: p1 gen 2",
            "connected: p1",
            "heals",
            "healed: p1",
            "ended: step 160",
        ],
    );
    assert!(steps_done_again(&outcome) <= 1);
}

#[test]
fn story_numbers_that_are_not_finite_are_tried_elsewhere_and_the_member_is_drained() {
    let story = Story {
        name: "nan",
        tells: "A member's results are not finite. The step is tried again with the lanes elsewhere; there it is finite, so the member goes.",
        steps: 60,
        late_ms: 0,
        faults: &["nan-member@1500:0:0"],
    };
    let outcome = story.play();
    in_order(
        &outcome,
        &[
            "not finite",
            "once again elsewhere",
            "formed: ",
            "suspect hardware",
            "drains: ",
            "ended: step 60",
        ],
    );
    assert_eq!(count(&outcome, "passed over"), 0, "no rows were lost");
}

/// The same in debug and in release: `cargo test --release -p argosy-sim worlds_have_the_hashes` reads the same file.
#[test]
fn worlds_have_the_hashes_that_are_committed() {
    let mut text = String::from("# seed, events, hash of everything that happened\n");
    for seed in 0..40 {
        let outcome = run::<Shipped>(seed, &Config::for_seed(seed));
        let _ = writeln!(text, "{seed} {} {:016x}", outcome.events, outcome.hash);
    }
    golden("hashes.txt", &text);
}
