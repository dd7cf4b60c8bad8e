//! A run's files on a machine that shares no folder with its coordinator: fetched once, checked, kept in a folder of the
//! worker's own.

use argosy_common::exit::Exit;
use argosy_common::package::{INDEX_FILE, MODEL_FILE, WEIGHTS_CONFIG_FILE, WEIGHTS_FILE};
use argosy_rpc::Welcome;
use argosy_shard_loader::objects;
use object_store::path::Path as Key;
use object_store::{ObjectStore, ObjectStoreExt as _};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio::io::AsyncWriteExt as _;
use tokio_stream::StreamExt as _;

type Failure = (Exit, String);

/// The welcome as it holds on this machine: with paths of its own, where the coordinator's mean nothing here.
pub(super) async fn at_home(welcome: &Welcome, dir: &Path) -> Result<Welcome, Failure> {
    let Some(url) = &welcome.files_url else {
        return Ok(welcome.clone());
    };
    let home = make_home(dir, &welcome.run)?;
    let place = objects::open(url).map_err(|e| (e.exit(), format!("the run's files at {url}: {e}")))?;
    // Named by its digest: a folder may have been another run's.
    let index = home.join(format!("{:016x}-{INDEX_FILE}", welcome.index_hash));
    fetch(&place.objects, INDEX_FILE, &index).await?;
    let mut own = welcome.clone();
    own.index_path = text(&index)?;
    own.run_dir = text(&home)?;
    own.job_dir = "/".into();
    if own.decode_threads == 0 {
        own.decode_threads = std::thread::available_parallelism().map_or(1, |n| n.get() as u32);
    }
    if let Some(config) = &mut own.job.model.config {
        let path = home.join(MODEL_FILE);
        fetch(&place.objects, MODEL_FILE, &path).await?;
        *config = text(&path)?;
    }
    if let Some(folder) = &mut own.job.model.pretrained {
        fetch(&place.objects, WEIGHTS_FILE, &home.join(WEIGHTS_FILE)).await?;
        // Not all weights have one.
        match fetch(&place.objects, WEIGHTS_CONFIG_FILE, &home.join(WEIGHTS_CONFIG_FILE)).await {
            Err((Exit::NotFound, _)) => {}
            fetched => fetched?,
        }
        *folder = text(&home)?;
    }
    Ok(own)
}

/// The worker's folder for one run, which nobody else may look into.
fn make_home(dir: &Path, run: &str) -> Result<PathBuf, Failure> {
    // A run's id names a folder here; the coordinator that sent it has shown its certificate, and still is not believed.
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    if run.starts_with('.') || !run.chars().all(plain) {
        return Err((Exit::Conflict, format!("the run's id `{run}` cannot name a folder")));
    }
    let home = dir.join(run);
    let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&home);
    made.and_then(|()| std::fs::canonicalize(&home))
        .map_err(|e| (Exit::Denied, format!("folder {}: {e}", home.display())))
}

fn text(path: &Path) -> Result<String, Failure> {
    let text = path.to_str().map(str::to_owned);
    text.ok_or_else(|| (Exit::Usage, format!("path {} is not UTF-8", path.display())))
}

