//! Stories told to the brain directly, and a small world of conductor and followers in which workers die at bad moments.

mod choices;
mod drains;
mod failures;
mod history;
mod reigns;
mod stories;
mod toy;
mod unread;
mod world;

use crate::events::Outcome;
use world::World;

#[test]
fn undisturbed_world_trains_every_position_once() {
    let mut world = World::new(1, 3);
    world.run_to_the_end(0);
    world.assert_exactly_once();
    assert_eq!(
        world.conductor_view().generation.0,
        1,
        "nothing happened, so one generation is enough"
    );
}

#[test]
fn world_with_kills_at_random_moments_trains_every_position_once() {
    let mut faults = 0;
    for seed in 0..300 {
        let mut world = World::new(seed, 1 + (seed % 4) as u32);
        world.run_to_the_end(1 + seed % 7);
        world.assert_exactly_once();
        faults += world.effective_faults();
    }
    assert!(faults > 300, "only {faults} faults changed anything");
}

#[test]
fn world_whose_workers_all_die_goes_back_to_its_checkpoint() {
    for seed in 0..50 {
        let mut world = World::new(seed, 2);
        world.kill_all_at_step(5);
        world.run_to_the_end(0);
        world.assert_exactly_once();
        assert!(
            world.resumed() > 0,
            "seed {seed}: all were gone, the run must have gone back"
        );
    }
}

#[test]
fn world_of_workers_started_by_hand_waits_below_the_minimum_and_goes_on_with_joiners() {
    let mut waited = 0;
    for seed in 0..100 {
        let mut world = World::by_hand(seed, 3, 3);
        world.run_to_the_end(1 + seed % 4);
        world.assert_exactly_once();
        waited += usize::from(world.waited());
    }
    assert!(waited > 0, "only {waited} worlds ever came below the minimum");
}

#[test]
fn world_whose_coordinator_dies_at_random_moments_trains_every_position_once() {
    for seed in 0..200 {
        let mut world = World::new(seed, 1 + (seed % 3) as u32);
        for life in 0..1 + seed % 4 {
            world.turn_for(100 + 150 * life + seed);
            world.restart();
        }
        world.run_to_the_end(seed % 3);
        world.assert_exactly_once();
    }
}

#[test]
fn world_that_is_stopped_ends_with_a_checkpoint_and_goes_on_from_it() {
    let mut interrupted = 0;
    for seed in 0..100 {
        let mut world = World::new(seed, 2);
        match world.stop_at_step(1 + seed % 6) {
            Some(Outcome::Interrupted { name }) => {
                assert!(name.step > 0, "seed {seed}: stopped without a checkpoint");
                interrupted += 1;
            }
            // Orders travel slowly in some worlds: the last step came before the boundary that the stop chose.
            Some(Outcome::Succeeded { .. }) => {}
            other => panic!("seed {seed}: {other:?}"),
        }
        world.restart();
        world.run_to_the_end(0);
        world.assert_exactly_once();
    }
    assert!(interrupted > 20, "only {interrupted} worlds were stopped on the way");
}

#[test]
fn lost_owner_of_a_part_costs_one_attempt() {
    for seed in 0..100 {
        let mut world = World::new(seed, 2);
        world.run_to_the_end(1);
        // 16 steps with one every 4, and at most one given up for the loss and one that came late.
        assert!(world.attempts() <= 4 + 3, "seed {seed}: {} attempts", world.attempts());
    }
}
