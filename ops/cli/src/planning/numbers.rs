//! The arithmetic of a plan.

use crate::fail::{Failure, Outcome};
use crate::out::{self, Table};
use crate::run::folder::Model;
use crate::run::plan::{cadence, calc_balance, judge_lanes};
use argosy_common::config::Job;
use argosy_common::exit::Exit;
use argosy_common::shape::{RunShape, SourceShape};
use serde::Serialize;

/// What is known of the data.
#[derive(Clone, Debug)]
pub(super) struct Data {
    /// Of one pass.
    pub(super) rows: u64,
    pub(super) shards: Option<u64>,
    pub(super) bytes: Option<u64>,
}

/// How fast one worker is.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct Speed {
    pub(super) images_per_second: f64,
    /// `given`, or the run that it was measured in.
    pub(super) source: String,
}

#[derive(Debug, Serialize)]
pub(super) struct Plan {
    version: u32,
    job: String,
    rows: u64,
    shards: Option<u64>,
    bytes: Option<u64>,
    /// Positions of the whole run.
    positions: u64,
    steps: u64,
    batch: u32,
    lanes: u32,
    window_factor: u32,
    /// Bytes that the whole run reads from the shards, if nothing is kept: what a pass has, times the passes.
    bytes_read: Option<u64>,
    parameters: Option<u64>,
    /// Bytes of one checkpoint.
    state_bytes: Option<u64>,
    checkpoint: String,
    speed: Option<Speed>,
    price_per_worker_hour: Option<f64>,
    sizes: Vec<Size>,
    #[serde(skip)]
    pub(super) warnings: Vec<String>,
}

/// The job on one number of workers.
#[derive(Debug, Serialize)]
struct Size {
    size: &'static str,
    workers: u32,
    /// Workers without a lane.
    spares: u32,
    /// Rows of a step that the worker with the most lanes has, and the one with the fewest.
    step_rows_max: u32,
    step_rows_min: u32,
    /// Positions of the whole run on the worker with the most lanes.
    samples_per_worker: u64,
    /// Even share of the data's bytes, in all passes.
    bytes_per_worker: Option<u64>,
    balance: f64,
    images_per_second: Option<f64>,
    days: Option<f64>,
    cost: Option<f64>,
}

impl Plan {
    /// `job` is frozen: it has its lanes and its window factor.
    pub(super) fn new(
        job: &Job,
        data: &Data,
        model: Option<&Model>,
        speed: Option<Speed>,
        price: Option<f64>,
    ) -> Outcome<Self> {
        let (batch, lanes) = (job.train.global_batch, job.train.lanes.unwrap_or(1).max(1));
        let epoch = job.data.train_num_samples.unwrap_or(data.rows);
        let positions = job.train.epochs.checked_mul(epoch).filter(|t| *t <= i64::MAX as u64);
        let positions = positions.ok_or_else(|| {
            let message = format!(
                "train.epochs is {}, too many for epochs of {epoch} positions",
                job.train.epochs
            );
            Failure::new(Exit::BadConfig, message)
        })?;
        let shape = RunShape {
            seed: job.seed,
            sources: Vec::<SourceShape>::new(),
            batch,
            lanes,
            window_factor: job.data.window_factor,
            total_positions: positions,
        };
        let passes = positions as f64 / data.rows.max(1) as f64;
        let mut plan = Self {
            version: 1,
            job: job.name.clone(),
            rows: data.rows,
            shards: data.shards,
            bytes: data.bytes,
            positions,
            steps: shape.total_steps(),
            batch,
            lanes,
            window_factor: job.data.window_factor,
            bytes_read: data.bytes.map(|bytes| (bytes as f64 * passes) as u64),
            parameters: model.map(|m| m.parameters),
            state_bytes: model.map(|m| m.state_bytes),
            checkpoint: cadence(&job.checkpoint, batch),
            speed,
            price_per_worker_hour: price,
            sizes: Vec::new(),
            warnings: judge_lanes(lanes, &job.workers).into_iter().collect(),
        };
        if plan.steps <= job.train.warmup {
            let (steps, warmup) = (plan.steps, job.train.warmup);
            plan.warnings.push(format!(
                "the run has {steps} steps and train.warmup is {warmup}: the peak is never reached"
            ));
        }
        let w = &job.workers;
        let sizes = [("min", w.min), ("target", w.target), ("max", w.max)];
        plan.sizes = sizes
            .into_iter()
            .map(|(name, workers)| plan.size(name, workers))
            .collect();
        Ok(plan)
    }

