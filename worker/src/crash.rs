//! A panic is a bug: it leaves a report without secrets, and the process exits with its own code.

use argosy_common::ids::{Generation, WorkerId};
use argosy_common::secret;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

static PANICKED: AtomicBool = AtomicBool::new(false);
static GENERATION: AtomicU64 = AtomicU64::new(0);
static STEP: AtomicU64 = AtomicU64::new(0);
static PLACE: Mutex<Option<(PathBuf, WorkerId)>> = Mutex::new(None);

/// Reports go to `run_dir/crash` from now on.
pub fn set_place(run_dir: &Path, worker: WorkerId) {
    if let Ok(mut place) = PLACE.lock() {
        *place = Some((run_dir.join("crash"), worker));
    }
}

/// Notes where the trainer is, for the report.
pub fn note(generation: Generation, step: u64) {
    GENERATION.store(generation.0, Ordering::Relaxed);
    STEP.store(step, Ordering::Relaxed);
}

/// Did any thread panic?
#[must_use]
pub fn happened() -> bool {
    PANICKED.load(Ordering::Relaxed)
}

/// From now on every panic of any thread writes a report.
pub fn install() {
    std::panic::set_hook(Box::new(|info| {
        PANICKED.store(true, Ordering::Relaxed);
        tracing::error!(%info, "a bug: this worker panicked");
        // The lock may be held by the thread that panicked.
        let place = PLACE.try_lock().ok().and_then(|place| place.clone());
        if let Some((folder, worker)) = place {
            let file = folder.join(format!("{worker}-{}.txt", std::process::id()));
            let written =
                std::fs::create_dir_all(&folder).and_then(|()| std::fs::write(&file, report(&info.to_string())));
            match written {
                Ok(()) => tracing::error!(file = %file.display(), "please report it with this file"),
                Err(error) => tracing::error!(%error, "no report could be written"),
            }
        }
    }));
}

fn report(what: &str) -> String {
    let thread = std::thread::current().name().unwrap_or("unnamed").to_owned();
    let report = format!(
        "argosy-worker {}\nthread {thread}\ngeneration {}\nstep {}\n\n{what}\n\n{}\n",
        env!("CARGO_PKG_VERSION"),
        GENERATION.load(Ordering::Relaxed),
        STEP.load(Ordering::Relaxed),
        std::backtrace::Backtrace::force_capture(),
    );
    secret::hide(&report).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn crash_report_names_version_generation_step_and_message() {
        note(Generation(7), 42);
        let report = report("index out of bounds");
        for word in [
            env!("CARGO_PKG_VERSION"),
            "generation 7",
            "step 42",
            "index out of bounds",
        ] {
            assert!(report.contains(word), "{word} in {report}");
        }
    }
}
