//! `argosy sim`: what a fleet would do, or a small world in which faults try to break the brains.

use crate::args::{Format, SimArgs};
use crate::fail::{Failure, Outcome};
use crate::listing;
use crate::out::{self, Table};
use argosy_common::exit::Exit;
use argosy_common::rules::Shipped;
use argosy_common::shape::{LANES_MAX, default_lanes};
use argosy_sim::fleet::{self, FaultsFile, Fleet, Goodput, Mode, Sizing};
use argosy_sim::{Config, Fault, FaultKind, run_with, schedule, shrink};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// Mean lives of a worker, in hours, that the figures are repeated for.
const RATE_HOURS: [u64; 6] = [12, 24, 96, 384, 1_536, 0];
/// What takes longer than this shows how far it is.
const QUIET: Duration = Duration::from_secs(2);

pub(crate) fn run(args: &SimArgs) -> Outcome<Exit> {
    match args.workers {
        Some(workers) => size(args, workers),
        None => worlds(args),
    }
}

fn size(args: &SimArgs, workers: u32) -> Outcome<Exit> {
    let fleet = fleet_of(args, workers)?;
    let began = Instant::now();
    let clock = || began.elapsed().as_nanos() as u64;
    let mut said = Instant::now();
    let mut progress = |done: u64, all: u64| {
        if began.elapsed() > QUIET && said.elapsed() > QUIET {
            said = Instant::now();
            out::say(&format!("simulated {done} of {all} steps"));
        }
    };
    let mut sizing = fleet::size(&fleet, &clock, &mut progress);
    if !args.no_rates {
        let lives: Vec<u64> = RATE_HOURS.iter().map(|h| h * 3_600).collect();
        if began.elapsed() > QUIET {
            out::say("simulating other failure rates");
        }
        let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        sizing.rates = fleet::rates(&fleet, &lives, threads, &|done| {
            if began.elapsed() > QUIET {
                out::say(&format!("simulated {done} of {} failure rates", lives.len()));
            }
        });
    }
    listing::print(args.output.output, &sizing, Some("rates"), |_| table(&sizing))?;
    out::hint("next: --faults FILE lets machines come and go as yours do");
    Ok(Exit::Ok)
}

fn fleet_of(args: &SimArgs, workers: u32) -> Outcome<Fleet> {
    let usage = |message: String| Failure::new(Exit::Usage, message);
    let batch = args.batch.unwrap_or_else(|| workers.saturating_mul(64));
    let lanes = args.lanes.unwrap_or_else(|| default_lanes(batch, workers));
    if lanes == 0 || lanes > LANES_MAX || !batch.is_multiple_of(lanes) {
        return Err(usage(format!(
            "--lanes {lanes} must divide --batch {batch} and be between 1 and {LANES_MAX}"
        )));
    }
    let faults = match &args.faults {
        None => FaultsFile::default(),
        Some(path) => {
            let text = std::fs::read_to_string(path).map_err(|e| Failure::io("read", path, &e))?;
            FaultsFile::parse(&text).map_err(|e| Failure::new(Exit::BadConfig, format!("{}: {e}", path.display())))?
        }
    };
    Ok(Fleet {
        workers,
        shards: args.shards,
        samples: args.samples,
        lanes,
        batch,
        step_ms: args.step_ms,
        steps_max: 0,
        faults,
        seed: args.seed,
        mode: Mode::Lazy,
    })
}

fn percent(share: f64) -> String {
    format!("{:.1} %", share * 100.0)
}

/// Argosy's goodput, and how far it can be trusted.
fn with_spread(g: &Goodput) -> String {
    match g.argosy_pm {
        Some(pm) => format!("{} +- {:.1}", percent(g.argosy), pm * 100.0),
        None => percent(g.argosy),
    }
}

fn micros(us: f64) -> String {
    match us {
        long if long >= 1e3 => format!("{:.1} ms", long / 1e3),
        short => format!("{short:.1} us"),
    }
}

fn seconds(ms: u64) -> String {
    format!("{:.2} s", ms as f64 / 1e3)
}