    fn size(&self, size: &'static str, workers: u32) -> Size {
        let members = workers.clamp(1, self.lanes);
        let rows = self.batch / self.lanes;
        let balance = calc_balance(self.lanes, workers);
        let (most, fewest) = (self.lanes.div_ceil(members), self.lanes / members);
        // A step takes as long as its largest share.
        let images_per_second = self
            .speed
            .as_ref()
            .map(|s| s.images_per_second * f64::from(members) * balance);
        let seconds = images_per_second.map(|speed| self.positions as f64 / speed);
        let hours = |seconds: f64| seconds / 3600.0 * f64::from(workers);
        Size {
            size,
            workers,
            spares: workers - members,
            step_rows_max: most * rows,
            step_rows_min: fewest * rows,
            samples_per_worker: (self.positions as f64 * f64::from(most) / f64::from(self.lanes)).ceil() as u64,
            bytes_per_worker: self.bytes_read.map(|bytes| bytes / u64::from(members)),
            balance,
            images_per_second,
            days: seconds.map(|s| s / 86_400.0),
            cost: seconds
                .zip(self.price_per_worker_hour)
                .map(|(s, price)| hours(s) * price),
        }
    }

    pub(super) fn text(&self, wide: bool) -> String {
        let unknown = || "unknown".to_owned();
        let mut table = Table::new(&["plan", ""]).left();
        let mut line = |name: &str, value: String| table.row(&[name.to_owned(), value]);
        let shards = self
            .shards
            .map_or_else(String::new, |n| format!(" in {} shards", out::count(n)));
        let bytes = self.bytes.map_or_else(String::new, |n| format!(", {}", out::bytes(n)));
        line("data", format!("{} rows{shards}{bytes}", out::count(self.rows)));
        line("positions", out::count(self.positions));
        line(
            "steps",
            format!(
                "{} of {} rows",
                out::count(self.steps),
                out::count(u64::from(self.batch))
            ),
        );
        line("lanes", format!("{} of {} rows", self.lanes, self.batch / self.lanes));
        if let Some(bytes) = self.bytes_read {
            line("read", format!("{} in all passes, without a cache", out::bytes(bytes)));
        }
        line(
            "model",
            self.parameters
                .map_or_else(unknown, |n| format!("{} parameters", out::count(n))),
        );
        let state = self
            .state_bytes
            .map_or_else(String::new, |n| format!("{} ", out::bytes(n)));
        line("checkpoint", format!("{state}{}", self.checkpoint));
        line(
            "speed",
            match &self.speed {
                Some(speed) => format!("{:.1} images/s a worker ({})", speed.images_per_second, speed.source),
                None => "unknown: say --speed, or --run with a run to take it from".to_owned(),
            },
        );
        format!("{}\n{}", table.render(), self.table(wide))
    }

