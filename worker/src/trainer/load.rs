//! LOAD: the batches of the own lanes, and what is done about rows that cannot be read (rule M2).

use super::{BatchSource, Halt, InGeneration, Trainer};
use crate::engine::Engine;
use argosy_common::events::FromWorker;
use argosy_common::exit::Exit;
use argosy_common::follower::Event;
use argosy_common::quarantine::RowRange;
use argosy_shard_loader::{BlockCause, LaneBatch, LoaderError};
use std::time::{Duration, Instant};

/// The trainer looks at its abort handle so often while it waits for data.
const LOAD_POLL: Duration = Duration::from_millis(20);
/// First pause before rows that could not be read are asked for again; doubled after each further one.
const AGAIN_FIRST: Duration = Duration::from_millis(500);
/// Longest such pause.
const AGAIN_MAX: Duration = Duration::from_secs(30);

/// Rows that one step waits for.
struct Blocked {
    said: Vec<RowRange>,
    pause: Duration,
    again_at: Option<Instant>,
}

impl<E: Engine, S: BatchSource> Trainer<E, S> {
    /// The batches of the own lanes at `step`. What cannot be read is told to the coordinator, who may give the lane to
    /// another worker or the rows up; until then it is tried again and again.
    pub(super) fn load(&mut self, inside: &InGeneration, step: u64) -> Result<Vec<LaneBatch>, Halt> {
        let lanes = inside.plan.lanes_of(inside.rank);
        let mut blocked = Blocked {
            said: Vec::new(),
            pause: AGAIN_FIRST,
            again_at: None,
        };
        let batches = loop {
            if inside.abort.is_aborted() {
                return Err(Halt::Left(None));
            }
            match blocked.again_at {
                Some(at) if Instant::now() < at => {
                    std::thread::sleep(LOAD_POLL);
                    continue;
                }
                Some(_) => {
                    blocked.again_at = None;
                    self.source.assign(&lanes, step);
                }
                None => {}
            }
            match self.source.next(LOAD_POLL) {
                Ok(Some(batches)) => break batches,
                Ok(None) => {}
                Err(error) => self.cannot_load(inside, step, error, &mut blocked)?,
            }
        };
        let rows = self.setup.shape.lane_rows() as usize;
        let fits = batches.iter().map(|b| b.lane).eq(lanes.iter().copied())
            && batches.iter().all(|b| b.step == step && b.states.len() == rows);
        if !fits {
            return Err(failed(format!(
                "the loader gave other batches than those of lanes {lanes:?} at step {step}"
            )));
        }
        Ok(batches)
    }

    /// Says once what cannot be read. A shard that is another one now is refused (rule M3): no retry and no other worker
    /// brings the old one back, and the new one is not what the run trains on.
    fn cannot_load(
        &self,
        inside: &InGeneration,
        step: u64,
        error: LoaderError,
        blocked: &mut Blocked,
    ) -> Result<(), Halt> {
        let message = error.to_string();
        let LoaderError::LaneBlocked {
            lane,
            rows,
            cause,
            fault,
            error,
            ..
        } = error
        else {
            return Err(failed(message));
        };
        if cause == BlockCause::Changed {
            let exit = Exit::Conflict;
            return Err(Halt::Failed { exit, message });
        }
        blocked.again_at = Some(Instant::now() + blocked.pause);
        blocked.pause = (blocked.pause * 2).min(AGAIN_MAX);
        if !blocked.said.contains(&rows) {
            blocked.said.push(rows);
            tracing::warn!(step, lane, message, "a lane is blocked");
            self.emit(Event::Passed(FromWorker::LaneBlocked {
                generation: inside.plan.generation,
                step,
                lane,
                rows,
                fault,
                error,
            }));
        }
        Ok(())
    }
}

fn failed(message: String) -> Halt {
    Halt::Failed {
        exit: Exit::JobFailed,
        message,
    }
}
