//! A panic is a bug: it leaves a report and exits 101.

use crate::out;
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

/// Reports of this process go to `folder` from now on.
pub(crate) fn set_folder(folder: &Path) {
    if let Ok(mut context) = CONTEXT.lock() {
        context.folder = Some(folder.to_owned());
    }
}

/// Remembers an event for the report. Events carry no secrets.
pub(crate) fn remember(event: String) {
    if let Ok(mut context) = CONTEXT.lock() {
        if context.last.len() == EVENTS_KEPT {
            context.last.remove(0);
        }
        context.last.push(event);
    }
}

/// Did any thread panic?
pub(crate) fn happened() -> bool {
    PANICKED.load(Ordering::Relaxed)
}

/// From now on every panic of any thread writes a report and says where it lies.
pub(crate) fn install() {
    std::panic::set_hook(Box::new(|info| {
        PANICKED.store(true, Ordering::Relaxed);
        let report = report(&info.to_string());
        let folder = CONTEXT.try_lock().ok().and_then(|c| c.folder.clone());
        let folder = folder.unwrap_or_else(std::env::temp_dir);
        let file = folder.join(format!("argosy-crash-{}.txt", std::process::id()));
        out::say(&format!("{} a bug in argosy: {info}", out::style("panic:", out::RED)));
        match std::fs::write(&file, report) {
            Ok(()) => out::say(&format!("help:  please report it with {}", file.display())),
            Err(e) => out::say(&format!("no report could be written to {}: {e}", file.display())),
        }
    }));
}

fn report(what: &str) -> String {
    let last = CONTEXT.try_lock().map(|c| c.last.join("\n")).unwrap_or_default();
    let thread = std::thread::current().name().unwrap_or("unnamed").to_owned();
    let trace = std::backtrace::Backtrace::force_capture();
    // The name of the command only: arguments may be private.
    let command = std::env::args().nth(1).unwrap_or_default();
    format!(
        "argosy {} `{command}`, thread {thread}\n{what}\n\nlast events:\n{last}\n\n{trace}\n",
        env!("CARGO_PKG_VERSION")
    )
}