    fn table(&self, wide: bool) -> String {
        let head = [
            "workers",
            "",
            "rows/step",
            "samples",
            "bytes",
            "balance",
            "days",
            "cost",
        ];
        let mut table = Table::new(&head).wide(&["spares", "fewest rows/step", "images/s"]);
        let number = |n: Option<f64>, digits: usize| n.map_or_else(|| "-".to_owned(), |n| format!("{n:.digits$}"));
        for size in &self.sizes {
            table.row(&[
                size.size.to_owned(),
                size.workers.to_string(),
                out::count(u64::from(size.step_rows_max)),
                out::count(size.samples_per_worker),
                size.bytes_per_worker.map_or_else(|| "-".to_owned(), out::bytes),
                format!("{:.2}", size.balance),
                number(size.days, 2),
                number(size.cost, 2),
                size.spares.to_string(),
                out::count(u64::from(size.step_rows_min)),
                number(size.images_per_second, 1),
            ]);
        }
        table.render_as(wide)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn job(more: &str) -> Job {
        let text =
            "version = 1\nname = \"a\"\n[model]\nname = \"m\"\n[data]\nsources = [{ shards = \"x\" }]\n[train]\n";
        Job::from_toml("j", &format!("{text}{more}")).unwrap()
    }

    fn plan(job: &Job, speed: Option<f64>) -> Plan {
        let data = Data {
            rows: 1_000,
            shards: Some(4),
            bytes: Some(50_000),
        };
        let speed = speed.map(|images_per_second| Speed {
            images_per_second,
            source: "given".into(),
        });
        Plan::new(job, &data, None, speed, Some(2.0)).unwrap()
    }

    #[test]
    fn plan_counts_steps_shares_days_and_cost_by_hand() {
        let job =
            job("global_batch = 64\nlanes = 8\nepochs = 3\nwarmup = 5\n[workers]\nmin = 1\ntarget = 3\nmax = 16\n");
        let plan = plan(&job, Some(10.0));
        // 3,000 positions over 8 lanes: 375 each, 47 steps of 8 rows a lane.
        assert_eq!(
            (plan.positions, plan.steps, plan.bytes_read),
            (3_000, 47, Some(150_000))
        );
        let [min, target, max] = &plan.sizes[..] else {
            panic!("three sizes")
        };
        assert_eq!((min.step_rows_max, min.samples_per_worker, min.spares), (64, 3_000, 0));
        // 8 lanes on 3 workers: 3, 3 and 2.
        assert_eq!(
            (target.step_rows_max, target.step_rows_min, target.samples_per_worker),
            (24, 16, 1_125)
        );
        assert!((target.balance - 8.0 / 9.0).abs() < 1e-12);
        // At 10 images/s the largest share takes 2.4 s of a step: 64 rows in 2.4 s.
        assert!((target.images_per_second.unwrap() - 64.0 / 2.4).abs() < 1e-9);
        let hours = 3_000.0 / (64.0 / 2.4) / 3600.0;
        assert!((target.cost.unwrap() - hours * 3.0 * 2.0).abs() < 1e-9);
        // Spares cost and do not train.
        assert_eq!((max.workers, max.spares, max.step_rows_max), (16, 8, 8));
        assert!((max.cost.unwrap() / 2.0 / 16.0 - 3_000.0 / 80.0 / 3600.0).abs() < 1e-9);
    }

    #[test]
    fn plan_without_speed_has_neither_days_nor_cost_and_warns_of_a_warmup_that_never_ends() {
        let plan = plan(&job("global_batch = 64\nwarmup = 500\n"), None);
        assert!(plan.sizes.iter().all(|s| s.days.is_none() && s.cost.is_none()));
        assert!(
            plan.warnings.iter().any(|w| w.contains("train.warmup is 500")),
            "{:?}",
            plan.warnings
        );
        assert!(plan.text(true).contains("SPARES") && !plan.text(false).contains("SPARES"));
    }

    #[test]
    fn plan_of_more_positions_than_can_be_counted_is_refused() {
        let job = job("epochs = 9223372036854775807\n");
        let data = Data {
            rows: 1 << 40,
            shards: None,
            bytes: None,
        };
        let error = Plan::new(&job, &data, None, None, None).unwrap_err();
        assert!(error.message.contains("train.epochs"), "{}", error.message);
    }
}
