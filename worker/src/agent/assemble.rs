//! From the coordinator's welcome to a warm trainer.

use crate::checkpoint::PartStore;
use crate::clip::config::VisionKind;
use crate::clip::locks::Locks;
use crate::clip::{ModelConfig, Preprocess};
use crate::engine::{TorchEngine, TorchOptions};
use crate::hub::Start;
use crate::optim::{DecayRule, LayerDecay};
use crate::peer::Place;
use crate::trainer::failpoint::FAILPOINT_VARIABLE;
use crate::trainer::{Aborts, Emit, Failpoint, Lease, Origin, Setup, Trainer};
use crate::{device, model};
use argosy_common::config;
use argosy_common::events::FromWorker;
use argosy_common::exit::Exit;
use argosy_common::follower::Event;
use argosy_common::hash::digest64;
use argosy_common::ids::WorkerId;
use argosy_common::numeric::{self, NumericClass};
use argosy_common::shape::RunShape;
use argosy_rpc::Welcome;
use argosy_shard_loader::{DataError, DiskCache, Index, Loader, LoaderConfig};
use std::path::Path;
use std::sync::Arc;

/// Steps that are loaded ahead of the trainer.
const PREFETCH_STEPS: usize = 3;

/// A run as this machine sees it.
#[derive(Debug)]
pub(crate) struct Home {
    /// What the coordinator said, with paths that are good here.
    pub(crate) welcome: Welcome,
    /// Digest of the training configuration as the coordinator has it.
    pub(crate) config_hash: u64,
    /// Where peers find this worker.
    pub(crate) place: Place,
}

/// Opens index and loader, makes the model.
pub(crate) fn trainer(
    home: &Home,
    worker: WorkerId,
    (aborts, lease): (Aborts, Lease),
    emit: Emit,
) -> Result<Trainer<TorchEngine, Loader>, (Exit, String)> {
    let data_error = |e: DataError| (e.exit(), e.to_string());
    let welcome = &home.welcome;
    let job = &welcome.job;
    let index = Index::open(Path::new(&welcome.index_path)).map_err(data_error)?;
    if index.index_hash() != welcome.index_hash {
        let message = format!("index {} is not the one this run began with", welcome.index_path);
        return Err((Exit::Conflict, message));
    }
    let (model, preprocess) =
        model::resolve_job(job, Path::new(&welcome.job_dir)).map_err(|e| (Exit::BadConfig, e.to_string()))?;
    let shape = RunShape {
        seed: job.seed,
        sources: index.to_shape(),
        batch: job.train.global_batch,
        lanes: welcome.lanes,
        window_factor: welcome.window_factor,
        total_positions: welcome.total_positions,
    };
    let locks = Locks::of(&job.train);
    locks.frozen(&model).map_err(|e| (Exit::BadConfig, e.to_string()))?;
    let by_lane = job.train.batch_norm == config::BatchNorm::Lane && !locks.freeze_bn_stats;
    check_batch_norm(&model, by_lane, shape.lane_rows()).map_err(|message| (Exit::BadConfig, message))?;
    let file = model::tokenizer_file(&job.model, Path::new(&welcome.job_dir));
    let tokenizer = model::tokenizer(&model, file.as_deref()).map_err(|e| (Exit::BadConfig, e.to_string()))?;
    let loader_config = LoaderConfig {
        shape: shape.clone(),
        image_size: model.vision.image_size as u32,
        tokenizer: Arc::new(tokenizer),
        data: job.data.clone(),
        decode_threads: welcome.decode_threads.max(1) as usize,
        prefetch_steps: PREFETCH_STEPS,
        cache: cache(welcome).map_err(data_error)?,
    };
    let mut loader = Loader::new(Arc::new(index), loader_config).map_err(data_error)?;
    loader.report_to(
        Path::new(&welcome.run_dir)
            .join("loader")
            .join(format!("{worker}.json")),
    );
    let threads = welcome.torch_threads as usize;
    let chosen = device::choose(&job.train.device).map_err(|message| (Exit::BadConfig, message))?;
    let options = torch_options(job, threads, chosen.device);
    tracing::info!(device = ?chosen.device, asked = job.train.device, "towers run here");
    if let Some(message) = chosen.notice {
        emit(Event::Passed(FromWorker::Notice { message }));
    }
    let start = Start::of(&job.model, Path::new(&welcome.job_dir));
    let digest = job.model.pretrained_digest.clone();
    let origin = origin(home, &model, &preprocess);
    let setup = Setup {
        run: welcome.run.clone(),
        worker,
        run_dir: welcome.run_dir.clone().into(),
        checkpoints: checkpoints(welcome)?,
        run_secret: welcome.run_secret.clone(),
        place: home.place.clone(),
        train: job.train.clone(),
        shape,
        make_engine: Box::new(move || {
            let mut engine = TorchEngine::new(&model, &preprocess, options)?;
            start.load(&mut engine, digest.as_deref())?;
            Ok(engine)
        }),
        aborts,
        lease,
        origin,
        failpoint: Arc::new(failpoint(worker, Path::new(&welcome.run_dir))?),
        emit,
    };
    Trainer::new(setup, loader)
}

