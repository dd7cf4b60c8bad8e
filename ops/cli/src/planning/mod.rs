//! `argosy plan`: what a job will do and cost, before anything starts.

mod measured;
mod numbers;

use crate::args::{JobArgs, OutputArgs};
use crate::fail::{Failure, Outcome};
use crate::job::{self, LoadedJob};
use crate::listing;
use crate::out::{self, Table};
use crate::run::{self, diff, folder};
use crate::scratch::Scratch;
use crate::worker;
use argosy_common::config::Job;
use argosy_common::exit::Exit;
use clap::Args;
use diff::Change;
use numbers::{Data, Plan, Speed};
use std::path::{Path, PathBuf};

#[derive(Debug, Args)]
pub(crate) struct PlanArgs {
    #[command(flatten)]
    pub(crate) job: JobArgs,
    /// A run, under way or ended: its speed is taken, and how its job differs from this one is told
    #[arg(long, value_name = "DIR")]
    pub(crate) run: Option<PathBuf>,
    /// Images a second of one worker [default: as measured in --run]
    #[arg(long, value_name = "IMAGES_PER_SECOND", value_parser = positive)]
    pub(crate) speed: Option<f64>,
    /// Price of one worker for an hour, in whatever money
    #[arg(long, value_name = "PRICE", value_parser = positive)]
    pub(crate) price: Option<f64>,
    /// Rows of one pass, for a plan without reading the shards
    #[arg(long, value_name = "ROWS", value_parser = clap::value_parser!(u64).range(1..=1 << 48))]
    pub(crate) samples: Option<u64>,
    /// Ask neither the worker program nor the data; wants --samples, or data.index
    #[arg(long)]
    pub(crate) no_environment: bool,
    #[command(flatten)]
    pub(crate) output: OutputArgs,
}

fn positive(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(number) if number.is_finite() && number > 0.0 => Ok(number),
        _ => Err("a number above 0 is expected".into()),
    }
}

pub(crate) fn run(args: &PlanArgs) -> Outcome<Exit> {
    let mut loaded = job::load(&args.job)?;
    let scratch = Scratch::create("plan")?;
    let data = data(args, &mut loaded, &scratch)?;
    let model = if args.no_environment {
        None
    } else {
        describe(&loaded, &scratch)?
    };
    let (changes, measured) = match &args.run {
        Some(dir) => (Some(changes(dir, &loaded)?), measured::speed(dir)?),
        None => (None, None),
    };
    let speed = match (args.speed, measured) {
        (Some(given), _) => Some(Speed {
            images_per_second: given,
            source: "given".into(),
        }),
        (None, measured) => measured,
    };
    let plan = Plan::new(&loaded.job, &data, model.as_ref(), speed, args.price)?;
    let mut value = serde_json::to_value(&plan).map_err(|e| Failure::new(Exit::JobFailed, e.to_string()))?;
    if let (Some(map), Some(changes)) = (value.as_object_mut(), &changes) {
        map.insert("changes".into(), serde_json::json!(changes));
    }
    listing::print(args.output.output, &value, Some("sizes"), |wide| {
        let mut text = plan.text(wide);
        if let (Some(changes), Some(dir)) = (&changes, &args.run) {
            text += &difference(changes, dir);
        }
        text
    })?;
    for warning in &plan.warnings {
        out::say(&format!("{} {warning}", out::style("note:", out::YELLOW)));
    }
    out::hint(&format!(
        "next: argosy validate {0}, then argosy run {0}",
        args.job.job.display()
    ));
    Ok(Exit::Ok)
}

/// What is known of the data: from --samples, the job's index, or the shards' headers. Settles lanes and windows on the way.
fn data(args: &PlanArgs, loaded: &mut LoadedJob, scratch: &Scratch) -> Outcome<Data> {
    if let Some(rows) = args.samples {
        job::settle_lanes(&mut loaded.job);
        return Ok(Data {
            rows,
            shards: None,
            bytes: None,
        });
    }
    let named = loaded.job.data.index.as_ref().map(|file| loaded.base.join(file));
    if args.no_environment && !named.is_some_and(|path| path.exists()) {
        let message = "--no-environment reads no shards: say --samples ROWS, or name an index in data.index";
        return Err(Failure::new(Exit::Usage, message));
    }
    let (index, _) = job::index_for(loaded, scratch.path())?;
    job::freeze(&mut loaded.job, &index);
    Ok(Data {
        rows: index.shards().map(|s| u64::from(s.rows)).sum(),
        shards: Some(index.shards().count() as u64),
        bytes: Some(index.shards().map(|s| s.bytes).sum()),
    })
}

/// The model as the worker program describes it; without that program the plan goes without.
fn describe(loaded: &LoadedJob, scratch: &Scratch) -> Outcome<Option<folder::Model>> {
    match worker::find() {
        Ok(program) => run::describe_model(loaded, scratch.path(), &program).map(Some),
        Err(failure) => {
            out::say(&format!(
                "{} the model is not looked at: {}",
                out::style("note:", out::YELLOW),
                failure.message
            ));
            Ok(None)
        }
    }
}

/// How this job differs from that of a run.
fn changes(dir: &Path, loaded: &LoadedJob) -> Outcome<Vec<Change>> {
    let facts = folder::read(dir)?;
    let kept = job::load_kept(&dir.join(folder::JOB_FILE))?;
    let mut new: Job = run::absolute(loaded);
    // Chosen when the run began, or found out on the way; not said by anybody.
    new.model
        .pretrained_digest
        .clone_from(&kept.job.model.pretrained_digest);
    if loaded.said.place_of("train.lanes").is_none() {
        new.train.lanes = Some(facts.lanes);
    }
    if loaded.said.place_of("data.window_factor").is_none() {
        new.data.window_factor = kept.job.data.window_factor;
    }
    Ok(diff::changes(&kept.job, &new))
}

fn difference(changes: &[Change], dir: &Path) -> String {
    if changes.is_empty() {
        return format!("\nthe run in {} has this very job\n", dir.display());
    }
    let mut table = Table::new(&["key", "run", "this job", "--resume"]).left();
    for change in changes {
        let may = if change.allowed { "takes it" } else { "refuses it" };
        table.row(&[
            change.key.clone(),
            diff::word(&change.old),
            diff::word(&change.new),
            may.into(),
        ]);
    }
    format!("\n{}", table.render())
}
