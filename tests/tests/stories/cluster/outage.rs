//! A cluster without its etcd for a minute, and one whose machines' clocks are set: members train on.

use super::machines::{self, until};
use super::{CADENCE, Cluster};
use crate::clocks::Clock;
use crate::harness::{audit_in, my_turn};
use crate::leave::{undisturbed, weights_in};
use argosy_common::events::{RunEvent, StampedEvent};
use argosy_common::exit::Exit;
use nix::sys::signal::Signal;

/// So long etcd is away.
const AWAY_MS: u64 = 60_000;

/// Steps that a coordinator heard of, with when it did, in milliseconds.
fn steps(cluster: &Cluster, head: usize) -> Vec<(u64, u64)> {
    let stamped = machines::stamped(&cluster.stage.path(&format!("head-{head}")));
    let step = |e: StampedEvent| match e.event {
        RunEvent::StepDone { report, .. } => Some((e.at_ms, report.name.step)),
        _ => None,
    };
    stamped.into_iter().filter_map(step).collect()
}

/// Twin in the simulator: `store-down`.
#[test]
#[ignore = "etcd is away for a minute: the long tier"]
fn story_cluster_without_etcd_for_a_minute_makes_every_step_and_goes_on_when_it_is_back() {
    let _turn = my_turn();
    // Nothing has to be written meanwhile; the run is ended by hand.
    let cluster = Cluster::prepare_for(100_000, "every_samples = 0\n");
    let mut etcd = cluster.etcd();
    let mut head = cluster.head(1);
    let (mut one, mut two) = (cluster.worker("gpu-1"), cluster.worker("gpu-2"));
    cluster.until_step(1, 20, &mut [&mut etcd, &mut head, &mut one, &mut two]);
    etcd.signal(Signal::SIGKILL);
    etcd.wait();
    let (away, _) = *steps(&cluster, 1).last().expect("steps");
    until("a minute of steps", &mut [&mut head, &mut one, &mut two], || {
        steps(&cluster, 1).last().is_some_and(|(at, _)| *at >= away + AWAY_MS)
    });
    let made = steps(&cluster, 1);
    let mut etcd = cluster.etcd();
    let longest = made.windows(2).map(|w| w[1].0 - w[0].0).max().expect("steps");
    println!("{} steps, the longest pause {longest} ms", made.len());
    assert!(longest < 5_000, "a step waited {longest} ms");
    assert!(made.windows(2).all(|w| w[1].1 == w[0].1 + 1), "every step once");

    // A stop needs a checkpoint, and that the store.
    head.signal(Signal::SIGINT);
    assert_eq!(head.wait(), i32::from(Exit::Interrupted.code()), "{}", head.said());
    for worker in [&mut one, &mut two] {
        assert_eq!(worker.wait(), 0, "{}", worker.said());
    }
    assert_eq!(etcd.has_ended(), None, "{}", etcd.said());
    let events = cluster.events(1);
    let formed = events
        .iter()
        .filter(|e| matches!(e, RunEvent::GenerationFormed { .. }))
        .count();
    let lost = events.iter().any(|e| matches!(e, RunEvent::WorkerLost { .. }));
    assert!(formed <= 2 && !lost, "{formed} generations\n{}", head.said());
    audit_in(&cluster.double.environment(), &cluster.stage.path("head-1"));
}

#[test]
#[ignore = "a second cluster with its own clocks: the long tier"]
fn story_cluster_whose_machines_clocks_jump_an_hour_ends_with_the_undisturbed_bits() {
    let _turn = my_turn();
    let mut cluster = Cluster::prepare_for(super::EPOCHS, CADENCE);
    let dir = cluster.stage.dir.path().to_owned();
    let mut etcd = cluster.etcd();
    let mut clocked = |name: &str| {
        let clock = Clock::new(&dir, name);
        cluster.environment = clock.environment();
        let started = match name {
            "head-1" => cluster.head(1),
            "head-2" => cluster.head(2),
            worker => cluster.worker(worker),
        };
        (clock, started)
    };
    let (head_clock, mut first) = clocked("head-1");
    let (one_clock, mut one) = clocked("gpu-1");
    let (two_clock, mut two) = clocked("gpu-2");
    let (other_clock, mut second) = clocked("head-2");
    cluster.until_step(1, 20, &mut [&mut etcd, &mut first, &mut second, &mut one, &mut two]);
    for (clock, off) in [
        (&head_clock, 3_600),
        (&one_clock, -3_600),
        (&two_clock, 3_600),
        (&other_clock, -3_600),
    ] {
        clock.set(off);
    }
    let at = cluster.last_step(1);
    cluster.until_step(
        1,
        at + 100,
        &mut [&mut etcd, &mut first, &mut second, &mut one, &mut two],
    );
    // Sessions anew, between clocks that are two hours apart.
    first.signal(Signal::SIGKILL);
    let at = cluster.last_step(1);
    cluster.until_step(2, at + 50, &mut [&mut etcd, &mut second, &mut one, &mut two]);
    for clock in [&one_clock, &two_clock, &other_clock] {
        clock.set(0);
    }
    for ended in [&mut second, &mut one, &mut two] {
        assert_eq!(ended.wait(), 0, "{}", ended.said());
    }
    let lost = |e: &RunEvent| matches!(e, RunEvent::WorkerLost { .. } | RunEvent::Blamed { .. });
    assert!(
        !cluster.events(1).iter().chain(&cluster.events(2)).any(lost),
        "{}",
        second.said()
    );
    let environment = cluster.double.environment();
    let head = cluster.stage.path("head-2");
    audit_in(&environment, &head);
    assert!(
        weights_in(&environment, &head) == undisturbed(&cluster.stage),
        "the bits differ"
    );
}
