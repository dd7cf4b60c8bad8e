//! Taking over a state: from a member, from a manifest, or from the seed (rule G7).

use crate::data::SEED_BITS;
use crate::net::Node;
use crate::objects::Trouble;
use crate::process::{At, Exchange};
use crate::world::{Ev, World};
use argosy_common::ids::StateName;
use argosy_common::invariants::clean_source;
use argosy_common::plan::StateSource;
use argosy_common::rules::Rules;
use argosy_common::steplog::StepRecord;

impl<R: Rules> World<R> {
    /// Asks somebody for the base state.
    pub(super) fn heal(&mut self, process: usize) {
        let Some(inside) = &self.processes[process].trainer.inside else {
            return;
        };
        let (base, token) = (inside.plan.base, self.processes[process].trainer.token);
        let slow = match self.trouble {
            Some((Trouble::Slow(more), until, _)) if until > self.now() => more,
            _ => 0,
        };
        let (took, source, wait) = match &inside.plan.source {
            StateSource::Seed => (Some((StateName::INITIAL, SEED_BITS)), None, 5),
            StateSource::Manifest { key } => (self.load(&key.clone(), base), None, 30 + slow),
            StateSource::Peers => {
                let holders: Vec<usize> = inside
                    .plan
                    .members
                    .iter()
                    .zip(&inside.peers)
                    .filter(|(m, _)| !m.heals)
                    .map(|(_, p)| *p)
                    .collect();
                let start = inside.rank;
                let ready = |p: &usize| self.gives(*p, process, base).is_some();
                let source = (0..holders.len())
                    .map(|i| holders[(start + i) % holders.len()])
                    .find(ready);
                (source.and_then(|s| self.gives(s, process, base)), source, 40)
            }
        };
        let trainer = &mut self.processes[process].trainer;
        if let Some(inside) = &mut trainer.inside {
            inside.at = At::Healing { source };
        }
        if R::heals_in_place() && source.is_some() {
            trainer.bits = !trainer.bits; // half written: neither the old state nor the new one
        }
        if let (Some(source), Some(fault)) = (source, self.heal_doom) {
            self.heal_doom = None;
            self.hit(fault, vec![Node::Process(source)]);
            self.queue.after(wait / 2, Ev::Kill { process: source });
        }
        let wait = wait + self.draws.below(40);
        self.queue.after(wait, Ev::HealDone { process, token, took });
    }

    /// The state that `source` shows to `asker`: clean, of that name, in the same generation, not training yet.
    pub(super) fn gives(&self, source: usize, asker: usize, base: StateName) -> Option<(StateName, u64)> {
        let wanted = self.processes[asker].trainer.inside.as_ref()?.plan_hash;
        let p = self
            .processes
            .get(source)
            .filter(|p| p.alive && p.asleep_until <= self.now())?;
        let inside = p
            .trainer
            .inside
            .as_ref()
            .filter(|i| i.plan_hash == wanted && !i.running)?;
        let cut = self.net.is_cut(Node::Process(source), Node::Process(asker), self.now());
        let shown = !p.trainer.dirty && !matches!(inside.at, At::Healing { .. }) && !cut;
        (shown && R::holds(p.trainer.name, base)).then_some((p.trainer.name, p.trainer.bits))
    }

    /// The state that a manifest names, if manifest and all parts can be read whole.
    pub(super) fn load(&mut self, key: &str, base: StateName) -> Option<(StateName, u64)> {
        let trouble = self.trouble_now();
        let read = self.objects.get(key, trouble);
        if read.is_err()
            && let Some((_, _, fault)) = self.trouble
        {
            self.effects.credit(fault, &self.faults);
        }
        let manifest = read.ok()?;
        if manifest.name != base {
            self.violate("INV8", format!("{key} is of {}, the plan says {base}", manifest.name));
            return None;
        }
        let attempt = key.split('/').next().unwrap_or_default();
        let parts = self.config.parts;
        let whole = (0..parts).all(|i| {
            let part = self.objects.get(&format!("{attempt}/{i}"), trouble);
            part.is_ok_and(|p| p.name == manifest.name && p.bits == manifest.bits)
        });
        whole.then_some((manifest.name, manifest.bits))
    }

    pub(crate) fn heal_done(&mut self, process: usize, token: u64, took: Option<(StateName, u64)>) {
        let now = self.now();
        let trainer = &self.processes[process].trainer;
        if trainer.token != token || !self.processes[process].alive {
            return;
        }
        let Some(inside) = &trainer.inside else { return };
        let At::Healing { source } = inside.at else { return };
        let base = inside.plan.base;
        let (generation, plan_source) = (inside.plan.generation, inside.plan.source.clone());
        let still_there = source.is_none_or(|s| self.gives(s, process, base).is_some());
        if let (Some(source), true) = (source, still_there && took.is_some()) {
            let from = &self.processes[source].trainer;
            let holds = (!from.dirty).then_some(from.name);
            self.holds_to(clean_source(base, holds));
        }
        let Some((name, bits)) = took.filter(|_| still_there) else {
            if source.is_some() {
                // The own state is as it was: heals go into a second buffer (rule G7).
                return self.halt(process, Some("the source of the state is gone".into()));
            }
            self.processes[process].trainer.token += 1;
            return self.heal(process);
        };
        let peer = source.and_then(|s| self.processes[s].worker);
        let from = match (peer, plan_source) {
            (Some(peer), _) => peer.to_string(),
            (None, StateSource::Seed) => "seed".to_owned(),
            (None, _) => "manifest".to_owned(),
        };
        let trainer = &mut self.processes[process].trainer;
        trainer.name = name;
        trainer.bits = bits;
        self.trace
            .note(now, "healed", &[process as u64, name.step, name.applied_gen.0], || {
                format!("p{process} to {name} from {from}")
            });
        let record = StepRecord::Healed {
            name,
            gen_: generation,
            from,
        };
        self.log(process, record);
        self.holds(process);
        self.reach(process, Exchange::Connect, 0);
    }
}
