//! Whether the world is as the job wants it: programs, shards, buckets, disks, memory. Each check is what a start would do
//! anyway, as far as it can be done without leaving anything behind.

use super::{Finding, Verdict};
use crate::fail::{Failure, Outcome};
use crate::job::{self, LoadedJob};
use crate::run::{self, folder};
use crate::scratch::Scratch;
use crate::{evaluate, out, worker};
use argosy_common::exit::Exit;
use argosy_shard_loader::expand;
use argosy_shard_loader::objects;
use argosy_shard_loader::{Index, RetryPolicy, Store};
use object_store::path::Path as Key;
use object_store::{ObjectStore, ObjectStoreExt as _, PutMode, PutOptions};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// A store that does not answer is given up after this.
const PROBE_PATIENCE: Duration = Duration::from_secs(60);

type Answer = Outcome<(Verdict, String)>;

pub(super) fn check(loaded: &LoadedJob) -> Outcome<Vec<Finding>> {
    let scratch = Scratch::create("validate")?;
    let finding = |check, answer| Finding::of("environment", check, answer);
    let mut findings = Vec::new();
    let model = worker::find().and_then(|program| run::describe_model(loaded, scratch.path(), &program));
    match &model {
        Ok(model) => {
            let detail = format!(
                "{} parameters, state {}",
                out::count(model.parameters),
                out::bytes(model.state_bytes)
            );
            findings.push(finding("model", Ok((Verdict::Ok, detail))));
            findings.push(finding("memory", memory(loaded, model)));
            findings.push(finding("disk", disk(loaded, model)));
        }
        Err(failure) => findings.push(finding(
            "model",
            Err(Failure::new(failure.exit, failure.message.clone())),
        )),
    }
    findings.push(finding("data", data(loaded)));
    findings.push(finding("checkpoints", checkpoints(loaded)));
    if !loaded.job.evaluation.sets.is_empty() {
        findings.push(finding("evaluation", evaluation(loaded)));
    }
    if let Some(folder) = &loaded.job.cache.folder {
        findings.push(finding(
            "cache",
            cache(&PathBuf::from(job::below(&loaded.base, folder)), loaded),
        ));
    }
    Ok(findings)
}

/// What a worker needs at least: weights and moments, and the gradient beside them. Activations come on top; they shrink with
/// `train.micro_batch`, which halves by itself when memory is short. On a GPU the same arrays lie in main memory.
fn memory(loaded: &LoadedJob, model: &folder::Model) -> Answer {
    let each = model.state_bytes.saturating_add(model.parameters.saturating_mul(4));
    let workers = u64::from(loaded.job.workers.target);
    let Some(free) = available() else {
        return Ok((Verdict::Warning, "this machine does not tell its free memory".into()));
    };
    let all = each.saturating_mul(workers);
    let detail = format!(
        "a worker takes {} and its activations, {} are available here",
        out::bytes(each),
        out::bytes(free)
    );
    if each > free {
        return Err(Failure::new(Exit::NoCapacity, detail));
    }
    Ok(if all > free {
        let more = format!("{detail}: too few for workers.target = {workers} on this one machine");
        (Verdict::Warning, more)
    } else {
        (Verdict::Ok, detail)
    })
}

/// Memory that new processes may take, in bytes.
fn available() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

/// Where runs go that nobody names a folder for.
fn runs() -> Outcome<PathBuf> {
    let runs = Path::new("runs");
    std::path::absolute(runs).map_err(|e| Failure::io("find", runs, &e))
}

fn disk(loaded: &LoadedJob, model: &folder::Model) -> Answer {
    let mut job = loaded.job.clone();
    job.checkpoint.url = job.checkpoint.url.map(|url| job::below(&loaded.base, &url));
    let note = run::judge_place(&job, model, &runs()?)?;
    Ok(match note {
        Some(note) => (Verdict::Warning, note),
        None => (
            Verdict::Ok,
            format!("room for checkpoints of {}", out::bytes(model.state_bytes)),
        ),
    })
}

/// Shards are there and the first and the last can be read; an index that is named is the job's.
fn data(loaded: &LoadedJob) -> Answer {
    if let Some(file) = &loaded.job.data.index {
        let path = PathBuf::from(job::below(&loaded.base, file));
        if path.exists() {
            let index = Index::open(&path)?;
            job::check_index(&loaded.job, &loaded.base, &index, &path)?;
            let rows: u64 = index.shards().map(|s| u64::from(s.rows)).sum();
            return Ok((
                Verdict::Ok,
                format!("index {} has {} rows", path.display(), out::count(rows)),
            ));
        }
    }
    let store = Store::new(RetryPolicy::default())?;
    let (mut shards, mut bytes) = (0, 0);
    for source in &loaded.job.data.sources {
        let named = expand::shards(&source.shards, &loaded.base, &store)?;
        for shard in named.first().into_iter().chain(named.last()) {
            bytes = bytes.max(store.facts(&shard.location)?.bytes);
        }
        shards += named.len();
    }
    let detail = format!(
        "{} shards, those that were asked for up to {}",
        out::count(shards as u64),
        out::bytes(bytes)
    );
    Ok((Verdict::Ok, detail))
}

