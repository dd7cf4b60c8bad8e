//! `argosy report`: what happened in a run, as one page that needs neither network nor script.

mod chart;
mod page;
mod sections;
mod sheet;
mod story;
mod timeline;

use crate::args::ReportArgs;
use crate::fail::{Failure, Outcome};
use crate::out;
use crate::run::folder;
use argosy_common::config::Job;
use argosy_common::exit::Exit;
use std::path::{Path, PathBuf};
use story::Story;

/// Events of a run are read whole; a page of more would help nobody.
const EVENTS_BYTES_MAX: u64 = 2 << 30;

pub(crate) fn run(args: &ReportArgs) -> Outcome<Exit> {
    let path = write(args)?;
    out::data(&format!("{}\n", path.display()))?;
    out::say(&format!("next: open it in a browser, {}", out::file_link(&path)));
    Ok(Exit::Ok)
}

/// Writes the page; where it lies.
fn write(args: &ReportArgs) -> Outcome<PathBuf> {
    let facts = folder::read(&args.run)?;
    let text = events(&args.run)?;
    let story = Story::read(&text);
    if story.sessions.is_empty() {
        let message = format!("the run in {} has no events yet", args.run.display());
        return Err(Failure::new(Exit::NotFound, message).help("start it with `argosy run`"));
    }
    let job_text = std::fs::read_to_string(args.run.join(folder::JOB_FILE)).unwrap_or_default();
    // The page is made even if the job's copy was damaged; then it has no contact sheet of its own accord.
    let job = Job::from_toml("job.toml", &job_text).ok();
    let mut body = sections::head(&story, &facts);
    body += &sections::curves(&story);
    body += &sections::members(&story);
    body += &sections::accuracy(&story);
    body += &contact_sheet(args, &story, job.as_ref());
    body += &sections::phases(&story);
    body += &sections::data(
        &story,
        crate::index::open_in(&args.run, Some(&facts.index)).ok().as_ref(),
    );
    body += &sections::events(&story);
    body += &sections::job(&job_text);
    let page = page::whole(&format!("{} - Argosy", story.run), &body);
    let path = args.out.clone().unwrap_or_else(|| args.run.join("report.html"));
    // Beside and renamed, so that a browser never reads half a page.
    let beside = path.with_extension("html.tmp");
    std::fs::write(&beside, page)
        .and_then(|()| std::fs::rename(&beside, &path))
        .map_err(|e| Failure::io("write", &path, &e))?;
    Ok(std::path::absolute(&path).unwrap_or(path))
}

fn events(run: &Path) -> Outcome<String> {
    let path = run.join("events.jsonl");
    let size = path.metadata().map_err(|e| Failure::io("read", &path, &e))?.len();
    if size > EVENTS_BYTES_MAX {
        let message = format!(
            "{} has {size} bytes, at most {EVENTS_BYTES_MAX} are read",
            path.display()
        );
        return Err(Failure::new(Exit::JobFailed, message));
    }
    let bytes = std::fs::read(&path).map_err(|e| Failure::io("read", &path, &e))?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// The sheet, or why there is none: a page without it is better than none.
fn contact_sheet(args: &ReportArgs, story: &Story, job: Option<&Job>) -> String {
    let name = "Contact sheet";
    if args.no_sheet {
        return String::new();
    }
    let none = |why: &str| {
        page::section(
            name,
            &format!("<p class=\"note\">No contact sheet: {}.</p>\n", page::escape(why)),
        )
    };
    if story.checkpoints.is_empty() {
        return none("the run has no committed checkpoint yet");
    }
    let Some(data) = args.data.clone().or_else(|| sheet::data_of(&args.run, job?)) else {
        return none("the run's job.toml names no data; give some with --data SHARDS");
    };
    out::say(&format!(
        "embedding samples of {data} for the contact sheet (leave it out with --no-sheet)"
    ));
    match sheet::make(&args.run, &data, job) {
        Ok(sheet) => page::section(name, &sheet.html()),
        Err(failure) => {
            out::say(&format!(
                "{} the page has no contact sheet: {}",
                out::style("note:", out::YELLOW),
                failure.message
            ));
            none(&failure.message)
        }
    }
}
