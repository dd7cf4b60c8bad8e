//! Stories told to the brain directly, and a small world of conductor and followers in which workers die at bad moments.

mod stories;
mod toy;
mod world;

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
fn world_without_spawning_again_waits_below_the_minimum_and_goes_on_with_joiners() {
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
