//! What length groups are worth: forward and backward of a text tower over captions cut into groups by many costs a group,
//! in turn, beside the cost that training takes:
//! `bench_text WIDTH HEADS LAYERS BATCH CAPTIONS THREADS ROUNDS` prints one JSON object.
#![allow(clippy::print_stdout, reason = "its output is its result")]

use anyhow::{Context, Result, ensure};
use argosy_shard_loader::Tokenizer;
use argosy_worker::clip::groups::by_length;
use argosy_worker::clip::text::group_cost;
use argosy_worker::clip::{ModelConfig, Preprocess};
use argosy_worker::engine::{Engine, GatheredLse, RowsIn, TorchEngine, TorchOptions};
use std::collections::BTreeMap;
use std::time::Instant;

/// Costs that are tried; the last makes one group of all.
const COSTS: [usize; 10] = [1, 2, 4, 8, 16, 32, 64, 128, 256, 1 << 40];
const CONTEXT: usize = 77;

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let number = |at: usize| args.get(at).and_then(|a| a.parse::<usize>().ok()).filter(|n| *n > 0);
    let numbers = [0, 1, 2, 3, 5, 6].map(number);
    let [
        Some(width),
        Some(heads),
        Some(layers),
        Some(batch),
        Some(threads),
        Some(rounds),
    ] = numbers
    else {
        anyhow::bail!("bench_text WIDTH HEADS LAYERS BATCH CAPTIONS THREADS ROUNDS")
    };
    let captions = args.get(4).context("CAPTIONS")?;
    let text = std::fs::read_to_string(captions).with_context(|| captions.clone())?;
    let lines: Vec<&str> = text.lines().collect();
    ensure!(!lines.is_empty(), "{captions} is empty");
    let tokenizer = Tokenizer::new(CONTEXT);
    let (mut tokens, mut lengths) = (Vec::new(), Vec::new());
    for row in 0..batch {
        let mut ids = vec![0; CONTEXT];
        lengths.push(tokenizer.row(lines[row % lines.len()], &mut ids));
        tokens.extend(ids);
    }
    // Beside the text tower an image tower that costs next to nothing.
    let config = serde_json::json!({
        "embed_dim": 64,
        "vision_cfg": {"image_size": 32, "layers": 1, "width": 64, "patch_size": 32},
        "text_cfg": {"context_length": CONTEXT, "vocab_size": 49408, "width": width, "heads": heads, "layers": layers},
    });
    let (config, _) = ModelConfig::from_json(&config.to_string())?;
    let options = TorchOptions {
        threads,
        ..TorchOptions::default()
    };
    let mut engine = TorchEngine::new(&config, &Preprocess::default(), options)?;
    let pixels = vec![100u8; batch * 32 * 32 * 3];
    let rows = RowsIn {
        rows: batch,
        pixels: &pixels,
        tokens: &tokens,
        lengths: &lengths,
    };
    let own = group_cost(width as i64);
    let mut splits: BTreeMap<Vec<usize>, Tried> = BTreeMap::new();
    for cost in COSTS.into_iter().chain([own]) {
        // Costs that cut alike are one split.
        let groups = by_length(&lengths, cost);
        let ends: Vec<usize> = groups.iter().map(|group| group.longest).collect();
        let tried = splits.entry(ends).or_insert_with(|| Tried {
            cost,
            groups: groups.len(),
            positions: groups.iter().map(|g| g.longest * g.rows.len()).sum(),
            ours: false,
            seconds: Vec::new(),
        });
        tried.ours |= cost == own;
    }
    for round in 0..=rounds {
        for tried in splits.values_mut() {
            engine.set_group_cost(tried.cost);
            let seconds = step(&mut engine, &rows)?;
            if round > 0 {
                tried.seconds.push(seconds);
            }
        }
    }
    report(own, splits.into_values().collect())
}

struct Tried {
    cost: usize,
    groups: usize,
    /// Token positions that go through the tower.
    positions: usize,
    ours: bool,
    seconds: Vec<f64>,
}

fn report(own: usize, splits: Vec<Tried>) -> Result<()> {
    let middle = |values: &[f64]| {
        let mut sorted = values.to_vec();
        sorted.sort_by(f64::total_cmp);
        sorted[sorted.len() / 2]
    };
    let seconds: Vec<f64> = splits.iter().map(|t| middle(&t.seconds)).collect();
    let best = seconds.iter().copied().fold(f64::INFINITY, f64::min);
    let ours = splits.iter().position(|t| t.ours).context("no split of our own")?;
    let whole = splits.iter().position(|t| t.groups == 1).context("no single group")?;
    let list: Vec<_> = splits
        .iter()
        .zip(&seconds)
        .map(|(t, s)| serde_json::json!({"cost": t.cost, "groups": t.groups, "positions": t.positions, "seconds": s}))
        .collect();
    let measured = cost_of_a_group(&splits, &seconds);
    println!(
        "{}",
        serde_json::json!({
            "cost": own, "measured_cost": measured, "over_best": seconds[ours] / best,
            "over_one_group": seconds[ours] / seconds[whole], "splits": list,
        })
    );
    Ok(())
}

/// What a group costs in token positions: least squares of `seconds = a + b positions + c groups` over all splits; `c / b`.
fn cost_of_a_group(splits: &[Tried], seconds: &[f64]) -> f64 {
    let n = splits.len() as f64;
    let mean = |values: &dyn Fn(usize) -> f64| (0..splits.len()).map(values).sum::<f64>() / n;
    let (x, y) = (
        |i: usize| splits[i].positions as f64,
        |i: usize| splits[i].groups as f64,
    );
    let (mx, my, ms) = (mean(&x), mean(&y), mean(&|i| seconds[i]));
    let dot = |a: &dyn Fn(usize) -> f64, b: &dyn Fn(usize) -> f64| (0..splits.len()).map(|i| a(i) * b(i)).sum::<f64>();
    let (dx, dy, ds) = (|i: usize| x(i) - mx, |i: usize| y(i) - my, |i: usize| seconds[i] - ms);
    let (xx, xy, yy, xs, ys) = (
        dot(&dx, &dx),
        dot(&dx, &dy),
        dot(&dy, &dy),
        dot(&dx, &ds),
        dot(&dy, &ds),
    );
    (xx * ys - xy * xs) / (yy * xs - xy * ys)
}

/// Seconds of one way there and back, without an update.
fn step(engine: &mut TorchEngine, rows: &RowsIn<'_>) -> Result<f64> {
    let own: Vec<u32> = (0..rows.rows as u32).collect();
    let start = Instant::now();
    let out = engine.encode(rows, usize::MAX)?;
    let lse = engine.own_lse(&own, rows.rows, &out.f, &out.g)?;
    let (r, c, diag) = (&lse.r, &lse.c, &lse.diag);
    engine.loss_backward(&GatheredLse { r, c, diag })?;
    Ok(start.elapsed().as_secs_f64())
}
