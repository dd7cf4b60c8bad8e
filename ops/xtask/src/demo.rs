//! `cargo xtask demo`: trains a small CLIP on some drawing styles, kills a worker on the way, interrupts the run and goes on
//! with another number of workers, and asks fresh processes what the result sees in styles that it never met.

mod control;
mod follow;
mod report;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use crate::paths::Paths;
use report::{Point, Style};

pub(crate) const USAGE: &str = "[--quick | --long | --control]";

/// What one flavour of the demo does.
#[derive(Debug)]
struct Flavour {
    job: &'static str,
    /// Styles that are unpacked and evaluated; all when empty.
    styles: &'static [&'static str],
    /// Accuracy must rise with time; the quick one has too few checkpoints to tell.
    rises: bool,
    /// Captions are shuffled first, and the result must know nothing.
    shuffled: bool,
    takes: &'static str,
}

/// Least rank correlation of top-1 with time.
const RANK_CORRELATION_MIN: f64 = 0.8;

const FULL: Flavour = Flavour {
    job: "demo.toml",
    styles: &[],
    rises: true,
    shuffled: false,
    takes: "under five minutes on two cores",
};
const QUICK: Flavour = Flavour {
    job: "demo-quick.toml",
    styles: &["noto", "twemoji"],
    rises: false,
    shuffled: false,
    takes: "half a minute",
};
const LONG: Flavour = Flavour {
    job: "demo-long.toml",
    styles: &[],
    rises: true,
    shuffled: false,
    takes: "half an hour on two cores",
};
const CONTROL: Flavour = Flavour {
    job: "demo.toml",
    styles: &[],
    rises: false,
    shuffled: true,
    takes: "under five minutes on two cores",
};

/// Where things lie.
#[derive(Debug)]
struct Stage {
    argosy: PathBuf,
    /// `ops/demo` of this clone.
    source: PathBuf,
    data: PathBuf,
    run: PathBuf,
    out: PathBuf,
}

pub(crate) fn run(paths: &Paths, args: &[String]) -> Result<ExitCode> {
    let switches = crate::parse_switches("demo", &["--quick", "--long", "--control"], args)?;
    let flavour = match switches[..] {
        [false, false, false] => FULL,
        [true, false, false] => QUICK,
        [false, true, false] => LONG,
        [false, false, true] => CONTROL,
        _ => bail!("--quick, --long and --control contradict each other; give one"),
    };
    crate::setup::lay(paths, false)?;
    build(paths)?;
    show(paths, &flavour)?;
    Ok(ExitCode::SUCCESS)
}

/// The quick demo from binaries that are built, as a check of the whole.
pub(crate) fn quick(paths: &Paths) -> Result<()> {
    show(paths, &QUICK)
}

/// The control run with shuffled captions, from binaries that are built.
pub(crate) fn control(paths: &Paths) -> Result<()> {
    show(paths, &CONTROL)
}

fn show(paths: &Paths, flavour: &Flavour) -> Result<()> {
    let started = Instant::now();
    let stage = Stage::prepare(paths)?;
    let styles = stage.unpack(flavour)?;
    if flavour.shuffled {
        control::shuffle(&stage.data)?;
        eprintln!("demo: the captions of the training shards are shuffled");
    }
    eprintln!(
        "demo: trains on {} with two worker processes; takes {}",
        flavour.job, flavour.takes
    );
    let story = follow::train(&stage, flavour.job)?;
    let trained = stage.trained_styles()?;
    let mut results = Vec::new();
    for name in &styles {
        eprintln!("demo: zero-shot on {name}, in a fresh process");
        results.push(stage.evaluate(name, trained.contains(name))?);
    }
    let over_time = Point::of(&story);
    stage.audit()?;
    stage.report()?;
    let summary = report::summary(&story, &results, &over_time);
    let file = stage.out.join("summary.json");
    fs::write(&file, serde_json::to_string_pretty(&summary)? + "\n")
        .with_context(|| format!("cannot write {}", file.display()))?;
    print!("{}", report::table(&story, &results));
    if flavour.shuffled {
        control::judge(&results)?;
    }
    if flavour.rises {
        let rises =
            report::rank_correlation(&over_time).context("too few evaluations to tell whether accuracy rises")?;
        ensure!(
            rises > RANK_CORRELATION_MIN,
            "top-1 does not rise with time: rank correlation {rises:.2}, over {RANK_CORRELATION_MIN} was expected"
        );
    }
    eprintln!(
        "demo: {} s in all; numbers in {}, the story in {}",
        started.elapsed().as_secs(),
        file.display(),
        stage.run.join("report.html").display()
    );
    Ok(())
}

fn build(paths: &Paths) -> Result<()> {
    let status = crate::cargo::cargo(paths)
        // The same set of features as for the tests: nothing is built twice.
        .args(["build", "--workspace", "--bins"])
        .status()
        .context("cannot start cargo")?;
    ensure!(status.success(), "the build failed");
    Ok(())
}

