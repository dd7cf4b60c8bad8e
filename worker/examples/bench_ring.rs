//! Times the ring between processes on loopback: `bench_ring ELEMENTS RANKS ROUNDS [STEPS]` prints one JSON object.
//!
//! The parent starts itself once a rank, tells each where its neighbour listens, and takes every round's slowest rank.
#![allow(clippy::print_stdout, reason = "its output is its result")]

use anyhow::{Context, Result, ensure};
use argosy_common::ids::Generation;
use argosy_common::plan::generation_secret;
use argosy_rpc::frame::Fence;
use argosy_worker::collective::{AbortHandle, Collective, ring::RingCollective};
use argosy_worker::peer::{Hello, PeerServer, Purpose, connect};
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const SECRET: &[u8] = b"a secret of a bench on loopback";
const GENERATION: Generation = Generation(1);

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let number = |at: usize| args.get(at).and_then(|a| a.parse::<usize>().ok());
    let (elements, ranks, rounds) = (
        number(0).context("bench_ring ELEMENTS RANKS ROUNDS")?,
        number(1).filter(|n| *n > 1).context("RANKS from 2")?,
        number(2).filter(|n| *n > 0).context("ROUNDS from 1")?,
    );
    match number(3) {
        Some(rank) => member(rank, ranks, elements, rounds),
        None => parent(ranks, &args),
    }
}

fn parent(ranks: usize, args: &[String]) -> Result<()> {
    let program = std::env::current_exe()?;
    let start = |rank: usize| -> Result<(Child, BufReader<std::process::ChildStdout>)> {
        let mut command = Command::new(&program);
        command
            .args(args)
            .arg(rank.to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        let mut child = command.spawn()?;
        let out = child.stdout.take().context("no pipe")?;
        Ok((child, BufReader::new(out)))
    };
    let mut members: Vec<_> = (0..ranks).map(start).collect::<Result<_>>()?;
    let mut addrs = Vec::new();
    for (_, out) in &mut members {
        let mut line = String::new();
        out.read_line(&mut line)?;
        addrs.push(line);
    }
    for (rank, (child, _)) in members.iter_mut().enumerate() {
        let next = &addrs[(rank + 1) % ranks];
        child.stdin.take().context("no pipe")?.write_all(next.as_bytes())?;
    }
    let mut rounds: Vec<f64> = Vec::new();
    let mut abort_ms: Option<f64> = None;
    for (mut child, out) in members {
        for (at, line) in out.lines().enumerate() {
            let line = line?;
            match line.strip_prefix("abort ") {
                Some(ms) => abort_ms = Some(abort_ms.unwrap_or(0.0).max(ms.parse()?)),
                None => {
                    rounds.resize(rounds.len().max(at + 1), 0.0);
                    rounds[at] = rounds[at].max(line.parse()?);
                }
            }
        }
        ensure!(child.wait()?.success(), "a rank failed");
    }
    let abort_ms = abort_ms.context("no rank's own abort ended it: there is nothing to say of its time")?;
    let mut sorted = rounds.clone();
    sorted.sort_by(f64::total_cmp);
    let median = sorted[sorted.len() / 2];
    println!(
        "{}",
        serde_json::json!({"seconds": median, "rounds": rounds, "abort_ms": abort_ms})
    );
    Ok(())
}

fn member(rank: usize, ranks: usize, elements: usize, rounds: usize) -> Result<()> {
    let server = PeerServer::start(SECRET.to_vec())?;
    println!("{}", server.addr());
    let mut next = String::new();
    std::io::stdin().lock().read_line(&mut next)?;
    let abort = AbortHandle::new();
    let hello = Hello {
        generation: GENERATION,
        secret: generation_secret(SECRET, GENERATION),
        purpose: Purpose::Ring { from_rank: rank as u32 },
    };
    let next = connect(next.trim(), &hello, None, &abort)?;
    let prev = server.take_ring(GENERATION, ((rank + ranks - 1) % ranks) as u32, &abort)?;
    let fence = Fence {
        run: 1,
        generation: GENERATION.0,
        plan: 1,
        step: 0,
    };
    let mut ring = RingCollective::new(rank, ranks, fence, next, prev, abort.clone())?;
    let mut values = vec![1.0f32; elements];
    let mut seconds = Vec::new();
    for round in 0..=rounds {
        values.fill(1.0);
        ring.sentinel(true)?; // everybody is here
        let started = Instant::now();
        ring.all_reduce_sum(&mut values)?;
        if round > 0 {
            seconds.push(started.elapsed().as_secs_f64());
        }
    }
    ensure!(values.iter().all(|v| *v == ranks as f32), "the sum is wrong");
    for s in seconds {
        println!("{s}");
    }
    // Another thread aborts in mid transfer.
    let (told, heard) = std::sync::mpsc::channel();
    let aborter = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(30));
        let _ = told.send(Instant::now());
        abort.abort();
    });
    while ring.all_reduce_sum(&mut values).is_ok() {}
    let ended = Instant::now();
    // A neighbour's abort may have come first; then there is nothing to time here.
    if let Some(took) = heard.try_recv().ok().and_then(|at| ended.checked_duration_since(at)) {
        println!("abort {}", took.as_secs_f64() * 1e3);
    }
    aborter.join().ok().context("the aborting thread panicked")
}