fn table(s: &Sizing) -> String {
    let mut table = Table::new(&["simulated", "value"]);
    let mut row = |what: &str, value: String| table.row(&[what.into(), value]);
    row("workers, simulated", s.workers.to_string());
    row("steps, simulated", s.steps.to_string());
    row("time, simulated", format!("{:.2} h", s.hours));
    row("epochs per day, simulated", format!("{:.2}", s.epochs_per_day));
    row("samples per second, simulated", format!("{:.0}", s.samples_per_second));
    row("goodput, simulated", with_spread(&s.goodput));
    let saved = |share: f64, every: u64| format!("{}, saved every {every} steps", percent(share));
    let g = &s.goodput;
    row(
        "  stop-the-world restart, simulated",
        saved(g.stop_the_world, g.stop_the_world_every_steps),
    );
    row(
        "  checkpoint restart, simulated",
        saved(g.checkpoint_restart, g.checkpoint_restart_every_steps),
    );
    row("workers lost, simulated", s.losses.to_string());
    row("generations, simulated", s.generations.to_string());
    row("gone back to a checkpoint, simulated", s.resumed.to_string());
    row("checkpoints, simulated", s.checkpoints.to_string());
    row("recovery p50, simulated", seconds(s.recovery_p50_ms));
    row("recovery p99, simulated", seconds(s.recovery_p99_ms));
    row("stall of a join p50, simulated", seconds(s.join_p50_ms));
    row("decisions p50, this machine", micros(s.decision_p50_us));
    row("decisions p99, this machine", micros(s.decision_p99_us));
    for kind in &s.decisions_by_kind {
        let (p50, p99, max) = (micros(kind.p50_us), micros(kind.p99_us), micros(kind.max_us));
        let value = format!("p50 {p50}, p99 {p99}, slowest {max}");
        row(&format!("  {} that {}", kind.count, kind.what), value);
    }
    row(
        "store writes per second, simulated",
        format!("{:.3}", s.store_writes_per_second),
    );
    row(
        "largest record, simulated",
        format!("{} KB", s.record_bytes_max / 1_000),
    );
    row(
        "control bytes per worker and second, simulated",
        format!("{:.0}", s.bytes_per_worker_per_second),
    );
    row(
        "ledgers in memory at most, simulated",
        format!("{:.0} KB", s.ledger_bytes as f64 / 1e3),
    );
    row(
        "shards per worker and pass, simulated",
        format!("<= {}", s.shards_per_worker),
    );
    let mut text = table.render();
    if !s.rates.is_empty() {
        let mut rates = Table::new(&[
            "mean life, simulated",
            "a loss every",
            "losses",
            "argosy",
            "stop the world",
            "checkpoint restart",
        ]);
        let life = |g: &Goodput| {
            if g.mean_life_h == 0.0 {
                "no losses".into()
            } else {
                format!("{:.0} h", g.mean_life_h)
            }
        };
        for g in &s.rates {
            rates.row(&[
                life(g),
                format!("{:.0} s", g.loss_every_s),
                g.losses.to_string(),
                with_spread(g),
                percent(g.stop_the_world),
                percent(g.checkpoint_restart),
            ]);
        }
        text += "\n";
        text += &rates.render();
    }
    text
}

/// One world, or many: the faults that changed something by kind, and whatever did not hold.
fn worlds(args: &SimArgs) -> Outcome<Exit> {
    let began = Instant::now();
    let machines = !matches!(args.output.output, Format::Table | Format::Wide);
    let mut said = Instant::now();
    let mut effective = BTreeMap::<FaultKind, u64>::new();
    let mut broken = 0u64;
    let (mut worlds, mut events, mut checks) = (0u64, 0u64, 0u64);
    for seed in args.seed..args.seed.saturating_add(args.worlds) {
        let config = Config {
            log: args.story,
            ..Config::for_seed(seed)
        };
        let faults = match args.fault.is_empty() {
            true => schedule(seed, &config),
            false => args.fault.clone(),
        };
        let outcome = run_with::<Shipped>(seed, &config, &faults);
        worlds += 1;
        events += outcome.events;
        checks += outcome.checks;
        for (kind, count) in &outcome.effective {
            *effective.entry(*kind).or_default() += count;
        }
        for line in &outcome.log {
            out::data(&format!("{line}\n"))?;
        }
        if args.worlds == 1 && machines {
            listing::print(args.output.output, &outcome, None, |_| String::new())?;
        }
        if let Some(violation) = &outcome.violation {
            broken += 1;
            let id = &violation.id;
            out::say(&format!(
                "{} seed {seed}: {id} at {} ms: {}",
                out::style("violated:", out::RED),
                violation.at_ms,
                violation.detail
            ));
            let enough = if args.fault.is_empty() {
                shrink::<Shipped>(seed, &config)
            } else {
                faults
            };
            out::say(&format!(
                "see it again: argosy sim --seed {seed} --story{}",
                said_faults(&enough)
            ));
        }
        if began.elapsed() > QUIET && said.elapsed() > QUIET {
            said = Instant::now();
            let total: u64 = effective.values().sum();
            out::say(&format!(
                "{worlds} of {} worlds, {total} effective faults, {broken} broken",
                args.worlds
            ));
        }
    }
    if machines && args.worlds > 1 {
        let total: u64 = effective.values().sum();
        let report = serde_json::json!({
            "simulated": true, "seed": args.seed, "worlds": worlds, "broken": broken, "events": events, "checks": checks,
            "effective_faults": total, "effective_by_kind": effective,
        });
        listing::machines(args.output.output, report, None)?;
    } else if !machines {
        let mut table = Table::new(&["effective faults, simulated", "count"]);
        for (kind, count) in &effective {
            table.row(&[kind.name().into(), count.to_string()]);
        }
        table.row(&["all".into(), effective.values().sum::<u64>().to_string()]);
        out::data(&table.render())?;
        out::say(&format!(
            "{worlds} worlds, {events} events, {checks} checks, {broken} broken"
        ));
    }
    out::hint(&match (broken, args.worlds, args.story) {
        (0, 1, false) => "next: --story tells what happened, --worlds 200 tries other seeds".to_owned(),
        (0, 1, true) => {
            "next: --fault KIND@MS:WHO:FOR_MS changes what befalls it, --worlds 200 tries other seeds".to_owned()
        }
        (0, ..) => format!(
            "next: --seed {} goes on with the seeds behind these",
            args.seed.saturating_add(args.worlds)
        ),
        _ => "next: run one of the commands above and read the story up to the line before `violated`".to_owned(),
    });
    Ok(if broken == 0 { Exit::Ok } else { Exit::JobFailed })
}

fn said_faults(faults: &[Fault]) -> String {
    faults.iter().map(|f| format!(" --fault {f}")).collect()
}