impl Stage {
    fn prepare(paths: &Paths) -> Result<Self> {
        // xtask itself was built into the folder that the others were built into, wherever that is.
        let argosy = std::env::current_exe()
            .context("cannot tell where xtask lies")?
            .with_file_name("argosy");
        ensure!(argosy.is_file(), "{} is missing after a build", argosy.display());
        let out = paths.root.join("target/demo");
        let stage = Self {
            argosy,
            source: paths.root.join("ops/demo"),
            data: out.join("data"),
            run: out.join("run"),
            out,
        };
        for old in [&stage.data, &stage.run] {
            if old.exists() {
                fs::remove_dir_all(old).with_context(|| format!("cannot remove {}", old.display()))?;
            }
        }
        fs::create_dir_all(&stage.data).with_context(|| format!("cannot make {}", stage.data.display()))?;
        Ok(stage)
    }

    /// A call of argosy whose stderr is ours.
    fn argosy(&self) -> Command {
        let mut command = Command::new(&self.argosy);
        command.stdin(Stdio::null()).current_dir(&self.out);
        command
    }

    /// Unpacks the archives; the names of the styles, in order.
    fn unpack(&self, flavour: &Flavour) -> Result<Vec<String>> {
        let mut styles = Vec::new();
        for entry in fs::read_dir(&self.source).with_context(|| format!("cannot read {}", self.source.display()))? {
            let name = entry?.file_name().to_string_lossy().into_owned();
            let Some(style) = name.strip_suffix(".tar.zst") else {
                continue;
            };
            if flavour.styles.is_empty() || flavour.styles.contains(&style) {
                styles.push(style.to_owned());
            }
        }
        ensure!(
            !styles.is_empty(),
            "no *.tar.zst in {}; make them with `cargo xtask demo-data`",
            self.source.display()
        );
        styles.sort();
        for style in &styles {
            let archive = self.source.join(format!("{style}.tar.zst"));
            let status = self.argosy().arg("unpack").arg(&archive).arg(&self.data).status()?;
            ensure!(status.success(), "cannot unpack {}", archive.display());
        }
        Ok(styles)
    }

    /// Styles with a shard in the index that the run trained from: what was trained, not what was meant to be.
    fn trained_styles(&self) -> Result<Vec<String>> {
        let index = self.json(&["index", "--show", text(&self.run.join("index.argosy"))?, "-o", "json"])?;
        let shards = index["shards"].as_array().context("the index lists no shards")?;
        let folder = |shard: &Value| {
            Path::new(shard["location"].as_str()?)
                .parent()?
                .file_name()?
                .to_str()
                .map(str::to_owned)
        };
        let mut styles: Vec<String> = shards.iter().filter_map(folder).collect();
        styles.sort();
        styles.dedup();
        Ok(styles)
    }

    /// Zero-shot accuracy of the run's last checkpoint on a style's test shard, by a fresh process.
    fn evaluate(&self, style: &str, trained: bool) -> Result<Style> {
        let shard = self.data.join(style).join("test-00000.tar");
        let [classes, templates, groups] =
            ["classes.txt", "templates.txt", "subcategories.txt"].map(|name| self.source.join(name));
        let mut args = vec!["eval", "zero-shot", "-o", "json"];
        args.extend([
            "--checkpoint",
            // A run's folder stands for its last committed checkpoint.
            text(&self.run)?,
            "--data",
            text(&shard)?,
            "--classes",
            text(&classes)?,
        ]);
        args.extend(["--templates", text(&templates)?, "--subcategories", text(&groups)?]);
        Style::read(style, trained, &self.json(&args)?)
    }

    /// The run as a page.
    fn report(&self) -> Result<()> {
        let output = self
            .argosy()
            .arg("report")
            .arg(&self.run)
            .stderr(Stdio::inherit())
            .output()?;
        ensure!(output.status.success(), "`argosy report` ended with {}", output.status);
        Ok(())
    }

    /// The run's books: every position exactly once.
    fn audit(&self) -> Result<()> {
        let report = self.json(&["audit", text(&self.run)?, "-o", "json"])?;
        fs::write(
            self.out.join("audit.json"),
            serde_json::to_string_pretty(&report)? + "\n",
        )?;
        ensure!(
            report["holds"] == true && report["finished"] == true,
            "the audit does not hold: {report}"
        );
        Ok(())
    }

    /// Stdout of a call of argosy, as JSON.
    fn json(&self, args: &[&str]) -> Result<Value> {
        let output = self.argosy().args(args).stderr(Stdio::inherit()).output()?;
        ensure!(
            output.status.success(),
            "`argosy {}` ended with {}",
            args.join(" "),
            output.status
        );
        serde_json::from_slice(&output.stdout).with_context(|| format!("`argosy {}` gave no JSON", args.join(" ")))
    }
}

fn text(path: &Path) -> Result<&str> {
    path.to_str()
        .with_context(|| format!("{} is not UTF-8; clone into another folder", path.display()))
}
