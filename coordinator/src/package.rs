//! A run's files in its store: put there once, fetched by every coordinator.

use argosy_common::config::{ConfigError, JOB_FILE_BYTES_MAX, Job};
use argosy_common::exit::Exit;
use argosy_common::package::{FOLDER, INDEX_FILE, JOB_FILE, PACKAGE_FILE, Package, RUN_FILE};
use object_store::buffered::BufWriter;
use object_store::path::Path as Key;
use object_store::{GetResult, ObjectStore, ObjectStoreExt as _, PutMode, PutOptions, PutPayload};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio::io::AsyncWriteExt as _;
use tokio_stream::StreamExt as _;

/// A shape with ten million shards is smaller.
const PACKAGE_BYTES_MAX: u64 = 256 << 20;
/// What a coordinator keeps in its folder, so that `argosy audit` and the others find a run there.
const KEPT: [&str; 3] = [RUN_FILE, JOB_FILE, INDEX_FILE];

/// Why a run's files cannot be put or fetched.
#[derive(Debug, thiserror::Error)]
pub enum PackageError {
    /// The store failed.
    #[error("{key} in the run's store: {source}")]
    Store {
        /// Which object.
        key: String,
        /// Why.
        source: object_store::Error,
    },
    /// There is none.
    #[error("no run was prepared there: {key} is missing; give what `argosy prepare` printed")]
    Missing {
        /// Which object.
        key: String,
    },
    /// Another one is there.
    #[error("another run of this name was prepared there already ({key}); give the job another checkpoint.url or name")]
    Taken {
        /// Which object.
        key: String,
    },
    /// It cannot be used.
    #[error("{key} in the run's store cannot be used: {reason}")]
    Bad {
        /// Which object.
        key: String,
        /// Why.
        reason: String,
    },
    /// The job in it cannot be used.
    #[error(transparent)]
    Job(#[from] ConfigError),
    /// The own folder is another run's.
    #[error("folder {dir} is that of {held}; give each run a folder of its own")]
    OtherFolder {
        /// The folder.
        dir: PathBuf,
        /// Whose it is.
        held: String,
    },
    /// A file of this machine.
    #[error("{path}: {source}")]
    Io {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
}

impl PackageError {
    /// The exit code that goes with it.
    #[must_use]
    pub fn exit(&self) -> Exit {
        use object_store::Error as E;
        match self {
            Self::Missing { .. } => Exit::NotFound,
            Self::Taken { .. } | Self::OtherFolder { .. } => Exit::Conflict,
            Self::Bad { .. } | Self::Job(_) => Exit::BadConfig,
            Self::Store { source, .. } => match source {
                E::PermissionDenied { .. } | E::Unauthenticated { .. } => Exit::Denied,
                _ => Exit::Unavailable,
            },
            Self::Io { source, .. } if source.kind() == std::io::ErrorKind::PermissionDenied => Exit::Denied,
            Self::Io { .. } => Exit::JobFailed,
        }
    }
}

fn key(name: &str) -> Key {
    Key::from(format!("{FOLDER}/{name}"))
}

fn store_error(key: &Key) -> impl Fn(object_store::Error) -> PackageError + use<> {
    let key = key.to_string();
    move |source| match source {
        object_store::Error::NotFound { .. } => PackageError::Missing { key: key.clone() },
        source => PackageError::Store {
            key: key.clone(),
            source,
        },
    }
}

fn io_error(path: &Path) -> impl Fn(std::io::Error) -> PackageError + use<> {
    let path = path.to_owned();
    move |source| PackageError::Io {
        path: path.clone(),
        source,
    }
}

/// Puts a run's files, each under its name, and its package behind them.
///
/// # Errors
/// [`PackageError`]; without the package nobody takes what was put for a run.
pub async fn publish(
    objects: &Arc<dyn ObjectStore>,
    package: &Package,
    files: &[(&str, PathBuf)],
) -> Result<(), PackageError> {
    let place = key(PACKAGE_FILE);
    match objects.head(&place).await {
        Ok(_) => return Err(PackageError::Taken { key: place.to_string() }),
        Err(object_store::Error::NotFound { .. }) => {}
        Err(error) => return Err(store_error(&place)(error)),
    }
    for (name, path) in files {
        let mut file = tokio::fs::File::open(path).await.map_err(io_error(path))?;
        let mut writer = BufWriter::new(Arc::clone(objects), key(name));
        let copied = async {
            tokio::io::copy(&mut file, &mut writer).await?;
            writer.shutdown().await
        };
        copied.await.map_err(|e| PackageError::Store {
            key: key(name).to_string(),
            source: object_store::Error::Generic {
                store: "run",
                source: e.into(),
            },
        })?;
    }
    let text = serde_json::to_vec(package).map_err(|e| PackageError::Bad {
        key: place.to_string(),
        reason: e.to_string(),
    })?;
    let create = PutOptions {
        mode: PutMode::Create,
        ..PutOptions::default()
    };
    match objects.put_opts(&place, PutPayload::from(text.clone()), create).await {
        Ok(_) => Ok(()),
        // In doubt it is read back and compared.
        Err(error) => match read(objects, &place, PACKAGE_BYTES_MAX).await {
            Ok(stored) if stored == text => Ok(()),
            Ok(_) => Err(PackageError::Taken { key: place.to_string() }),
            Err(_) => Err(store_error(&place)(error)),
        },
    }
}

async fn read(objects: &Arc<dyn ObjectStore>, key: &Key, bytes_max: u64) -> Result<Vec<u8>, PackageError> {
    let found: GetResult = objects.get(key).await.map_err(store_error(key))?;
    let bytes = found.meta.size;
    if bytes > bytes_max {
        return Err(PackageError::Bad {
            key: key.to_string(),
            reason: format!("it has {bytes} bytes, at most {bytes_max} are read"),
        });
    }
    Ok(found.bytes().await.map_err(store_error(key))?.to_vec())
}

/// Fetches a run's package and its job, and keeps in `dir` what other commands need of a run folder.
///
/// # Errors
/// [`PackageError`].
pub async fn fetch(objects: &Arc<dyn ObjectStore>, dir: &Path) -> Result<(Package, Job), PackageError> {
    let place = key(PACKAGE_FILE);
    let text = read(objects, &place, PACKAGE_BYTES_MAX).await?;
    let bad = |key: &Key, reason: String| PackageError::Bad {
        key: key.to_string(),
        reason,
    };
    let package = Package::parse(&text).map_err(|why| bad(&place, why))?;
    let place = key(JOB_FILE);
    let text = read(objects, &place, JOB_FILE_BYTES_MAX as u64).await?;
    let text = String::from_utf8(text).map_err(|e| bad(&place, e.to_string()))?;
    let job = Job::from_toml(place.as_ref(), &text)?;
    if job.config_hash() != package.config_hash {
        return Err(bad(&place, "it is not the job that the run was prepared with".into()));
    }
    check_folder(dir, &package.run).await?;
    for name in KEPT {
        download(objects, &key(name), &dir.join(name)).await?;
    }
    Ok((package, job))
}

/// A folder is one run's.
async fn check_folder(dir: &Path, run: &str) -> Result<(), PackageError> {
    let path = dir.join(RUN_FILE);
    let text = match tokio::fs::read(&path).await {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        read => read.map_err(io_error(&path))?,
    };
    let value: serde_json::Value = serde_json::from_slice(&text).unwrap_or_default();
    match value["run"].as_str() {
        Some(held) if held == run => Ok(()),
        held => Err(PackageError::OtherFolder {
            dir: dir.to_owned(),
            held: held.unwrap_or("something else").to_owned(),
        }),
    }
}

/// A file that is there was fetched before: nothing of a package ever changes.
async fn download(objects: &Arc<dyn ObjectStore>, key: &Key, path: &Path) -> Result<(), PackageError> {
    if tokio::fs::try_exists(path).await.unwrap_or(false) {
        return Ok(());
    }
    let mut stream = objects.get(key).await.map_err(store_error(key))?.into_stream();
    let beside = path.with_extension("partial");
    let mut file = tokio::fs::File::create(&beside).await.map_err(io_error(&beside))?;
    while let Some(piece) = stream.next().await {
        let piece = piece.map_err(store_error(key))?;
        file.write_all(&piece).await.map_err(io_error(&beside))?;
    }
    file.sync_all().await.map_err(io_error(&beside))?;
    tokio::fs::rename(&beside, path).await.map_err(io_error(path))
}

#[cfg(test)]
mod tests {
    use super::*;
    use argosy_common::package::PACKAGE_VERSION;
    use argosy_common::shape::{RunShape, SourceShape};
    use object_store::memory::InMemory;

    const JOB: &str = "version = 1\nname = \"j\"\n[model]\nname = \"ViT-B-32\"\n[data]\nsources = [{ shards = \"a\" }]\n\
         [train]\nglobal_batch = 8\nepochs = 10\nlr = 1e-3\nwd = 0.1\nwarmup = 10\n";

    fn package(run: &str) -> Package {
        Package {
            version: PACKAGE_VERSION,
            run: run.into(),
            config_hash: Job::from_toml("j", JOB).unwrap().config_hash(),
            index_hash: u64::MAX,
            shape: RunShape {
                seed: 1,
                sources: vec![SourceShape {
                    name: "s".into(),
                    shard_rows: vec![3, 0, 5],
                }],
                batch: 8,
                lanes: 4,
                window_factor: 2,
                total_positions: 80,
            },
            parts_total: 3,
            model: serde_json::json!({"model_cfg": {}}),
        }
    }

    /// A folder with the files of a run.
    fn files(dir: &Path, run: &str) -> Vec<(&'static str, PathBuf)> {
        let text = [
            (RUN_FILE, format!("{{\"run\": \"{run}\"}}")),
            (JOB_FILE, JOB.into()),
            (INDEX_FILE, "rows".into()),
        ];
        text.into_iter()
            .map(|(name, text): (_, String)| {
                std::fs::write(dir.join(name), text).unwrap();
                (name, dir.join(name))
            })
            .collect()
    }

    #[tokio::test]
    async fn package_is_put_once_and_fetched_whole_into_a_folder_of_its_own() {
        let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let store: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
        let missing = fetch(&store, to.path()).await.unwrap_err();
        assert_eq!(missing.exit(), Exit::NotFound, "{missing}");
        publish(&store, &package("r-1"), &files(from.path(), "r-1"))
            .await
            .unwrap();
        let again = publish(&store, &package("r-1"), &[]).await.unwrap_err();
        assert_eq!(again.exit(), Exit::Conflict, "{again}");

        let (fetched, job) = fetch(&store, to.path()).await.unwrap();
        assert_eq!((fetched, job.name.as_str()), (package("r-1"), "j"));
        for name in KEPT {
            let (ours, theirs) = (to.path().join(name), from.path().join(name));
            assert_eq!(std::fs::read(ours).unwrap(), std::fs::read(theirs).unwrap(), "{name}");
        }
        fetch(&store, to.path()).await.unwrap();

        let other: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
        publish(&other, &package("r-2"), &files(from.path(), "r-2"))
            .await
            .unwrap();
        let refused = fetch(&other, to.path()).await.unwrap_err();
        assert!(refused.to_string().contains("that of r-1"), "{refused}");
    }

    #[tokio::test]
    async fn package_whose_job_is_another_is_refused() {
        let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let store: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
        let other = Package {
            config_hash: 7,
            ..package("r-1")
        };
        publish(&store, &other, &files(from.path(), "r-1")).await.unwrap();
        let refused = fetch(&store, to.path()).await.unwrap_err();
        assert_eq!(refused.exit(), Exit::BadConfig, "{refused}");
    }
}
