//! Cutting a failing schedule down to the faults that matter (ddmin: Zeller and Hildebrandt, "Simplifying and Isolating
//! Failure-Inducing Input", TSE 2002).

use crate::{Config, Fault, run_with, schedule};
use argosy_common::rules::Rules;

/// The smallest schedule found that still violates the same invariant; empty if none is needed or nothing fails.
#[must_use]
pub fn shrink<R: Rules>(seed: u64, config: &Config) -> Vec<Fault> {
    let all = schedule(seed, config);
    let id = |faults: &[Fault]| run_with::<R>(seed, config, faults).violation.map(|v| v.id);
    match id(&all) {
        None => Vec::new(),
        Some(wanted) => minimize(all, |faults| id(faults).as_ref() == Some(&wanted)),
    }
}

/// A part of `all` that still fails, from which no single piece can be taken away.
fn minimize<T: Clone>(all: Vec<T>, fails: impl Fn(&[T]) -> bool) -> Vec<T> {
    if fails(&[]) {
        return Vec::new();
    }
    let mut kept = all;
    let mut pieces = 2;
    while kept.len() > 1 {
        let size = kept.len().div_ceil(pieces);
        let without = |i: usize| -> Vec<T> {
            let piece = i * size..(i + 1) * size;
            kept.iter()
                .enumerate()
                .filter(|(at, _)| !piece.contains(at))
                .map(|(_, f)| f.clone())
                .collect()
        };
        let smaller = (0..kept.len().div_ceil(size)).map(without).find(|part| fails(part));
        match smaller {
            Some(part) => {
                kept = part;
                pieces = (pieces - 1).max(2);
            }
            None if size == 1 => break,
            None => pieces = (pieces * 2).min(kept.len()),
        }
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn minimize_keeps_just_what_fails_together() {
        let fails = |part: &[u32]| part.contains(&3) && part.contains(&17);
        assert_eq!(minimize((0..40).collect(), fails), vec![3, 17]);
        assert!(minimize((0..40).collect(), |_: &[u32]| true).is_empty());
    }
}