/// The rights that a run needs where its checkpoints lie: an object is created, read, and removed.
fn checkpoints(loaded: &LoadedJob) -> Answer {
    let Some(url) = &loaded.job.checkpoint.url else {
        return writable(run::nearest(&runs()?));
    };
    let url = job::below(&loaded.base, url);
    if !url.contains("://") {
        return writable(run::nearest(Path::new(&url)));
    }
    let store = objects::open(&url)?;
    let key = Key::from(format!(".argosy-probe-{}", folder::hex(&folder::random::<8>()?)));
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|e| Failure::new(Exit::NoCapacity, format!("cannot start a thread: {e}")))?;
    let probed = runtime.block_on(async { tokio::time::timeout(PROBE_PATIENCE, probe(&store.objects, &key)).await });
    match probed {
        Ok(Ok(())) => Ok((Verdict::Ok, format!("{url} can be written, read and deleted"))),
        Ok(Err((what, error))) => {
            let exit = match &error {
                object_store::Error::PermissionDenied { .. } | object_store::Error::Unauthenticated { .. } => {
                    Exit::Denied
                }
                object_store::Error::NotFound { .. } => Exit::NotFound,
                _ => Exit::Unavailable,
            };
            Err(Failure::new(exit, format!("{url}: cannot {what}: {error}")))
        }
        Err(_) => {
            let message = format!("{url} does not answer within {} s", PROBE_PATIENCE.as_secs());
            Err(Failure::new(Exit::Unavailable, message))
        }
    }
}

async fn probe(store: &dyn ObjectStore, key: &Key) -> Result<(), (&'static str, object_store::Error)> {
    let create = || PutOptions::from(PutMode::Create);
    let put = store.put_opts(key, "argosy".into(), create()).await;
    put.map_err(|e| ("create an object", e))?;
    // Whatever comes of it, it is removed again.
    let read = async { store.get(key).await?.bytes().await }.await;
    let again = store.put_opts(key, "again".into(), create()).await;
    let gone = store.delete(key).await;
    let read = read.map_err(|e| ("read an object", e))?;
    let other = |why: &str| object_store::Error::Generic {
        store: "probe",
        source: why.into(),
    };
    if read.as_ref() != b"argosy" {
        return Err(("read back what was written", other("the bytes are others")));
    }
    match again {
        Err(object_store::Error::AlreadyExists { .. } | object_store::Error::Precondition { .. }) => {}
        Err(error) => return Err(("create an object only once", error)),
        Ok(_) => {
            let why = other("a second create of one key went through, so two leaders could both commit");
            return Err(("create an object only once", why));
        }
    }
    gone.map_err(|e| ("delete an object", e))
}

/// A folder, or the one above it that exists, in which files can be made.
fn writable(place: &Path) -> Answer {
    let file = place.join(format!(".argosy-probe-{}", std::process::id()));
    let made = std::fs::OpenOptions::new().write(true).create_new(true).open(&file);
    made.map_err(|e| Failure::io("write", &file, &e))?;
    std::fs::remove_file(&file).map_err(|e| Failure::io("remove", &file, &e))?;
    Ok((Verdict::Ok, format!("{} can be written", place.display())))
}

fn evaluation(loaded: &LoadedJob) -> Answer {
    evaluate::check(loaded)?;
    let store = Store::new(RetryPolicy::default())?;
    let mut shards = 0;
    for set in &loaded.job.evaluation.sets {
        let named = expand::shards(&set.data, &loaded.base, &store)?;
        if let Some(first) = named.first() {
            store.facts(&first.location)?;
        }
        shards += named.len();
    }
    let sets = loaded.job.evaluation.sets.len();
    Ok((
        Verdict::Ok,
        format!("{sets} sets in {shards} shards, class names and templates"),
    ))
}

fn cache(folder: &Path, loaded: &LoadedJob) -> Answer {
    let place = run::nearest(folder);
    writable(place)?;
    let cache = &loaded.job.cache;
    let Ok(stat) = nix::sys::statvfs::statvfs(place) else {
        return Ok((Verdict::Ok, format!("{} can be written", folder.display())));
    };
    let free = stat.blocks_available() * stat.fragment_size();
    let room = free.saturating_sub(cache.free_bytes_min).min(cache.bytes_max);
    let detail = format!(
        "{} of {} fit into {}",
        out::bytes(room),
        out::bytes(cache.bytes_max),
        folder.display()
    );
    Ok(if room < cache.bytes_max {
        (Verdict::Warning, detail)
    } else {
        (Verdict::Ok, detail)
    })
}