/// Fetches a file that is not there yet. Nothing of a run's files ever changes, and a half-fetched one has another name.
async fn fetch(objects: &Arc<dyn ObjectStore>, name: &str, path: &Path) -> Result<(), Failure> {
    if tokio::fs::try_exists(path).await.unwrap_or(false) {
        return Ok(());
    }
    let from_store = |e: object_store::Error| {
        let exit = match e {
            object_store::Error::NotFound { .. } => Exit::NotFound,
            object_store::Error::PermissionDenied { .. } | object_store::Error::Unauthenticated { .. } => Exit::Denied,
            _ => Exit::Unavailable,
        };
        (exit, format!("the run's {name}: {e}"))
    };
    let to_disk = |e: std::io::Error| {
        let exit = match e.kind() {
            std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => Exit::NoCapacity,
            _ => Exit::Denied,
        };
        (exit, format!("{}: {e}", path.display()))
    };
    let mut stream = objects.get(&Key::from(name)).await.map_err(from_store)?.into_stream();
    // Several workers of one machine may fetch at once.
    let beside = path.with_extension(format!("partial-{}", std::process::id()));
    let mut file = tokio::fs::File::create(&beside).await.map_err(to_disk)?;
    while let Some(piece) = stream.next().await {
        file.write_all(&piece.map_err(from_store)?).await.map_err(to_disk)?;
    }
    file.sync_all().await.map_err(to_disk)?;
    tokio::fs::rename(&beside, path).await.map_err(to_disk)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clip::ModelConfig;
    use crate::model::resolve_job;
    use argosy_common::config::Job;
    use argosy_common::ids::{Term, WorkerId};

    #[test]
    fn folder_of_a_run_is_private_and_no_id_leads_out_of_it() {
        use std::os::unix::fs::PermissionsExt as _;
        let dir = tempfile::tempdir().unwrap();
        let home = make_home(dir.path(), "my-clip-0a1b").unwrap();
        assert_eq!(home.metadata().unwrap().permissions().mode() & 0o777, 0o700);
        for bad in ["../x", "a/b", "..", ".", ".ssh"] {
            assert_eq!(make_home(dir.path(), bad).unwrap_err().0, Exit::Conflict, "{bad}");
        }
    }

    #[tokio::test]
    async fn file_is_fetched_once_and_one_that_is_missing_is_named() {
        let (store, dir) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let place = objects::open(store.path().to_str().unwrap()).unwrap();
        std::fs::write(store.path().join("index.argosy"), "one").unwrap();
        let path = dir.path().join("index");
        fetch(&place.objects, "index.argosy", &path).await.unwrap();
        std::fs::write(store.path().join("index.argosy"), "two").unwrap();
        fetch(&place.objects, "index.argosy", &path).await.unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "one");
        let (exit, why) = fetch(&place.objects, "model.json", &dir.path().join("m"))
            .await
            .unwrap_err();
        assert!(exit == Exit::NotFound && why.contains("model.json"), "{why}");
    }

    /// Weights bring activation and normalisation to a machine that shares no folder with the one that prepared the run.
    #[tokio::test]
    async fn configuration_beside_the_weights_comes_with_them_and_may_be_missing() {
        let (store, dir) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let job = "version = 1\nname = \"far\"\n[model]\nname = \"demo-tiny\"\npretrained = \"elsewhere\"\n\
                    [data]\nsources = [{ shards = \"00.tar\" }]\n[train]\nglobal_batch = 8\n";
        let welcome = Welcome {
            worker: WorkerId(1),
            files_url: Some(text(store.path()).unwrap()),
            run: "far-1".into(),
            job_dir: "/elsewhere".into(),
            index_path: String::new(),
            index_hash: 1,
            lanes: 1,
            window_factor: 4,
            total_positions: 8,
            run_dir: String::new(),
            heartbeat_ms: 50,
            run_secret: Vec::new(),
            decode_threads: 1,
            torch_threads: 1,
            term: Term(1),
            leases: false,
            orphan_max_ms: 1,
            job: Job::from_toml("job.toml", job).unwrap(),
        };
        for file in [INDEX_FILE, WEIGHTS_FILE] {
            std::fs::write(store.path().join(file), "x").unwrap();
        }
        let bare = at_home(&welcome, &dir.path().join("bare")).await.unwrap();
        let config = ModelConfig::by_name("demo-tiny").unwrap();
        let said = serde_json::json!({"model_cfg": config.source, "preprocess_cfg": {"mean": 0.5}});
        std::fs::write(store.path().join(WEIGHTS_CONFIG_FILE), said.to_string()).unwrap();
        let told = at_home(&welcome, &dir.path().join("told")).await.unwrap();
        let mean = |home: &Welcome| resolve_job(&home.job, Path::new(&home.job_dir)).unwrap().1.mean[0];
        assert!(
            mean(&bare) < 0.49 && mean(&told) == 0.5,
            "{} {}",
            mean(&bare),
            mean(&told)
        );
    }
}
