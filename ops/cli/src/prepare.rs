//! `argosy prepare`: everything that is decided before a run begins, put where the machines of a cluster find it.

use crate::args::{JobArgs, PrepareArgs, RunArgs};
use crate::fail::{Failure, Outcome};
use crate::listing;
use crate::out;
use crate::run::{self, Prepared};
use argosy_common::config::ModelConfig;
use argosy_common::exit::Exit;
use argosy_common::package::{self, Package};
use argosy_coordinator::package::publish;
use std::path::{Path, PathBuf};
use std::time::Instant;

pub(crate) fn run(args: &PrepareArgs) -> Outcome<Exit> {
    let prepared = run::prepare(
        &RunArgs {
            job: JobArgs {
                job: args.job.job.clone(),
                sets: args.job.sets.clone(),
            },
            workers: None,
            run: args.run.clone(),
            resume: false,
            pretrained: args.pretrained.clone(),
            output: args.output,
        },
        Instant::now(),
    )?;
    let url = place(&prepared)?;
    check_start(&prepared.loaded.job.model, &prepared.loaded.base)?;
    run::plan::print(&prepared);
    put(&prepared)?;
    for source in &prepared.loaded.job.data.sources {
        if !source.shards.contains("://") {
            out::say(&format!(
                "{} {} is a folder: every worker needs it at that path",
                out::style("note:", out::YELLOW),
                source.shards
            ));
        }
    }
    let value = serde_json::json!({"version": 1, "run": prepared.facts.run, "url": url});
    listing::print(args.output.output, &value, None, |_| format!("{url}\n"))?;
    out::hint(&format!(
        "next, on each of two machines: argosy-coordinator {url} --etcd URL --listen ADDRESS --tls DIR --token-file FILE"
    ));
    Ok(Exit::Ok)
}

/// Where the run lies for all machines.
fn place(prepared: &Prepared) -> Outcome<String> {
    let job = &prepared.loaded.job;
    if job.checkpoint.url.is_none() {
        let message =
            "checkpoint.url is not set: machines of a cluster need one place for checkpoints and the run's files";
        return Err(Failure::new(Exit::BadConfig, message)
            .help("set it to a bucket like s3://bucket/runs, or a folder that all machines share"));
    }
    Ok(job
        .checkpoint
        .location(&prepared.dir.to_string_lossy(), &prepared.facts.run))
}

/// Refuses first weights that are more than one exported file: only that travels to a cluster's machines.
fn check_start(model: &ModelConfig, base: &Path) -> Outcome<()> {
    let only_here = [
        ("model.pretrained_image_path", &model.pretrained_image_path),
        ("model.pretrained_text_path", &model.pretrained_text_path),
        ("model.tokenizer", &model.tokenizer),
    ];
    for (key, path) in only_here {
        if let Some(path) = path {
            let message = format!("{key} names {path}, and a cluster's machines are not given that file yet");
            return Err(Failure::new(Exit::BadConfig, message).help("train it on one machine with `argosy run`"));
        }
    }
    let Some(folder) = &model.pretrained else {
        return Ok(());
    };
    let folder = PathBuf::from(crate::job::below(base, folder));
    if !folder.join(package::WEIGHTS_FILE).is_file() || folder.join("tokenizer.json").exists() {
        let message = format!(
            "model.pretrained: a cluster's machines are given one file of weights, so {} must be a folder with {} and no \
             tokenizer.json",
            folder.display(),
            package::WEIGHTS_FILE
        );
        return Err(Failure::new(Exit::BadConfig, message).help("`argosy export WEIGHTS -o DIR` makes such a folder"));
    }
    Ok(())
}

fn put(prepared: &Prepared) -> Outcome<()> {
    let (job, facts) = (&prepared.loaded.job, &prepared.facts);
    // The job that is put there names nothing relative, and its digest is of what it says.
    let kept = prepared.dir.join(run::folder::JOB_FILE);
    let config_hash = crate::job::load_kept(&kept)?.job.config_hash();
    let package = Package {
        version: package::PACKAGE_VERSION,
        run: facts.run.clone(),
        config_hash,
        index_hash: facts.index_hash,
        shape: prepared.shape.clone(),
        parts_total: prepared.model.parts_total,
        model: prepared.model.model.clone(),
    };
    // What a run folder says names an index inside it; another one is put under the name it has there.
    let said = prepared.dir.join("run.json.shared");
    let mut shared = facts.clone();
    shared.index = package::INDEX_FILE.into();
    shared.config_hash = config_hash;
    let text = serde_json::to_string_pretty(&shared).map_err(|e| Failure::new(Exit::Panic, e.to_string()))?;
    std::fs::write(&said, text + "\n").map_err(|e| Failure::io("write", &said, &e))?;
    let below = |path: &str| Path::new(&crate::job::below(&prepared.loaded.base, path)).to_owned();
    let mut files: Vec<(&str, PathBuf)> = vec![
        (package::RUN_FILE, said.clone()),
        (package::JOB_FILE, kept),
        (package::INDEX_FILE, prepared.index_path.clone()),
    ];
    if let Some(config) = &job.model.config {
        files.push((package::MODEL_FILE, below(config)));
    }
    if let Some(folder) = &job.model.pretrained {
        files.push((package::WEIGHTS_FILE, below(folder).join(package::WEIGHTS_FILE)));
        let config = below(folder).join(package::WEIGHTS_CONFIG_FILE);
        if config.is_file() {
            files.push((package::WEIGHTS_CONFIG_FILE, config));
        }
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .map_err(|e| Failure::new(Exit::NoCapacity, format!("cannot start threads: {e}")))?;
    let published = runtime.block_on(publish(&prepared.checkpoints.objects, &package, &files));
    runtime.shutdown_background();
    let _ = std::fs::remove_file(&said);
    published.map_err(|e| Failure::new(e.exit(), e.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_weights_that_a_cluster_is_not_given_are_refused_by_key() {
        let base = tempfile::tempdir().expect("a folder");
        let refused = |model: &ModelConfig| check_start(model, base.path()).expect_err("refused").message;
        let plain = ModelConfig::default();
        assert!(check_start(&plain, base.path()).is_ok());
        let tower = ModelConfig {
            pretrained_image_path: Some("tower.pt".into()),
            ..plain.clone()
        };
        assert!(refused(&tower).contains("model.pretrained_image_path"));
        let weights = ModelConfig {
            pretrained: Some("start".into()),
            ..plain
        };
        assert!(refused(&weights).contains("model.pretrained"));
        std::fs::create_dir(base.path().join("start")).expect("a folder");
        std::fs::write(base.path().join("start").join(package::WEIGHTS_FILE), b"").expect("weights");
        assert!(check_start(&weights, base.path()).is_ok());
    }
}
