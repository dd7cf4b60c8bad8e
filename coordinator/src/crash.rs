//! A panic is a bug: it leaves a report without secrets, and the process exits with 101.

use argosy_common::secret;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

static PANICKED: AtomicBool = AtomicBool::new(false);
/// Where the report goes once a run has a folder, and the last events of that run.
static CONTEXT: Mutex<Context> = Mutex::new(Context {
    folder: None,
    last: Vec::new(),
});
const EVENTS_KEPT: usize = 20;

struct Context {
    folder: Option<PathBuf>,
    last: Vec<String>,
}

/// Reports of this process go to `folder` from now on; before that they go to the system's temporary folder.
pub fn set_folder(folder: &Path) {
    if let Ok(mut context) = CONTEXT.lock() {
        context.folder = Some(folder.to_owned());
    }
}

/// Remembers an event for the report.
pub fn remember(event: String) {
    if let Ok(mut context) = CONTEXT.lock() {
        if context.last.len() == EVENTS_KEPT {
            context.last.remove(0);
        }
        context.last.push(event);
    }
}

/// Did any thread panic?
#[must_use]
pub fn happened() -> bool {
    PANICKED.load(Ordering::Relaxed)
}

/// From now on every panic of any thread writes a report, and `say` is told where it lies. Must not be called by a thread that
/// panics.
pub fn install(program: &'static str, say: fn(&str)) {
    std::panic::set_hook(Box::new(move |info| {
        PANICKED.store(true, Ordering::Relaxed);
        let what = secret::hide(&info.to_string()).into_owned();
        // The lock may be held by the thread that panicked.
        let folder = CONTEXT.try_lock().ok().and_then(|c| c.folder.clone());
        let folder = folder.unwrap_or_else(std::env::temp_dir);
        let file = folder.join(format!("argosy-crash-{}.txt", std::process::id()));
        say(&format!("panic: a bug in {program}: {what}"));
        match std::fs::write(&file, report(program, &what)) {
            Ok(()) => say(&format!("help:  please report it with {}", file.display())),
            Err(e) => say(&format!("no report could be written to {}: {e}", file.display())),
        }
    }));
}

fn report(program: &str, what: &str) -> String {
    let last = CONTEXT.try_lock().map(|c| c.last.join("\n")).unwrap_or_default();
    let thread = std::thread::current().name().unwrap_or("unnamed").to_owned();
    let trace = std::backtrace::Backtrace::force_capture();
    // The name of the command only: arguments may be private.
    let command = std::env::args()
        .nth(1)
        .filter(|word| !word.starts_with('-'))
        .unwrap_or_default();
    let version = env!("CARGO_PKG_VERSION");
    let report =
        format!("{program} {version} `{command}`, thread {thread}\n{what}\n\nlast events:\n{last}\n\n{trace}\n");
    secret::hide(&report).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn report_has_the_last_events_and_no_secrets() {
        secret::learn("canary-crash-1");
        for event in 0..EVENTS_KEPT + 5 {
            remember(format!("event {event}."));
        }
        remember("token canary-crash-1".into());
        let report = report("argosy", "index out of bounds canary-crash-1");
        assert!(report.contains("event 24.") && !report.contains("event 4."), "{report}");
        assert!(
            report.contains("out of bounds") && !report.contains("canary"),
            "{report}"
        );
    }
}