/// What a copy of the state says of itself, besides its parts.
fn origin(home: &Home, config: &ModelConfig, preprocess: &Preprocess) -> Origin {
    let welcome = &home.welcome;
    Origin {
        config_hash: home.config_hash,
        index_hash: welcome.index_hash,
        // A job that was read can be written.
        job: serde_json::to_value(&welcome.job).unwrap_or_default(),
        model: model::describe(config, preprocess, false).model,
    }
}

/// The disk cache that the job names.
fn cache(welcome: &Welcome) -> Result<Option<DiskCache>, DataError> {
    let config = &welcome.job.cache;
    let open = |folder: &String| {
        let folder = Path::new(&welcome.job_dir).join(folder);
        DiskCache::open(&folder, config.bytes_max, config.free_bytes_min)
    };
    config.folder.as_ref().map(open).transpose()
}

/// Refuses lanes whose statistics would be of too few rows (rule BN1).
fn check_batch_norm(model: &ModelConfig, by_lane: bool, lane_rows: u32) -> Result<(), String> {
    if matches!(model.vision.kind, VisionKind::ResNet(_)) && by_lane && lane_rows < 8 {
        return Err(format!(
            "train.lanes leaves {lane_rows} rows to a lane, and BatchNorm takes its statistics from at least 8: choose fewer \
             lanes, or train.batch_norm = \"batch\" with one worker"
        ));
    }
    Ok(())
}

/// What the job asks of the engine.
fn torch_options(job: &config::Job, threads: usize, device: tch::Device) -> TorchOptions {
    let train = &job.train;
    TorchOptions {
        seed: job.seed,
        threads,
        decay: match train.decay_rule {
            config::DecayRule::Classic => DecayRule::Classic,
            config::DecayRule::Main => DecayRule::Main,
        },
        layer_decay: LayerDecay {
            image: train.image_layer_decay,
            text: train.text_layer_decay,
        },
        locks: Locks::of(train),
        precision: train.precision,
        loss: train.loss,
        grad_checkpointing: train.grad_checkpointing,
        ema: train.ema_half_life_samples.is_some(),
        fixed_shapes: train.deterministic,
        device,
        ..TorchOptions::default()
    }
}

/// Where the run's checkpoints lie: the job says, or the run folder has them.
fn checkpoints(welcome: &Welcome) -> Result<PartStore, (Exit, String)> {
    let location = welcome.job.checkpoint.location(&welcome.run_dir, &welcome.run);
    PartStore::open(&location).map_err(|e| (Exit::Unavailable, format!("checkpoints at {location}: {e}")))
}

fn failpoint(worker: WorkerId, run_dir: &Path) -> Result<Failpoint, (Exit, String)> {
    match std::env::var(FAILPOINT_VARIABLE) {
        Ok(text) => Failpoint::parse(&text, worker, run_dir).map_err(|message| (Exit::Usage, message)),
        Err(_) => Ok(Failpoint::none()),
    }
}

/// What this process could compute with; the coordinator adds what the run settles (rule N2).
pub(super) fn numeric_class() -> NumericClass {
    let build = argosy_torch_ext::build();
    NumericClass::new([
        ("arch", std::env::consts::ARCH.into()),
        ("capability", build.capability),
        (
            "libtorch",
            format!("{}-{:08x}", build.version, digest64(build.config.as_bytes()) as u32),
        ),
        (numeric::THREADS, tch::get_num_threads().to_string()),
        (numeric::GPU, device::gpu_word()),
    ])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lanes_of_fewer_than_eight_rows_are_refused_for_batch_norm_alone() {
        let (resnet, vit) = ["RN50", "ViT-B-32"]
            .map(|name| ModelConfig::by_name(name).unwrap())
            .into();
        for rows in [1, 7] {
            let error = check_batch_norm(&resnet, true, rows).unwrap_err();
            assert!(error.contains("train.lanes") && error.contains("batch_norm"), "{error}");
            // Statistics of the whole batch, frozen ones, and models without any.
            assert_eq!(check_batch_norm(&resnet, false, rows), Ok(()));
            assert_eq!(check_batch_norm(&vit, true, rows), Ok(()));
        }
        assert_eq!(check_batch_norm(&resnet, true, 8), Ok(()));
    }
}
