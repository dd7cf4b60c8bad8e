//! `cargo xtask bench NAME`: ours against the peer, round by round, on a machine that does nothing else.
//!
//! A new bench is one file here with a `pub(crate) const BENCH: Bench` and one line in [`BENCHES`]. Its `run` gets a
//! [`Session`]: build what is measured with [`Session::build`], call programs that print one JSON object with
//! [`Session::json`], and hand closures to [`Session::race`] (ours and a peer in alternating rounds; the bound is on the
//! ratio) or [`Session::alone`] (the bound is on the value). All rounds end up in `target/bench/NAME.json`, and, on a
//! quiet machine, in the committed copy `ops/reports/bench/NAME.json`, from which `ops/benchmarks.md` is written.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};

mod cluster;
mod failover;
mod figure;
mod index;
mod loader_demo;
mod loader_photos;
mod loss;
mod page;
mod quiet;
mod ring;
mod session;
mod sim;
mod step;
mod text;

use crate::paths::Paths;
pub(crate) use figure::{Better, Bound, Measure};
pub(crate) use session::Session;

pub(crate) const USAGE: &str = "[NAME... | --page] [--rounds N] [--peers VENV] [--try]";

/// One bench.
#[derive(Debug)]
pub(crate) struct Bench {
    pub(crate) name: &'static str,
    pub(crate) about: &'static str,
    pub(crate) run: fn(&mut Session<'_>) -> Result<()>,
}

/// All there is, by name.
const BENCHES: &[&Bench] = &[
    &index::BENCH,
    &loader_demo::BENCH,
    &loader_photos::SMALL,
    &loader_photos::LARGE,
    &loader_photos::CORES,
    &step::FP32,
    &step::BF16,
    &step::SMALL,
    &text::BENCH,
    &loss::BENCH,
    &ring::BENCH,
    &cluster::CHECKPOINT_STALL,
    &cluster::JOIN_STALL,
    &failover::BENCH,
    &sim::PASS,
    &sim::DECISIONS,
];

/// What was asked for on the command line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Wish {
    names: Vec<String>,
    /// Only write the page again.
    page: bool,
    /// Rounds of each side; five unless told.
    rounds: usize,
    /// Python environment with OpenCLIP, as `tests/peers/setup.sh` makes it.
    peers: Option<PathBuf>,
    /// Measure on a busy machine too; then nothing that is committed is written.
    only_try: bool,
}

pub(crate) fn run(paths: &Paths, args: &[String]) -> Result<ExitCode> {
    let wish = Wish::parse(args, std::env::var_os("PEERS_VENV").map(PathBuf::from))?;
    if wish.page {
        println!("wrote {}", page::write(paths)?.display());
        return Ok(ExitCode::SUCCESS);
    }
    if wish.names.is_empty() {
        for bench in BENCHES {
            println!("{:<16} {}", bench.name, bench.about);
        }
        return Ok(ExitCode::SUCCESS);
    }
    let chosen: Vec<&Bench> = wish.names.iter().map(|name| find(name)).collect::<Result<_>>()?;
    let mut all_met = true;
    for bench in chosen {
        let mut session = Session::open(paths, bench, &wish);
        (bench.run)(&mut session).with_context(|| format!("bench {}", bench.name))?;
        all_met &= session.close()?;
    }
    if !wish.only_try {
        println!("wrote {}", page::write(paths)?.display());
    }
    Ok(if all_met { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn find(name: &str) -> Result<&'static Bench> {
    let Some(bench) = BENCHES.iter().find(|bench| bench.name == name) else {
        let names: Vec<&str> = BENCHES.iter().map(|bench| bench.name).collect();
        bail!("there is no bench `{name}`; there are {}", names.join(", "))
    };
    Ok(bench)
}

impl Wish {
    fn parse(args: &[String], peers: Option<PathBuf>) -> Result<Self> {
        let mut wish = Self {
            names: Vec::new(),
            page: false,
            rounds: 5,
            peers,
            only_try: false,
        };
        let mut args = args.iter();
        while let Some(arg) = args.next() {
            let mut value = || args.next().with_context(|| format!("`{arg}` wants a value"));
            match arg.as_str() {
                "--rounds" => {
                    let text = value()?;
                    wish.rounds = text.parse().ok().filter(|rounds| *rounds > 0).with_context(|| {
                        format!("`--rounds {text}` is not a number of rounds; give a whole number from 1")
                    })?;
                }
                "--peers" => wish.peers = Some(value()?.into()),
                "--try" => wish.only_try = true,
                "--page" => wish.page = true,
                flag if flag.starts_with('-') => {
                    bail!("`cargo xtask bench` does not know `{flag}`; it takes {USAGE}")
                }
                name => wish.names.push(name.to_owned()),
            }
        }
        // Fewer rounds are a look, not a measurement that others may quote.
        wish.only_try |= wish.rounds < 5;
        Ok(wish)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(args: &[&str]) -> Result<Wish> {
        Wish::parse(&args.iter().map(|arg| (*arg).to_owned()).collect::<Vec<_>>(), None)
    }

    #[test]
    fn wish_with_fewer_than_five_rounds_is_only_a_try() {
        assert!(parse(&["a", "--rounds", "4"]).unwrap().only_try);
        assert!(!parse(&["a", "--rounds", "5"]).unwrap().only_try);
    }

    #[test]
    fn wish_with_an_unknown_flag_or_no_rounds_says_what_it_takes() {
        assert!(parse(&["--round"]).unwrap_err().to_string().contains("--rounds N"));
        assert!(parse(&["--rounds", "0"]).unwrap_err().to_string().contains("from 1"));
    }

    #[test]
    fn bench_that_is_not_there_is_answered_with_those_that_are() {
        assert!(find("loader-dema").unwrap_err().to_string().contains("loader-demo"));
    }

    #[test]
    fn benches_have_names_of_their_own() {
        let mut names: Vec<&str> = BENCHES.iter().map(|bench| bench.name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), BENCHES.len());
    }
}
