//! `cargo xtask`: sets up what crates.io does not carry, and runs the checks.
#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a command line tool talks to its terminal"
)]

use std::process::ExitCode;

use anyhow::Result;

mod bench;
mod cargo;
mod demo;
mod demo_data;
mod dist;
mod gpu_page;
mod parity;
mod paths;
mod peers;
mod photographs;
mod progress;
mod record;
mod setup;
mod test;

use paths::Paths;

/// One `cargo xtask NAME`. `run` gets the arguments after the name.
struct Task {
    name: &'static str,
    usage: &'static str,
    about: &'static str,
    run: fn(&Paths, &[String]) -> Result<ExitCode>,
}

/// All there is: a new command is one line here and one module.
const TASKS: &[Task] = &[
    Task {
        name: "setup",
        usage: setup::USAGE,
        about: "fetch libtorch, cmake, protoc and etcd",
        run: setup::run,
    },
    Task {
        name: "bench",
        usage: bench::USAGE,
        about: "measure against OpenCLIP on this machine; without a name, list what there is",
        run: bench::run,
    },
    Task {
        name: "demo",
        usage: demo::USAGE,
        about: "train a small CLIP, kill a worker on the way, test on styles never seen",
        run: demo::run,
    },
    Task {
        name: "demo-data",
        usage: demo_data::USAGE,
        about: "draw the demo's data set again from its icon packages (needs npm)",
        run: demo_data::run,
    },
    Task {
        name: "dist",
        usage: dist::USAGE,
        about: "pack a tarball that runs without Rust and Python; --check runs it on a bare Debian 12",
        run: dist::run,
    },
    Task {
        name: "parity",
        usage: parity::USAGE,
        about: "compare training with OpenCLIP's numbers, switch by switch; writes ops/parity.md",
        run: parity::run,
    },
    Task {
        name: "gpu-page",
        usage: gpu_page::USAGE,
        about: "write ops/reports/gpu.md from what tests/gpu/run.sh measured",
        run: gpu_page::run,
    },
    Task {
        name: "test",
        usage: test::USAGE,
        about: "set up, then every check that a change must pass",
        run: test::run,
    },
];

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    match dispatch(&args) {
        Ok(code) => code,
        Err(error) => {
            // One line, outermost first: a set-up problem is read by somebody who has never seen this code.
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn dispatch(args: &[String]) -> Result<ExitCode> {
    let Some((name, rest)) = args.split_first() else {
        eprint!("{}", help());
        return Ok(ExitCode::from(2));
    };
    if matches!(name.as_str(), "help" | "-h" | "--help") {
        print!("{}", help());
        return Ok(ExitCode::SUCCESS);
    }
    let Some(task) = TASKS.iter().find(|task| task.name == name) else {
        eprint!("error: there is no `cargo xtask {name}`\n\n{}", help());
        return Ok(ExitCode::from(2));
    };
    if rest.iter().any(|arg| matches!(arg.as_str(), "-h" | "--help")) {
        println!("{}\n\nusage: cargo xtask {} {}", task.about, task.name, task.usage);
        return Ok(ExitCode::SUCCESS);
    }
    (task.run)(&Paths::find()?, rest)
}

fn help() -> String {
    let mut text = String::from("usage: cargo xtask COMMAND\n\n");
    for task in TASKS {
        let call = format!("{} {}", task.name, task.usage);
        text.push_str(&format!("  {call:<36} {}\n", task.about));
    }
    text
}

/// Switches of one command: each argument must be one of `known`, or the sentence says which there are.
fn parse_switches(task: &str, known: &[&str], args: &[String]) -> Result<Vec<bool>> {
    if let Some(unknown) = args.iter().find(|arg| !known.contains(&arg.as_str())) {
        anyhow::bail!(
            "`cargo xtask {task}` does not know `{unknown}`; it takes {}",
            known.join(", ")
        );
    }
    Ok(known
        .iter()
        .map(|switch| args.iter().any(|arg| arg == switch))
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn switches_given_in_any_order_are_found() {
        let args = ["--strict".to_owned()];
        assert_eq!(
            parse_switches("test", &["--long", "--strict"], &args).unwrap(),
            [false, true]
        );
    }

    #[test]
    fn switches_with_an_unknown_one_name_it_and_the_known() {
        let args = ["--ofline".to_owned()];
        let text = parse_switches("setup", &["--offline"], &args).unwrap_err().to_string();
        assert!(text.contains("--ofline") && text.contains("--offline"), "{text}");
    }

    #[test]
    fn help_lists_every_task_once() {
        for task in TASKS {
            let lines = help()
                .lines()
                .filter(|line| line.split_whitespace().next() == Some(task.name))
                .count();
            assert_eq!(lines, 1, "{}", task.name);
        }
    }
}
