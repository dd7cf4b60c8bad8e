//! Figures of fleets: that they add up, that they are stable, and that the baselines get what is theirs.

use argosy_sim::fleet::{FaultsFile, Fleet, Goodput, Mode, rates, size};

fn fleet(seed: u64) -> Fleet {
    Fleet {
        workers: 50,
        shards: 1_000,
        samples: 4_000_000,
        lanes: 400,
        batch: 3_200,
        step_ms: 1_000,
        steps_max: 0,
        faults: FaultsFile {
            mean_life_s: 6 * 3_600,
            ..FaultsFile::default()
        },
        seed,
        mode: Mode::Lazy,
    }
}

fn at(fleet: &Fleet, hours: u64) -> Goodput {
    rates(fleet, &[hours * 3_600], 1, &|_| ())[0]
}

#[test]
fn goodput_at_other_rates_is_the_same_on_any_threads_and_nearly_so_with_other_seeds() {
    let lives = [3_600, 6 * 3_600, 0];
    let one = rates(&fleet(1), &lives, 1, &|_| ());
    assert_eq!(one, rates(&fleet(1), &lives, 3, &|_| ()));
    let other = rates(&fleet(2), &lives, 2, &|_| ());
    for (a, b) in one.iter().zip(&other).take(2) {
        assert!(a.losses >= 200 && a.baseline_losses >= 2_000, "{a:?}");
        let pm = a.argosy_pm.expect("many steps") + b.argosy_pm.expect("many steps");
        assert!((a.argosy - b.argosy).abs() < 2.0 * pm, "{a:?} {b:?}");
        assert!((a.stop_the_world - b.stop_the_world).abs() < 0.03, "{a:?} {b:?}");
        assert!(
            (a.checkpoint_restart - b.checkpoint_restart).abs() < 0.03,
            "{a:?} {b:?}"
        );
        assert!(
            a.argosy > a.stop_the_world && a.stop_the_world > a.checkpoint_restart,
            "{a:?}"
        );
    }
    assert!(
        one[0].argosy < one[1].argosy && one[1].argosy < one[2].argosy,
        "{one:?}"
    );
    assert_eq!((one[2].losses, one[2].stop_the_world), (0, 1.0));
}

#[test]
fn baselines_that_notice_and_save_sooner_lose_less() {
    let with = |change: fn(&mut FaultsFile)| {
        let mut fleet = fleet(1);
        change(&mut fleet.faults);
        at(&fleet, 6)
    };
    let usual = with(|_| ());
    let vigilant = with(|f| f.hang_ms = 10_000);
    assert!(
        vigilant.stop_the_world > usual.stop_the_world + 0.1,
        "{usual:?} {vigilant:?}"
    );
    let slow_to_save = with(|f| f.save_ms = 20_000);
    assert!(
        slow_to_save.stop_the_world < usual.stop_the_world,
        "{usual:?} {slow_to_save:?}"
    );
    assert!(
        slow_to_save.stop_the_world_every_steps > usual.stop_the_world_every_steps,
        "dearer saves are made less often: {usual:?} {slow_to_save:?}"
    );
    let free = with(|f| (f.hang_ms, f.save_ms, f.restart_ms, f.requeue_ms, f.replace_ms) = (0, 0, 0, 0, 0));
    assert!(free.stop_the_world > 0.99, "a restart that costs nothing: {free:?}");
}

#[test]
fn sizing_of_a_fleet_counts_every_decision_and_the_ledgers_at_their_fullest() {
    let fleet = fleet(3);
    let sizing = size(&fleet, &|| 0, &mut |_, _| ());
    assert!(
        sizing.complete && sizing.losses > 0 && sizing.checkpoints > 0,
        "{sizing:?}"
    );
    let kinds: u64 = sizing.decisions_by_kind.iter().map(|kind| kind.count).sum();
    assert_eq!(kinds, sizing.decisions);
    assert!(sizing.decisions_by_kind.iter().all(|kind| kind.count > 0), "{sizing:?}");
    // Owners of all lanes, and the parts of one attempt with their keys.
    let least = 4 * u64::from(fleet.lanes) + 100 * u64::from(fleet.faults.parts());
    assert!(
        (least..100_000).contains(&sizing.ledger_bytes),
        "{} bytes",
        sizing.ledger_bytes
    );
}
