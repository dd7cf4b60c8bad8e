//! `ops/parity.md`.

use std::fmt::Write;

use serde_json::Value;

use super::cases::Case;
use super::{Entry, RUNS};

const HEAD: &str = "# Parity with OpenCLIP\n\nWritten by `cargo xtask parity --peers VENV`, never by hand. OpenCLIP trains each model for three steps; Argosy does \
the same\nfrom the same weights on the same batches, by one, two, three and five workers that share the rows unevenly, and by two\nin \
micro-batches of two rows.\nEach figure is the largest of all of these, as a share of what is allowed (`tests/bounds.toml`): 1 or less \
holds. A loss or\ngradient is held against OpenCLIP's in single precision or, where that is nearer its bound, in double precision: our\n\
error may be three times OpenCLIP's own.\n";

const MEASURES: [(&str, &str); 8] = [
    (
        "features",
        "normalised features of both towers in training, largest difference",
    ),
    ("loss", "loss of a step from OpenCLIP's parameters"),
    ("gradient", "its gradient, tensor by tensor, in the norm"),
    (
        "optimizer",
        "parameters after an update with OpenCLIP's gradients, largest difference",
    ),
    (
        "free_run",
        "parameters after three steps without help, in the norm and the largest difference",
    ),
    ("buffers", "BatchNorm's running statistics after a step"),
    ("eval_features", "features as in evaluation after the free run"),
    ("long_run_loss", "loss of every step of a run of 200"),
];

/// The page of a whole run.
pub(super) fn render(cases: &[Case], entries: &[Entry], golden: &Value, seed: u64) -> String {
    let failed = entries.iter().filter(|entry| !entry.holds).count();
    let verdict = if failed == 0 {
        "all hold".to_owned()
    } else {
        format!("**{failed} do not hold**")
    };
    let word = |key: &str| golden[key].as_str().unwrap_or("?").to_owned();
    let mut out = HEAD.to_owned();
    let _ = write!(
        out,
        "\n{} models, {} runs, {} comparisons: {verdict}. open_clip {}, torch {}, seed {seed}.\n\n",
        cases.len(),
        cases
            .iter()
            .map(|case| RUNS.iter().filter(|(workers, _)| *workers <= case.lanes).count())
            .sum::<usize>(),
        entries.len(),
        word("open_clip"),
        word("torch"),
    );
    for (name, about) in MEASURES {
        let _ = writeln!(out, "- `{name}`: {about}");
    }
    out += "\n| model |";
    for (name, _) in MEASURES {
        let _ = write!(out, " {} |", name.replace('_', " "));
    }
    out += "\n|---|---|---|---|---|---|---|---|---|\n";
    for case in cases {
        let _ = write!(out, "| {} |", case.name);
        for (name, _) in MEASURES {
            let own = entries
                .iter()
                .filter(|entry| entry.case == case.name && entry.measure == name);
            let _ = match own.map(share).reduce(f64::max) {
                Some(share) if share > 1.0 => write!(out, " **{share:.3}** |"),
                Some(share) => write!(out, " {share:.3} |"),
                None => write!(out, " |"),
            };
        }
        out.push('\n');
    }
    out += "\n## Models\n\n";
    for case in cases {
        let _ = writeln!(
            out,
            "- **{}**: {}. `dump.py {}`",
            case.name,
            case.about,
            case.args.join(" ")
        );
    }
    out
}

fn share(entry: &Entry) -> f64 {
    if entry.value == 0.0 {
        0.0
    } else {
        entry.value / entry.bound
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn page_shows_the_worst_of_a_cases_runs_and_marks_what_does_not_hold() {
        let cases = &super::super::cases::switches()[..1];
        let entry = |workers, value, holds| Entry {
            case: cases[0].name.clone(),
            workers,
            micro_batch: None,
            measure: "loss".into(),
            value,
            bound: 4.0,
            holds,
            at: "step0.loss".into(),
        };
        let golden = json!({"open_clip": "3.3.0", "torch": "2.11.0"});
        let page = render(cases, &[entry(1, 1.0, true), entry(2, 2.0, true)], &golden, 3);
        assert!(
            page.contains("| vit | | 0.500 |") && page.contains("2 comparisons: all hold"),
            "{page}"
        );
        let page = render(cases, &[entry(1, 1.0, true), entry(2, 8.0, false)], &golden, 3);
        assert!(page.contains("**2.000**") && page.contains("1 do not hold"), "{page}");
    }
}
