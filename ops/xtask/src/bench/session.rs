//! One bench while it runs.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::figure::{Figure, Measure};
use super::{Bench, Wish, quiet};
use crate::paths::Paths;
use crate::record::{describe_commit, describe_machine, today};

#[derive(Debug)]
pub(crate) struct Session<'a> {
    paths: &'a Paths,
    bench: &'a Bench,
    wish: &'a Wish,
    figures: Vec<Figure>,
    notes: Vec<String>,
    busiest: f64,
}

impl<'a> Session<'a> {
    pub(crate) fn open(paths: &'a Paths, bench: &'a Bench, wish: &'a Wish) -> Self {
        Self {
            paths,
            bench,
            wish,
            figures: Vec::new(),
            notes: Vec::new(),
            busiest: 0.0,
        }
    }

    /// Root of the clone.
    pub(crate) fn root(&self) -> &Path {
        &self.paths.root
    }

    /// A folder of this bench's own, which stays (made data is dear).
    pub(crate) fn workspace(&self) -> Result<PathBuf> {
        let dir = self.paths.root.join("target/bench").join(self.bench.name);
        fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
        Ok(dir)
    }

    /// Builds `package` with `args` (`["--bin", NAME]`, `["--example", NAME]`) and tells where the executable lies.
    pub(crate) fn build(&self, package: &str, args: [&str; 2]) -> Result<PathBuf> {
        crate::cargo::build(self.paths, package, args)
    }

    /// The Python of the peers' environment.
    pub(crate) fn peers_python(&self) -> Result<PathBuf> {
        crate::peers::python(self.wish.peers.as_deref())
    }

    /// A peer's script of `tests/peers`, ready for its arguments.
    pub(crate) fn peer(&self, script: &str) -> Result<Command> {
        let mut command = Command::new(self.peers_python()?);
        command.arg(self.paths.root.join("tests/peers").join(script));
        Ok(command)
    }

    /// Runs a program that prints one JSON object as its last line.
    pub(crate) fn json(&self, command: &mut Command) -> Result<Value> {
        crate::peers::json(command)
    }

    /// Rounds of ours and of the peer, the first alternating too: whoever goes second meets warmer caches.
    pub(crate) fn race(
        &mut self,
        measure: Measure,
        peer_name: &str,
        mut ours: impl FnMut(&Self) -> Result<f64>,
        mut peer: impl FnMut(&Self) -> Result<f64>,
    ) -> Result<()> {
        self.look_round()?;
        let mut figure = self.start(measure, peer_name);
        for round in 0..self.wish.rounds {
            if round % 2 == 0 {
                figure.ours.push(ours(self)?);
                figure.peer.push(peer(self)?);
            } else {
                figure.peer.push(peer(self)?);
                figure.ours.push(ours(self)?);
            }
            eprintln!(
                "{} round {}/{}: ours {:.4}, {} {:.4} {}",
                figure.measure.label,
                round + 1,
                self.wish.rounds,
                figure.ours[round],
                figure.peer_name,
                figure.peer[round],
                figure.measure.unit
            );
        }
        self.figures.push(figure);
        Ok(())
    }

    /// Rounds of ours.
    pub(crate) fn alone(&mut self, measure: Measure, mut ours: impl FnMut(&Self) -> Result<f64>) -> Result<()> {
        self.look_round()?;
        let mut figure = self.start(measure, "");
        for round in 0..self.wish.rounds {
            figure.ours.push(ours(self)?);
            eprintln!(
                "{} round {}/{}: {:.4} {}",
                figure.measure.label,
                round + 1,
                self.wish.rounds,
                figure.ours[round],
                figure.measure.unit
            );
        }
        self.figures.push(figure);
        Ok(())
    }

    /// Rounds of ours, each of which gives all of these figures at once.
    pub(crate) fn alone_many(
        &mut self,
        measures: Vec<Measure>,
        mut ours: impl FnMut(&Self) -> Result<Vec<f64>>,
    ) -> Result<()> {
        self.look_round()?;
        let mut figures: Vec<Figure> = measures.into_iter().map(|measure| self.start(measure, "")).collect();
        for round in 0..self.wish.rounds {
            let values = ours(self)?;
            ensure!(
                values.len() == figures.len(),
                "{} values of {} figures",
                values.len(),
                figures.len()
            );
            let mut said = String::new();
            for (figure, value) in figures.iter_mut().zip(values) {
                figure.ours.push(value);
                said += &format!("{} {value:.4} {}, ", figure.measure.label, figure.measure.unit);
            }
            eprintln!(
                "round {}/{}: {}",
                round + 1,
                self.wish.rounds,
                said.trim_end_matches(", ")
            );
        }
        self.figures.extend(figures);
        Ok(())
    }

    /// A sentence for the report, such as a median that explains a figure.
    pub(crate) fn note(&mut self, text: impl Into<String>) {
        self.notes.push(text.into());
    }

    fn start(&self, measure: Measure, peer_name: &str) -> Figure {
        Figure {
            measure,
            ours: Vec::new(),
            peer: Vec::new(),
            peer_name: peer_name.to_owned(),
        }
    }

    fn look_round(&mut self) -> Result<()> {
        let busy = quiet::busy_share()?;
        self.busiest = self.busiest.max(busy);
        if self.wish.only_try {
            return Ok(());
        }
        quiet::refuse_when_busy(busy)
    }

    /// Writes what was measured; whether every bound is kept.
    pub(crate) fn close(self) -> Result<bool> {
        let report = json!({
            "version": 1, "name": self.bench.name, "about": self.bench.about,
            "commit": describe_commit(self.paths), "date": today(), "machine": describe_machine(),
            "busy_share_before": (self.busiest * 1000.0).round() / 1000.0,
            "figures": self.figures.iter().map(Figure::to_json).collect::<Vec<_>>(), "notes": self.notes,
        });
        let mut folders = vec!["target/bench"];
        if !self.wish.only_try {
            folders.push("ops/reports/bench");
        }
        for folder in folders {
            let path = self.paths.root.join(folder).join(format!("{}.json", self.bench.name));
            fs::create_dir_all(self.paths.root.join(folder)).with_context(|| format!("cannot make {folder}"))?;
            fs::write(&path, serde_json::to_string_pretty(&report)? + "\n")
                .with_context(|| format!("cannot write {}", path.display()))?;
            println!("wrote {}", path.display());
        }
        print!("{}", super::page::section(&report));
        Ok(self.figures.iter().all(Figure::is_met))
    }
}
