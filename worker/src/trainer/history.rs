//! The log lines of the held state since its last committed checkpoint. They go with the state: into the next checkpoint,
//! and to whoever heals from it (rule AU1).

use argosy_common::steplog::StepRecord;

/// Lines of applied steps, oldest first, without gaps.
#[derive(Debug, Default)]
pub(super) struct History {
    /// Step after which each line's state stands, and the line with its end.
    lines: Vec<(u64, Vec<u8>)>,
}

impl History {
    /// The state comes from a checkpoint or the seed: what led to it lies there.
    pub(super) fn clear(&mut self) {
        self.lines.clear();
    }

    /// Notes the line of an applied step; other records tell nothing of a state.
    pub(super) fn note(&mut self, record: &StepRecord, line: &[u8]) {
        if let StepRecord::Applied { name, .. } = record {
            self.lines.push((name.step, line.to_vec()));
        }
    }

    /// Lines of the steps behind the state with `since` steps.
    ///
    /// # Errors
    /// A sentence, when there are not exactly those up to `step`.
    pub(super) fn since(&self, since: u64, step: u64) -> Result<Vec<u8>, String> {
        let wanted = self.lines.iter().filter(|(s, _)| *s > since);
        if !wanted.clone().map(|(s, _)| *s).eq(since + 1..=step) {
            return Err(format!("the log of steps {since} to {step} is not whole here"));
        }
        Ok(wanted.flat_map(|(_, line)| line.iter().copied()).collect())
    }

    /// A checkpoint with `step` steps is committed.
    pub(super) fn forget(&mut self, step: u64) {
        self.lines.retain(|(s, _)| *s > step);
    }

    /// Steps of the state that the lines begin behind; `step` where there are none.
    pub(super) fn begins(&self, step: u64) -> u64 {
        self.lines.first().map_or(step, |(first, _)| first.saturating_sub(1))
    }

    /// All lines, to be handed over.
    pub(super) fn whole(&self) -> Vec<u8> {
        self.lines.iter().flat_map(|(_, line)| line.iter().copied()).collect()
    }

    /// Takes over what another worker handed out with its state.
    ///
    /// # Errors
    /// When it is no log.
    pub(super) fn take_over(&mut self, log: &[u8]) -> Result<(), String> {
        let mut lines = Vec::new();
        for line in log.split_inclusive(|b| *b == b'\n') {
            match serde_json::from_slice(line) {
                Ok(StepRecord::Applied { name, .. }) => lines.push((name.step, line.to_vec())),
                Ok(_) => return Err("the log that came with the state holds more than steps".into()),
                Err(e) => return Err(format!("the log that came with the state cannot be read: {e}")),
            }
        }
        self.lines = lines;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use argosy_common::ids::{Generation, StateName};

    fn history(steps: std::ops::RangeInclusive<u64>) -> History {
        let mut history = History::default();
        for step in steps {
            let name = StateName {
                step,
                applied_gen: Generation(1),
            };
            let record = StepRecord::Applied {
                name,
                plan_hash: 1,
                lanes: vec![step],
                valid: 2,
                masked: Vec::new(),
                skipped: None,
                loss: None,
            };
            let mut line = serde_json::to_vec(&record).unwrap();
            line.push(b'\n');
            history.note(&record, &line);
        }
        history
    }

    #[test]
    fn history_gives_whole_ranges_only_and_survives_being_handed_over() {
        let mut ours = history(1..=9);
        assert!(ours.since(3, 9).unwrap().starts_with(&ours.lines[3].1));
        assert!(ours.since(3, 10).is_err() && ours.since(3, 8).is_err());
        ours.forget(4);
        assert!(ours.since(3, 9).is_err());
        let mut theirs = history(1..=2);
        theirs.take_over(&ours.whole()).unwrap();
        assert_eq!(theirs.since(4, 9).unwrap(), ours.since(4, 9).unwrap());
        assert!(theirs.take_over(b"{}\n").is_err());
        assert_eq!(theirs.since(9, 9).unwrap(), b"");
    }
}
