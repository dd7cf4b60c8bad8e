//! A worker's step log: one JSON object a line, in the system's hands before the state it tells of is shown (rule AU1).

use argosy_common::ids::WorkerId;
use argosy_common::steplog::{STEP_LOG_VERSION, StepRecord};
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

/// The log of one worker process.
#[derive(Debug)]
pub struct StepLogWriter {
    path: PathBuf,
    file: File,
    line: Vec<u8>,
}

impl StepLogWriter {
    /// Opens `run_dir/steps/w<N>.jsonl` at its end.
    ///
    /// # Errors
    /// The system's.
    pub fn open(run_dir: &Path, worker: WorkerId) -> std::io::Result<Self> {
        let folder = run_dir.join("steps");
        std::fs::create_dir_all(&folder)?;
        let path = folder.join(format!("{worker}.jsonl"));
        let file = OpenOptions::new().create(true).append(true).open(&path)?;
        let mut log = Self {
            path,
            file,
            line: Vec::new(),
        };
        let opened = StepRecord::Opened {
            version: STEP_LOG_VERSION,
            worker: worker.0,
            pid: std::process::id(),
        };
        log.write(&opened)?;
        Ok(log)
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Appends one line with one write, so that a kill leaves at most one torn line, the last. Returns the line.
    ///
    /// # Errors
    /// The system's.
    pub fn write(&mut self, record: &StepRecord) -> std::io::Result<&[u8]> {
        self.line.clear();
        serde_json::to_writer(&mut self.line, record)?;
        self.line.push(b'\n');
        self.file.write_all(&self.line)?;
        Ok(&self.line)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use argosy_common::ids::{Generation, StateName};
    use argosy_common::steplog::parse;

    #[test]
    fn step_log_with_a_torn_last_line_still_gives_the_whole_ones() {
        let dir = tempfile::tempdir().unwrap();
        let mut log = StepLogWriter::open(dir.path(), WorkerId(3)).unwrap();
        let healed = StepRecord::Healed {
            name: StateName::INITIAL,
            gen_: Generation(2),
            from: "w1".into(),
        };
        log.write(&healed).unwrap();
        log.file.write_all(br#"{"kind":"applied","na"#).unwrap();
        let text = std::fs::read_to_string(dir.path().join("steps/w3.jsonl")).unwrap();
        let records = parse(&text).unwrap();
        assert_eq!(records.len(), 2);
        assert_eq!(records[1], healed);
        assert!(matches!(
            records[0],
            StepRecord::Opened {
                version: STEP_LOG_VERSION,
                worker: 3,
                ..
            }
        ));
    }
}
