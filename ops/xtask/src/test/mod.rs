//! `cargo xtask test`: every check that a change must pass, one stage after the other.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context, Result, bail};

mod beside;
mod listen;
mod report;
mod runner;
mod skips;

use crate::cargo::{cargo, has_subcommand};
use crate::paths::Paths;
use beside::Environment;
use runner::TestRun;

pub(crate) const USAGE: &str = "[--long [--peers VENV]] [--strict]";

/// What was asked for on the command line.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Wish {
    /// Ignored tests too, and a report that is committed.
    pub(crate) long: bool,
    /// No skips at all, not even those on the list.
    pub(crate) strict: bool,
}

/// One stage that has ended.
#[derive(Debug)]
pub(crate) struct Stage {
    pub(crate) name: &'static str,
    pub(crate) seconds: f64,
    pub(crate) passed: bool,
    pub(crate) note: String,
}

/// How a stage ended, and what to say beside it.
type End = Result<(bool, String)>;

pub(crate) fn run(paths: &Paths, args: &[String]) -> Result<ExitCode> {
    let (wish, peers) = parse(args, std::env::var_os("PEERS_VENV").map(PathBuf::from))?;
    let mut suite = Suite {
        environment: beside::environment(&paths.root, peers.as_deref().filter(|_| wish.long))?,
        ..Suite::default()
    };
    suite.run_all(paths, wish);
    print!("\n{}", report::table(&suite.stages));
    if wish.long && suite.tests.is_some() {
        let path = report::write_json(paths, wish, &suite.stages, suite.tests.as_ref())?;
        println!("wrote {}", path.display());
    }
    // The runner's own closing line stays the last one: that is what a reader of a long log looks at.
    if let Some(tests) = &suite.tests {
        println!("{}", tests.closing_line);
    }
    let passed = suite.stages.iter().all(|stage| stage.passed);
    Ok(if passed { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// What was asked for, and the peers' environment.
fn parse(args: &[String], mut peers: Option<PathBuf>) -> Result<(Wish, Option<PathBuf>)> {
    let (mut switches, mut args, mut named) = (Vec::new(), args.iter(), false);
    while let Some(arg) = args.next() {
        match arg.as_str() {
            "--peers" => {
                peers = Some(args.next().context("`--peers` wants a folder")?.into());
                named = true;
            }
            _ => switches.push(arg.clone()),
        }
    }
    let switches = crate::parse_switches("test", &["--long", "--strict"], &switches)?;
    let wish = Wish {
        long: switches[0],
        strict: switches[1],
    };
    if named && !wish.long {
        bail!("`--peers` is for tests that only `--long` runs; give both");
    }
    Ok((wish, peers))
}

#[derive(Debug, Default)]
struct Suite {
    /// Set for the tests.
    environment: Environment,
    stages: Vec<Stage>,
    tests: Option<TestRun>,
}

impl Suite {
    /// Stops at the first stage that fails: what follows would only bury its message.
    fn run_all(&mut self, paths: &Paths, wish: Wish) {
        let mut tests = None;
        let environment = std::mem::take(&mut self.environment);
        let all: [(&'static str, &mut dyn FnMut() -> End); 9] = [
            ("setup", &mut || {
                crate::setup::lay(paths, false).map(|()| (true, String::new()))
            }),
            ("fmt", &mut || run_cargo(paths, &["fmt", "--all", "--check"])),
            ("clippy", &mut || {
                run_cargo(
                    paths,
                    &["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"],
                )
            }),
            ("build", &mut || {
                run_cargo(paths, &["build", "--workspace", "--all-targets"])
            }),
            ("demo", &mut || {
                crate::demo::quick(paths).map(|()| (true, String::new()))
            }),
            ("control", &mut || {
                if !wish.long {
                    return Ok((true, "a run on shuffled captions: with --long only".to_owned()));
                }
                crate::demo::control(paths).map(|()| (true, String::new()))
            }),
            ("test", &mut || run_tests(paths, wish, &environment, &mut tests)),
            ("release", &mut || {
                if !wish.long {
                    return Ok((true, "simulated worlds without assertions: with --long only".to_owned()));
                }
                // The same seeds give the same hashes in a release build, without assertions and checks for overflow.
                let worlds = "stories::worlds_have_the_hashes_that_are_committed";
                run_cargo(
                    paths,
                    &["test", "--release", "-p", "argosy-sim", "--test", "it", worlds],
                )
            }),
            ("deny", &mut || run_deny(paths)),
        ];
        for (name, stage) in all {
            println!("== {name}");
            let started = Instant::now();
            let (passed, note) = stage().unwrap_or_else(|error| (false, format!("{error:#}")));
            let seconds = started.elapsed().as_secs_f64();
            let how = if passed { "ok" } else { "FAILED" };
            let tail = if note.is_empty() {
                String::new()
            } else {
                format!(" ({note})")
            };
            println!("== {name}: {how} in {seconds:.1} s{tail}");
            self.stages.push(Stage {
                name,
                seconds,
                passed,
                note,
            });
            if !passed {
                break;
            }
        }
        self.tests = tests;
    }
}

fn run_cargo(paths: &Paths, args: &[&str]) -> End {
    let status = cargo(paths).args(args).status().context("cannot start cargo")?;
    Ok((status.success(), String::new()))
}

fn run_tests(paths: &Paths, wish: Wish, environment: &Environment, out: &mut Option<TestRun>) -> End {
    let run = runner::run(paths, wish, environment)?;
    let allowed = skips::read_list(&paths.root)?;
    let verdict = skips::judge(&run.skips, &allowed, wish.strict);
    let passed = run.passed && verdict.is_ok();
    let note = match verdict {
        Ok(note) | Err(note) => format!("with {}; {note}", run.runner),
    };
    *out = Some(run);
    Ok((passed, note))
}

/// Licences, bans and sources, from what lies on this machine: the advisory database would need a network.
fn run_deny(paths: &Paths) -> End {
    if !has_subcommand(paths, "deny") {
        return Ok((true, "NOT CHECKED: cargo-deny is not on this machine".to_owned()));
    }
    run_cargo(paths, &["deny", "--offline", "check", "bans", "licenses", "sources"])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(args: &[&str]) -> Result<(Wish, Option<PathBuf>)> {
        let args: Vec<String> = args.iter().map(|arg| (*arg).to_owned()).collect();
        parse(&args, Some("from-the-environment".into()))
    }

    #[test]
    fn wish_with_peers_takes_their_folder_and_asks_for_the_long_tests() {
        let (wish, peers) = parsed(&["--peers", "venv", "--long"]).unwrap();
        assert!(wish.long && !wish.strict && peers == Some("venv".into()));
        assert_eq!(parsed(&["--strict"]).unwrap().1, Some("from-the-environment".into()));
        for (args, word) in [
            (&["--peers", "venv"][..], "--long"),
            (&["--long", "--peers"], "wants a folder"),
            (&["--peer", "venv"], "--strict"),
        ] {
            let error = parsed(args).unwrap_err().to_string();
            assert!(error.contains(word), "{args:?}: {error}");
        }
    }
}
