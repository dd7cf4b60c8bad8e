//! Rows that cannot be read, told event by event (rule M2).

use super::failures::said;
use super::stories::{Story, name};
use crate::conductor::Event;
use crate::events::{FromWorker, RunEvent};
use crate::ids::{Generation, WorkerId};
use crate::plan::Plan;
use crate::quarantine::{ReadFault, RowRange};

fn rows(from: u32, until: u32) -> RowRange {
    RowRange {
        source: 0,
        shard: 3,
        from,
        until,
    }
}

impl Story {
    fn cannot_read(&mut self, worker: u32, lane: u32, rows: RowRange, fault: ReadFault) {
        let generation = self.last_plan().generation;
        let error = "503".into();
        self.tell(said(
            worker,
            FromWorker::LaneBlocked {
                generation,
                step: 5,
                lane,
                rows,
                fault,
                error,
            },
        ));
    }

    /// All of the generation leave it, and the next one is formed.
    fn next_generation(&mut self) -> Plan {
        let before = self.last_plan();
        for member in before.members.iter() {
            self.close(member.worker.0, before.generation.0, name(5, 1));
        }
        let after = self.all_formed();
        assert_eq!(after.generation.0, before.generation.0 + 1, "it was left");
        after
    }

    fn owner(&self, lane: u32) -> u32 {
        let plan = self.last_plan();
        plan.members[plan.lanes[lane as usize] as usize].worker.0
    }
}

fn at_step_5() -> Story {
    let mut story = Story::two_running();
    story.done(1, 5, 1);
    story.done(2, 5, 1);
    story
}

#[test]
fn rows_that_two_workers_ask_for_in_other_ranges_are_given_up_where_both_failed() {
    let mut story = at_step_5();
    let lane = story.last_plan().lanes_of(0)[0];
    // The owner asks for a window, the next one for what the step needs.
    story.cannot_read(1, lane, rows(0, 40), ReadFault::Shard);
    story.next_generation();
    assert_eq!(story.owner(lane), 2);
    story.cannot_read(2, lane, rows(8, 12), ReadFault::Shard);
    let plan = story.next_generation();
    let given_up: Vec<RowRange> = plan.quarantine.iter().map(|r| r.rows).collect();
    assert_eq!(
        given_up,
        [rows(8, 12)],
        "of the others one worker's failure alone is known"
    );
}

#[test]
fn rows_that_only_one_worker_cannot_read_are_read_by_another_and_nothing_is_given_up() {
    let mut story = at_step_5();
    let lane = story.last_plan().lanes_of(0)[0];
    story.cannot_read(1, lane, rows(0, 8), ReadFault::Shard);
    let plan = story.next_generation();
    assert_eq!((story.owner(lane), plan.quarantine.len()), (2, 0));
    story.done(2, 6, 2);
    story.now += 700_000;
    story.tell(Event::Ticked);
    assert_eq!(
        story.last_plan().generation,
        Generation(2),
        "it was read and is forgotten"
    );
}

#[test]
fn rows_that_a_worker_alone_cannot_read_are_given_up_after_the_time_the_job_gives_them() {
    let mut story = at_step_5();
    story.tell(Event::StreamLost { worker: WorkerId(2) });
    story.close(1, 1, name(5, 1));
    story.all_formed();
    let patience = super::stories::settings().policy.unreadable_after_ms;
    for _ in 0..3 {
        story.cannot_read(1, 0, rows(0, 8), ReadFault::Shard);
    }
    assert_eq!(story.last_plan().generation, Generation(2), "nobody else could try");
    assert!(
        story
            .conductor
            .next_deadline()
            .is_some_and(|(at, _)| at <= story.now + patience)
    );
    // It lives on, and hears nothing new until then.
    while story.now < patience + 60_000 && story.last_plan().generation == Generation(2) {
        story.now += 400;
        story.tell(said(1, FromWorker::Heartbeat));
        let closing =
            |e: &RunEvent| matches!(e, RunEvent::GenerationClosing { reason, .. } if reason.contains("stays"));
        if story.announced.iter().any(closing) {
            story.close(1, 2, name(5, 1));
        }
    }
    let plan = story.last_plan();
    assert_eq!(
        (plan.quarantine[0].rows, plan.quarantine[0].holds_from),
        (rows(0, 8), 5)
    );
}

#[test]
fn worker_without_a_way_to_the_data_hands_its_lanes_over_and_goes_at_the_second_failure() {
    let mut story = at_step_5();
    let lanes = story.last_plan().lanes_of(0);
    story.cannot_read(1, lanes[0], rows(0, 8), ReadFault::Way);
    story.next_generation();
    assert_eq!(story.owner(lanes[0]), 2);
    assert!(story.conductor.observe().cordoned.is_empty(), "once may be a moment");
    let others = story.last_plan().lanes_of(0)[0];
    story.cannot_read(1, others, rows(50, 58), ReadFault::Way);
    assert_eq!(story.conductor.observe().cordoned, [WorkerId(1)]);
    let plan = story.next_generation();
    let members: Vec<WorkerId> = plan.members.iter().map(|m| m.worker).collect();
    assert_eq!((members, plan.quarantine.len()), (vec![WorkerId(2)], 0));
}

#[test]
fn store_that_is_away_from_all_is_waited_for_without_end_and_costs_no_row() {
    let mut story = at_step_5();
    let lane = story.last_plan().lanes_of(0)[0];
    story.cannot_read(1, lane, rows(0, 8), ReadFault::Way);
    story.next_generation();
    story.cannot_read(2, lane, rows(0, 8), ReadFault::Way);
    // They go on trying where they are: no other worker would fare better.
    for turn in 0..4_000u32 {
        story.now += 400;
        story.tell(said(1, FromWorker::Heartbeat));
        story.tell(said(2, FromWorker::Heartbeat));
        if turn % 75 == 0 {
            story.cannot_read(1 + turn % 2, lane, rows(0, 8), ReadFault::Way);
        }
    }
    assert_eq!(story.last_plan().generation, Generation(2), "{:?}", story.announced);
    assert!(story.outcome.is_none() && story.conductor.observe().cordoned.is_empty());
    assert_eq!(story.conductor.observe().quarantine, 0);
    let told = story
        .announced
        .iter()
        .filter(|e| matches!(e, RunEvent::WorkerNotice { .. }));
    assert_eq!(told.count(), 2, "each says it once");
    story.done(1, 6, 2);
    assert_eq!(story.conductor.observe().steps_done, 6);
}
