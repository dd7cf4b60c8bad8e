//! What follows when states of one name differ (rule N3).

use super::{Conductor, Phase, Turn};
use crate::divergence::{TIES_MAX, Verdict};
use crate::events::{Outcome, RunEvent};
use crate::exit::Exit;
use crate::ids::{StateName, WorkerId};
use crate::invariants::InvariantId;
use crate::rules::Rules;
use std::collections::BTreeSet;

impl<R: Rules> Conductor<R> {
    /// Takes one member's hashes of its state. Who must heal leaves the generation with all the others and heals in the next.
    pub(super) fn compare_states(&mut self, worker: WorkerId, name: StateName, hashes: Vec<u64>, turn: &mut Turn) {
        let (Phase::Running { plan } | Phase::Closing { plan, .. }) = &self.phase else {
            return;
        };
        let members: Vec<WorkerId> = plan.members.iter().map(|m| m.worker).collect();
        let (heal, cordon) = match self.states.report(name, worker, hashes, &members) {
            Verdict::Open | Verdict::Agree => return,
            Verdict::Minority { heal, cordon } => (heal, cordon),
            Verdict::Tie { ties } if ties > TIES_MAX => {
                let message = format!(
                    "the workers' states differ at {name} and no majority is equal, {ties} times in this run; a processor or \
                     memory is at fault: run on machines that are known to be good"
                );
                let exit = Exit::JobFailed.code();
                self.end(Outcome::Failed { exit, message }, turn);
                return;
            }
            Verdict::Tie { .. } => (members.iter().copied().collect(), BTreeSet::new()),
        };
        turn.announce(RunEvent::StatesDiffered {
            name,
            healing: heal.iter().copied().collect(),
            cordoned: cordon.iter().copied().collect(),
        });
        self.suspects.extend(&heal);
        let id = InvariantId::EqualNamesEqualBits;
        self.leave_generation(None, &format!("states of {name} differ ({id})"), None, turn);
        for worker in cordon {
            self.lose(
                worker,
                "its state differed from the others' a second time; it is cordoned",
                turn,
            );
        }
    }
}
