//! The plan of a run in a few lines, before anything starts.

use super::Prepared;
use crate::{index, out};
use argosy_common::config::{BudgetsConfig, CheckpointConfig, Job, WorkersConfig};

/// Lines of damaged data that are shown; the rest is counted.
const LEFT_OUT_MAX: usize = 8;

pub(crate) fn print(prepared: &Prepared) {
    for line in lines(prepared) {
        out::say(&line);
    }
    for line in warnings(prepared) {
        out::say(&format!("{} {line}", out::style("note:", out::YELLOW)));
    }
}

fn lines(p: &Prepared) -> Vec<String> {
    let (job, shape) = (&p.loaded.job, &p.shape);
    let shards = p.index.shards().count();
    let bytes: u64 = p.index.shards().map(|s| s.bytes).sum();
    let workers = job.workers.target;
    let every = cadence(&job.checkpoint, shape.batch);
    let mut lines = vec![
        format!("run    {} in {}", p.facts.run, p.dir.display()),
        format!(
            "data   {} rows in {shards} shards, {}",
            out::count(shape.pass_rows()),
            out::bytes(bytes)
        ),
        format!(
            "model  {} parameters, state {}, checkpoint {every}",
            out::count(p.model.parameters),
            out::bytes(p.model.state_bytes)
        ),
        format!(
            "plan   {} positions in {} steps of {} = {} lanes x {} rows",
            out::count(shape.total_positions),
            out::count(shape.total_steps()),
            shape.batch,
            shape.lanes,
            shape.lane_rows()
        ),
        format!(
            "       {workers} workers x {} threads, balance {:.2}",
            p.threads,
            calc_balance(shape.lanes, workers)
        ),
    ];
    let left_out = index::left_out(&p.index);
    for line in left_out.iter().take(LEFT_OUT_MAX) {
        lines.push(format!("       left out: {line}"));
    }
    if left_out.len() > LEFT_OUT_MAX {
        let more = left_out.len() - LEFT_OUT_MAX;
        lines.push(format!(
            "       left out: {more} more; see `argosy index --show {}`",
            p.index_path.display()
        ));
    }
    let repeated = index::repeated(&p.index);
    for line in repeated.iter().take(LEFT_OUT_MAX) {
        lines.push(format!("       note: {line}"));
    }
    if repeated.len() > LEFT_OUT_MAX {
        let more = repeated.len() - LEFT_OUT_MAX;
        lines.push(format!("       note: {more} more shards are named more than once"));
    }
    lines
}

/// When checkpoints are taken, in words.
pub(crate) fn cadence(checkpoint: &CheckpointConfig, batch: u32) -> String {
    let mut when = Vec::new();
    if checkpoint.every_samples > 0 {
        let steps = checkpoint.every_samples.div_ceil(u64::from(batch));
        when.push(format!("every {steps} steps"));
    }
    if checkpoint.every_s > 0 {
        when.push(format!("every {}", out::duration(checkpoint.every_s as f64)));
    }
    when.push("at the end".to_owned());
    when.join(" and ")
}

fn warnings(p: &Prepared) -> Vec<String> {
    let mut warnings = Vec::new();
    warnings.extend(judge_lanes(p.shape.lanes, &p.loaded.job.workers));
    if p.shape.pass_rows() < u64::from(p.shape.batch) {
        warnings.push("one step takes more rows than the data has: rows repeat within it".to_owned());
    }
    warnings.extend(locked_at_random(&p.loaded.job));
    if p.loaded.job.priority != 0 || p.loaded.job.budgets != BudgetsConfig::default() {
        warnings.push("nothing minds priority and [budgets] yet: there is no queue of jobs".to_owned());
    }
    warnings
}

/// Locked towers that no weights are given for: nobody would want those as they were drawn.
fn locked_at_random(job: &Job) -> Vec<String> {
    let (train, model) = (&job.train, &job.model);
    let towers = [
        (train.lock_image, &model.pretrained_image_path, "image"),
        (train.lock_text, &model.pretrained_text_path, "text"),
    ];
    let bare = |(locked, own, tower): (bool, &Option<String>, &str)| {
        let random = locked && own.is_none() && model.pretrained.is_none();
        random.then(|| {
            format!(
                "train.lock_{tower} locks a tower that was drawn at random: neither model.pretrained nor \
                 model.pretrained_{tower}_path gives it weights"
            )
        })
    };
    towers.into_iter().filter_map(bare).collect()
}

/// What is wrong with so many lanes for so many workers, if anything (rule L5).
pub(crate) fn judge_lanes(lanes: u32, workers: &WorkersConfig) -> Option<String> {
    if lanes < workers.target {
        let spare = workers.target - lanes;
        Some(format!(
            "{lanes} lanes for {} workers: {spare} will be spares",
            workers.target
        ))
    } else if u64::from(lanes) < 8 * u64::from(workers.max) {
        Some(format!(
            "{lanes} lanes are few for up to {} workers; a larger train.global_batch or a smaller workers.max balances better",
            workers.max
        ))
    } else {
        None
    }
}

/// Share of the slowest worker's time that an even split of lanes would take (rule L5: sum/max, per worker).
pub(crate) fn calc_balance(lanes: u32, workers: u32) -> f64 {
    let members = workers.clamp(1, lanes.max(1));
    f64::from(lanes) / f64::from(members) / f64::from(lanes.div_ceil(members).max(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn balance_is_one_when_lanes_divide_and_less_otherwise() {
        assert!((calc_balance(8, 2) - 1.0).abs() < 1e-9);
        assert!((calc_balance(8, 3) - 8.0 / 9.0).abs() < 1e-9);
        assert!((calc_balance(2, 5) - 1.0).abs() < 1e-9);
    }

    #[test]
    fn locked_tower_is_warned_about_only_where_no_weights_are_given_for_it() {
        let text = "version = 1\nname = \"lit\"\n[model]\nname = \"ViT-B-32\"\n\
                    [data]\nsources = [{ shards = \"00.tar\" }]\n[train]\nglobal_batch = 8\n";
        let mut job = Job::from_toml("job.toml", text).expect("a job");
        assert!(locked_at_random(&job).is_empty());
        (job.train.lock_image, job.train.lock_text) = (true, true);
        let said = locked_at_random(&job);
        assert!(
            said.len() == 2 && said[0].contains("train.lock_image") && said[1].contains("model.pretrained_text_path"),
            "{said:?}"
        );
        job.model.pretrained_image_path = Some("tower.pt".into());
        assert!(
            locked_at_random(&job)
                .iter()
                .all(|line| line.contains("train.lock_text"))
        );
        job.model.pretrained_image_path = None;
        job.model.pretrained = Some("whole.pt".into());
        assert!(locked_at_random(&job).is_empty());
    }
}
