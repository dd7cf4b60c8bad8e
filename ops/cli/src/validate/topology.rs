//! How the parts of a job fit together: what each by itself allows and together wastes or never happens.

use super::{Finding, Verdict};
use crate::run::plan;
use argosy_common::config::Job;
use argosy_common::shape::default_lanes;

/// Rows of a lane below which BatchNorm's statistics are too thin (rule BN1).
const BATCH_NORM_ROWS_MIN: u32 = 8;

pub(super) fn check(job: &Job) -> Vec<Finding> {
    vec![lanes(job), micro_batch(job), checkpoints(job), evaluation(job)]
}

fn finding(check: &'static str, problem: Option<String>, fine: String) -> Finding {
    match problem {
        Some(problem) => Finding::new("topology", check, Verdict::Warning, problem),
        None => Finding::new("topology", check, Verdict::Ok, fine),
    }
}

fn lanes(job: &Job) -> Finding {
    let (batch, workers) = (job.train.global_batch, &job.workers);
    let lanes = job.train.lanes.unwrap_or_else(|| default_lanes(batch, workers.max));
    let problem = plan::judge_lanes(lanes, workers).or_else(|| {
        let thin = batch / lanes < BATCH_NORM_ROWS_MIN;
        thin.then(|| {
            format!(
                "{} rows a lane are too few for a ResNet's BatchNorm ({BATCH_NORM_ROWS_MIN})",
                batch / lanes
            )
        })
    });
    let balance = |n| plan::calc_balance(lanes, n);
    let fine = format!(
        "{lanes} lanes of {} rows; balance {:.2} on {}, {:.2} on {}, {:.2} on {} workers",
        batch / lanes,
        balance(workers.min),
        workers.min,
        balance(workers.target),
        workers.target,
        balance(workers.max),
        workers.max
    );
    finding("lanes", problem, fine)
}

fn micro_batch(job: &Job) -> Finding {
    let share = job.train.global_batch.div_ceil(job.workers.min.max(1));
    match job.train.micro_batch {
        Some(rows) if rows >= share => {
            let problem =
                format!("train.micro_batch = {rows} changes nothing: no worker ever has more than {share} rows");
            finding("micro-batches", Some(problem), String::new())
        }
        Some(rows) => finding("micro-batches", None, format!("{rows} rows at once, features first")),
        None => finding(
            "micro-batches",
            None,
            format!("up to {share} rows at once, all that a worker has"),
        ),
    }
}

fn checkpoints(job: &Job) -> Finding {
    let c = &job.checkpoint;
    let problem = if c.every_samples == 0 && c.every_s == 0 {
        Some("none before the end: set checkpoint.every_samples or checkpoint.every_s".to_owned())
    } else if c.keep_every_samples > 0 && c.keep_last == 0 {
        Some("checkpoint.keep_every_samples changes nothing: keep_last = 0 keeps all".to_owned())
    } else {
        None
    };
    finding("checkpoints", problem, plan::cadence(c, job.train.global_batch))
}

fn evaluation(job: &Job) -> Finding {
    let (e, c) = (&job.evaluation, &job.checkpoint);
    let rarely = c.every_s == 0 && c.every_samples > e.every_samples && e.every_samples > 0;
    let problem = if e.sets.is_empty() && e.every_samples > 0 {
        Some("evaluation.every_samples changes nothing: there are no evaluation.sets".to_owned())
    } else if rarely {
        Some(format!(
            "only committed checkpoints are evaluated, and those come every {} positions, not every {}",
            c.every_samples, e.every_samples
        ))
    } else {
        None
    };
    let fine = match e.sets.len() {
        0 => "none beside the training".to_owned(),
        n => format!("{n} sets, beside the training"),
    };
    finding("evaluation", problem, fine)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn warned(more: &str) -> Vec<&'static str> {
        let text = "version = 1\nname = \"a\"\n[model]\nname = \"m\"\n[data]\nsources = [{ shards = \"x\" }]\n";
        let job = Job::from_toml("j", &format!("{text}{more}")).unwrap();
        let findings = check(&job).into_iter().filter(|f| f.verdict == Verdict::Warning);
        findings.map(|f| f.check).collect()
    }

    #[test]
    fn parts_that_cancel_each_other_are_warned_of() {
        let good = "[checkpoint]\nevery_s = 60\n[workers]\nmax = 4\n";
        assert_eq!(warned(&format!("[train]\n{good}")), [""; 0]);
        assert_eq!(warned("[train]\n[workers]\nmax = 4\n"), ["checkpoints"]);
        assert_eq!(warned(&format!("[train]\nlanes = 2\n{good}")), ["lanes"]);
        assert_eq!(
            warned(&format!("[train]\nmicro_batch = 999\n{good}")),
            ["micro-batches"]
        );
        assert_eq!(
            warned(&format!("[train]\n{good}[evaluation]\nevery_samples = 5\n")),
            ["evaluation"]
        );
        let rare = "[checkpoint]\nevery_samples = 900\n[workers]\nmax = 4\n[evaluation]\nevery_samples = 5\n\
                    [[evaluation.sets]]\nname = \"a\"\ndata = \"d\"\nclasses = \"c\"\ntemplates = \"t\"\n";
        assert_eq!(warned(&format!("[train]\n{rare}")), ["evaluation"]);
    }
}
