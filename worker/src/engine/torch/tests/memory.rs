//! A real lack of memory, by the pool's limit.

use super::*;
use argosy_torch_ext::{pool_limit, pool_stats};

/// Says to this very test that it is the child.
const ALONE: &str = "ARGOSY_TEST_WITH_LIMITED_MEMORY";

/// Runs a test in a process of its own, since the limit is the process's; true in that process.
fn alone(test: &str) -> bool {
    if std::env::var_os(ALONE).is_some() {
        return true;
    }
    let own = std::env::current_exe().unwrap();
    let name = format!("{}::{test}", module_path!().split_once("::").unwrap().1);
    let ended = std::process::Command::new(own)
        .args([&name, "--exact", "--nocapture"])
        .env(ALONE, "1")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&ended.stdout).into_owned() + &String::from_utf8_lossy(&ended.stderr);
    assert!(ended.status.success() && said.contains("1 passed"), "{said}");
    false
}

/// Rows whose tiles of logits take megabytes, four tiles of up to 1024 squared.
const ROWS: usize = 2000;
const TILE_BYTES: u64 = 4 << 20;

#[test]
fn engine_short_of_memory_in_the_losss_second_phase_gives_up_what_it_kept_and_goes_on() {
    if !alone("engine_short_of_memory_in_the_losss_second_phase_gives_up_what_it_kept_and_goes_on") {
        return;
    }
    let (mut roomy, batch) = (engine(3), batch(ROWS));
    let want = forward_backward(&mut roomy, &batch, usize::MAX);
    assert!(roomy.take_notices().is_empty());
    let own: Vec<u32> = (0..ROWS as u32).collect();
    // Room for the kept logits but for no tile beside them, then for no tile beside the kept activations either.
    for activations_too in [false, true] {
        let mut short = engine(3);
        let (empty, _) = pool_stats(true);
        let out = short.encode(&batch.rows(), usize::MAX).unwrap();
        let encoded = pool_stats(false).0;
        let lse = short.own_lse(&own, ROWS, &out.f, &out.g).unwrap();
        let (begun, _) = pool_stats(false);
        assert!(
            begun - encoded >= 3 * TILE_BYTES,
            "the logits are kept: {encoded}, {begun}"
        );
        assert!(
            encoded - empty > 8 * TILE_BYTES,
            "so are activations: {empty}, {encoded}"
        );
        let limit = if activations_too { encoded } else { begun };
        pool_limit(limit + TILE_BYTES / 2);
        let (r, c, diag) = (&lse.r, &lse.c, &lse.diag);
        let got = short.loss_backward(&GatheredLse { r, c, diag });
        pool_limit(0);
        let got = got.unwrap().loss;
        assert!((want - got).abs() < 1e-5, "{want} and {got}");
        let difference = apart(short.grads_flat().unwrap(), roomy.grads_flat().unwrap());
        assert!(difference < 1e-5, "{difference}");
        let notices = short.take_notices();
        if activations_too {
            assert!(notices[0].contains(&format!("{ROWS} rows")), "{notices:?}");
        }
    }
}

#[test]
fn engine_short_of_memory_in_the_losss_first_phase_keeps_no_logits_and_goes_on() {
    if !alone("engine_short_of_memory_in_the_losss_first_phase_keeps_no_logits_and_goes_on") {
        return;
    }
    let (mut engine, batch) = (engine(3), batch(ROWS));
    let own: Vec<u32> = (0..ROWS as u32).collect();
    let out = engine.encode(&batch.rows(), usize::MAX).unwrap();
    let want = engine.own_lse(&own, ROWS, &out.f, &out.g).unwrap();
    let out = engine.encode(&batch.rows(), usize::MAX).unwrap();
    // A tile and what is made of it, not four.
    pool_limit(pool_stats(true).0 + 3 * TILE_BYTES);
    let got = engine.own_lse(&own, ROWS, &out.f, &out.g);
    pool_limit(0);
    assert_eq!(got.unwrap(), want);
    assert!(engine.take_notices().is_empty(), "no activation was given up for it");
}
