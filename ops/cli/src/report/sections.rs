//! The parts of the page, in the order of what a person asks first.

use super::chart::{Axis, Chart, Line, clock};
use super::page::{escape, section, table};
use super::story::{Evaluation, Story};
use super::timeline;
use crate::out;
use crate::run::folder::RunFile;
use argosy_common::events::{Outcome, RunEvent};
use argosy_common::steplog::MaskReason;
use argosy_shard_loader::Index;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

/// Phases in the order of a step.
const PHASES: [&str; 8] = [
    "load", "encode", "gather", "loss", "backward", "reduce", "sentinel", "apply",
];
/// Events that are listed; a run of months has more than anybody reads.
const EVENTS_MAX: usize = 500;

/// Name, outcome and the numbers that matter most.
pub(super) fn head(story: &Story, facts: &RunFile) -> String {
    let done = story.steps.keys().last().copied().unwrap_or(0);
    let (word, note) = match &story.outcome {
        Some(Outcome::Succeeded { .. }) => ("finished", None),
        Some(Outcome::Interrupted { .. }) => ("interrupted", None),
        Some(Outcome::Failed { message, .. }) => ("failed", Some(message.clone())),
        None => ("not ended", None),
    };
    let losses: Vec<f64> = story.steps.values().filter_map(|s| s.loss).collect();
    let loss = match (losses.first(), losses.last()) {
        (Some(first), Some(last)) => format!("{first:.3} to {last:.3}"),
        _ => "none yet".to_owned(),
    };
    let lost = story
        .log
        .iter()
        .filter(|(_, e)| matches!(e, RunEvent::WorkerLost { .. }))
        .count();
    let mut speed: Vec<f64> = story.speed().into_iter().map(|(_, s)| s).collect();
    speed.sort_by(f64::total_cmp);
    let speed = speed
        .get(speed.len() / 2)
        .map_or_else(|| "none yet".to_owned(), |s| format!("{s:.0}"));
    let mut tiles = vec![
        ("outcome", word.to_owned()),
        (
            "steps",
            format!("{} of {}", out::count(done), out::count(story.total_steps)),
        ),
        ("loss", loss),
        ("images/s, median", speed),
        ("time", clock(story.end_s)),
        ("processes of the run", story.sessions.len().to_string()),
        ("workers lost", lost.to_string()),
        ("recoveries", story.recoveries.len().to_string()),
        ("checkpoints", story.checkpoints.len().to_string()),
        ("global batch", format!("{} in {} lanes", story.batch, facts.lanes)),
    ];
    if let Some(best) = story.evaluations.last() {
        tiles.push(("top-1, last", format!("{:.2} % {}", best.top1 * 100.0, best.set)));
    }
    let mut html = format!(
        "<h1>{}</h1>\n<p class=\"soft\">Report of Argosy {}",
        escape(&story.run),
        env!("CARGO_PKG_VERSION")
    );
    if story.unix_ms > 0 {
        let _ = write!(html, ", begun {}", date(story.unix_ms / 1000));
    }
    html.push_str("</p>\n");
    if let Some(message) = note {
        let _ = writeln!(html, "<p class=\"note\">{}</p>", escape(&message));
    }
    html.push_str("<dl class=\"tiles\">\n");
    for (name, value) in tiles {
        let _ = writeln!(html, "<div><dt>{name}</dt><dd>{}</dd></div>", escape(&value));
    }
    html.push_str("</dl>\n");
    html
}

/// Loss, learning rate, scale and speed.
pub(super) fn curves(story: &Story) -> String {
    let by_step = |value: fn(&argosy_common::events::StepReport) -> f64| -> Vec<(f64, f64)> {
        let points = story.steps.iter().map(|(step, s)| (*step as f64, value(s)));
        points.collect()
    };
    let at_steps: Vec<(f64, f64, String)> = story
        .recoveries
        .iter()
        .map(|r| {
            (
                r.step as f64 - 1.0,
                r.step as f64,
                format!("step {}: {}", r.step, r.reason),
            )
        })
        .collect();
    let at_times: Vec<(f64, f64, String)> = story
        .recoveries
        .iter()
        .map(|r| (r.from_s, r.to_s, format!("{:.1} s: {}", r.to_s - r.from_s, r.reason)))
        .collect();
    let charts = [
        ("Loss", by_step(|r| r.loss.unwrap_or(f64::NAN)), Axis::Steps, false, 0),
        ("Learning rate", by_step(|r| r.lr), Axis::Steps, true, 1),
        ("Logit scale", by_step(|r| r.logit_scale), Axis::Steps, false, 3),
        ("Images per second", story.speed(), Axis::Seconds, true, 2),
    ];
    let mut html = String::from("<div class=\"grid\">\n");
    for (name, points, axis, from_zero, color) in charts {
        let bands = if axis == Axis::Steps {
            at_steps.clone()
        } else {
            at_times.clone()
        };
        let chart = Chart {
            label: name.to_owned(),
            axis,
            lines: vec![Line {
                name: name.to_owned(),
                points,
                color,
                dashed: false,
            }],
            bands,
            from_zero,
            dots: false,
            percent: false,
        };
        let svg = chart.svg().unwrap_or_else(|| "<p>No step yet.</p>".to_owned());
        let _ = writeln!(
            html,
            "<section><h3>{name}</h3><div class=\"wide\">{svg}</div></section>"
        );
    }
    html.push_str("</div>\n");
    let marked = if story.recoveries.is_empty() {
        "<p class=\"soft\">Membership changed at no step.</p>\n"
    } else {
        "<p class=\"soft\">Shaded: a generation was closed, or the run started again, and the first step was not made yet.</p>\n"
    };
    section("Training", &(html + marked))
}

/// Who took part, when.
pub(super) fn members(story: &Story) -> String {
    let Some(svg) = timeline::svg(story) else {
        return section("Members and generations", "<p>No worker was started.</p>\n");
    };
    let key = "<ul class=\"key\">\
        <li><svg viewBox=\"0 0 14 14\"><rect class=\"idle\" width=\"14\" height=\"14\" rx=\"2\"/></svg>starts or waits</li>\
        <li><svg viewBox=\"0 0 14 14\"><rect class=\"odd\" width=\"14\" height=\"14\" rx=\"2\"/></svg>member of an odd generation</li>\
        <li><svg viewBox=\"0 0 14 14\"><rect class=\"even\" width=\"14\" height=\"14\" rx=\"2\"/></svg>of an even one</li>\
        <li><svg viewBox=\"0 0 14 14\"><path class=\"lost\" d=\"M2 2l10 10m0 -10l-10 10\"/></svg>lost</li></ul>\n";
    let ids = |ids: &[argosy_common::ids::WorkerId]| ids.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ");
    let hidden = story.generations.len().saturating_sub(EVENTS_MAX);
    let rows: Vec<Vec<String>> = story.generations[hidden..]
        .iter()
        .map(|g| {
            let recovery = story.recoveries.iter().find(|r| r.from_s <= g.at_s && g.at_s <= r.to_s);
            vec![
                g.number.to_string(),
                clock(g.at_s),
                out::count(g.step),
                recovery.map_or_else(|| "-".to_owned(), |r| format!("{:.1} s", r.to_s - r.from_s)),
                ids(&g.members),
                if g.healing.is_empty() {
                    "-".to_owned()
                } else {
                    ids(&g.healing)
                },
                g.reason.clone(),
            ]
        })
        .collect();
    let head = ["generation", "at", "from step", "recovery", "members", "healed", "why"];
    let inside = format!(
        "{key}<div class=\"wide\">{svg}</div>\n<p></p>\n{}",
        table(&head, &[4, 5, 6], &rows)
    );
    section("Members and generations", &inside)
}

/// A number of an evaluation.
type Value = fn(&Evaluation) -> f64;

/// Accuracy over time, a line a set.
pub(super) fn accuracy(story: &Story) -> String {
    let mut sets: BTreeMap<&str, Vec<&Evaluation>> = BTreeMap::new();
    for evaluation in &story.evaluations {
        sets.entry(&evaluation.set).or_default().push(evaluation);
    }
    let failed = story
        .log
        .iter()
        .filter(|(_, e)| matches!(e, RunEvent::EvaluationFailed { .. }))
        .count();
    if sets.is_empty() {
        let why = if failed > 0 {
            "<p class=\"note\">Every evaluation failed; the events below say why.</p>\n"
        } else {
            "<p class=\"note\">No checkpoint was evaluated: the job has no <code>[[evaluation.sets]]</code>.</p>\n"
        };
        return section("Zero-shot accuracy", why);
    }
    let mut key = String::from("<ul class=\"key\">");
    for (color, (set, results)) in sets.iter_mut().enumerate() {
        results.sort_by_key(|e| e.step);
        let _ = write!(
            key,
            "<li><svg viewBox=\"0 0 14 14\"><circle class=\"c{}\" cx=\"7\" cy=\"7\" r=\"5\"/></svg>{}</li>",
            color % 6,
            escape(set)
        );
    }
    key.push_str("</ul>\n");
    let mut inside = key + "<div class=\"grid\">\n";
    for (name, value) in [("Top-1", (|e| e.top1) as Value), ("Top-5", |e| e.top5)] {
        let svg = accuracy_chart(name, &sets, value).svg().unwrap_or_default();
        let _ = writeln!(
            inside,
            "<section><h3>{name}</h3><div class=\"wide\">{svg}</div></section>"
        );
    }
    inside.push_str("</div>\n<p></p>\n");
    let percent = |share: f64| format!("{:.2} %", share * 100.0);
    let last: Vec<Vec<String>> = sets
        .iter()
        .filter_map(|(set, results)| {
            let last = results.last()?;
            let best = results.iter().map(|e| e.top1).fold(0.0, f64::max);
            Some(vec![
                (*set).to_owned(),
                out::count(last.step),
                percent(last.top1),
                percent(last.top5),
                percent(last.chance),
                percent(best),
                out::count(last.samples),
                results.len().to_string(),
            ])
        })
        .collect();
    let head = [
        "set",
        "step",
        "top-1",
        "top-5",
        "chance",
        "best top-1",
        "samples",
        "evaluations",
    ];
    inside += &table(&head, &[], &last);
    if failed > 0 {
        let _ = writeln!(
            inside,
            "<p class=\"note\">{failed} evaluations failed; the events below say why.</p>"
        );
    }
    section("Zero-shot accuracy", &inside)
}

/// A line a set.
fn accuracy_chart(name: &str, sets: &BTreeMap<&str, Vec<&Evaluation>>, value: Value) -> Chart {
    let line = |(color, (set, results)): (usize, (&&str, &Vec<&Evaluation>))| Line {
        name: (*set).to_owned(),
        points: results.iter().map(|e| (e.step as f64, value(e))).collect(),
        color,
        dashed: false,
    };
    Chart {
        label: format!("Zero-shot {name} over steps"),
        axis: Axis::Steps,
        lines: sets.iter().enumerate().map(line).collect(),
        bands: Vec::new(),
        from_zero: true,
        dots: true,
        percent: true,
    }
}

/// Where a step's time goes.
pub(super) fn phases(story: &Story) -> String {
    // A process's first step warms up.
    let mut warm: Vec<&BTreeMap<String, f32>> = story.steps.values().skip(1).map(|s| &s.phase_ms).collect();
    if warm.is_empty() {
        warm = story.steps.values().map(|s| &s.phase_ms).collect();
    }
    let known: BTreeSet<&str> = warm.iter().flat_map(|p| p.keys()).map(String::as_str).collect();
    let others = known.iter().copied().filter(|name| !PHASES.contains(name));
    let names: Vec<&str> = PHASES.into_iter().filter(|p| known.contains(p)).chain(others).collect();
    let times = |name: &str| -> Vec<f64> {
        let mut times: Vec<f64> = warm
            .iter()
            .filter_map(|p| p.get(name))
            .map(|ms| f64::from(*ms))
            .collect();
        times.sort_by(f64::total_cmp);
        times
    };
    let means: Vec<f64> = names
        .iter()
        .map(|name| times(name).iter().sum::<f64>() / warm.len().max(1) as f64)
        .collect();
    let total: f64 = means.iter().sum();
    if total <= 0.0 {
        return section("Phases of a step", "<p>No step yet.</p>\n");
    }
    let mut svg = String::from("<svg viewBox=\"0 0 1000 34\" role=\"img\" aria-label=\"Share of each phase\">");
    let mut key = String::from("<ul class=\"key\">");
    let mut at = 0.0;
    let mut rows = Vec::new();
    for (i, (name, mean)) in names.iter().zip(&means).enumerate() {
        let width = mean / total * 1000.0;
        let _ = write!(
            svg,
            "<rect class=\"p{}\" x=\"{at:.1}\" width=\"{width:.1}\" height=\"34\"><title>{}: {mean:.1} ms</title></rect>",
            i % 8,
            escape(name)
        );
        at += width;
        let _ = write!(
            key,
            "<li><svg viewBox=\"0 0 14 14\"><rect class=\"p{}\" width=\"14\" height=\"14\" rx=\"2\"/></svg>{}</li>",
            i % 8,
            escape(name)
        );
        let sorted = times(name);
        let quantile = |q: f64| {
            sorted
                .get(((sorted.len() - 1) as f64 * q) as usize)
                .copied()
                .unwrap_or(0.0)
        };
        rows.push(vec![
            (*name).to_owned(),
            format!("{:.1} %", mean / total * 100.0),
            format!("{mean:.1}"),
            format!("{:.1}", quantile(0.5)),
            format!("{:.1}", quantile(0.95)),
        ]);
    }
    rows.push(vec![
        "whole step".to_owned(),
        "100 %".to_owned(),
        format!("{total:.1}"),
        String::new(),
        String::new(),
    ]);
    let head = ["phase", "share", "mean ms", "median ms", "95 % ms"];
    let note = "<p class=\"soft\">As the first worker to report each step saw it; gather and reduce hold the wait for the slowest.</p>\n";
    let inside = format!(
        "{key}</ul>\n<div class=\"wide\">{svg}</svg></div>\n<p></p>\n{}{note}",
        table(&head, &[], &rows)
    );
    section("Phases of a step", &inside)
}

/// Rows that took no part, and why.
pub(super) fn data(story: &Story, index: Option<&Index>) -> String {
    let positions: u64 = story.steps.values().map(|s| u64::from(s.valid)).sum();
    let masked = story.masked();
    let mut rows = vec![vec![
        "trained".to_owned(),
        out::count(positions),
        String::new(),
        "took part in a step".to_owned(),
    ]];
    let all: u64 = positions + masked.values().sum::<u64>();
    for (reason, count) in &masked {
        rows.push(vec![
            match reason {
                MaskReason::Quarantined => reason.to_string(),
                reason => format!("masked: {reason}"),
            },
            out::count(*count),
            format!("{:.3} %", *count as f64 * 100.0 / all.max(1) as f64),
            meaning(*reason).to_owned(),
        ]);
    }
    let skipped = story.steps.values().filter(|s| s.loss.is_none()).count();
    if skipped > 0 {
        let why = "steps that changed nothing: fewer than two rows could be used, or a number was not finite";
        rows.push(vec![
            "skipped steps".to_owned(),
            skipped.to_string(),
            String::new(),
            why.to_owned(),
        ]);
    }
    let mut inside = table(&["rows", "count", "share", "why"], &[3], &rows);
    if masked.is_empty() {
        inside.push_str("<p class=\"soft\">Nothing was masked or quarantined.</p>\n");
    }
    let left_out = index.map(crate::index::left_out).unwrap_or_default();
    if !left_out.is_empty() {
        inside.push_str("<h3>Left out when the shards were indexed</h3>\n<pre>");
        for line in left_out.iter().take(EVENTS_MAX) {
            let _ = writeln!(inside, "{}", escape(line));
        }
        inside.push_str("</pre>\n");
    }
    section("Rows masked or quarantined, by reason", &inside)
}

fn meaning(reason: MaskReason) -> &'static str {
    match reason {
        MaskReason::Missing => "the index has the row, the shard lacks it or its picture or caption",
        MaskReason::Format => "not a JPEG, PNG or WebP picture that decodes",
        MaskReason::Pixels => "more pixels than data.max_image_pixels",
        MaskReason::Bytes => "more bytes than data.max_sample_bytes",
        MaskReason::Quarantined => "its shard could not be read by two workers, or for too long",
        MaskReason::Caption => "a caption that is empty or not UTF-8",
    }
}

/// Everything but the steps, as it was written.
pub(super) fn events(story: &Story) -> String {
    let hidden = story.log.len().saturating_sub(EVENTS_MAX);
    let mut inside = String::from("<details><summary>");
    let _ = write!(inside, "{} events besides the steps</summary>\n<pre>", story.log.len());
    if hidden > 0 {
        let _ = writeln!(inside, "({hidden} earlier ones are in events.jsonl)");
    }
    for (at_s, event) in &story.log[hidden..] {
        let words = serde_json::to_string(event).unwrap_or_default();
        let _ = writeln!(inside, "{at_s:>9.2}  {}", escape(&words));
    }
    inside.push_str("</pre></details>\n");
    if story.unread > 0 {
        let _ = writeln!(
            inside,
            "<p class=\"note\">{} lines of events.jsonl could not be read.</p>",
            story.unread
        );
    }
    section("Events", &inside)
}

/// The job as it was trained.
pub(super) fn job(text: &str) -> String {
    let inside = format!(
        "<details><summary>job.toml of the run</summary>\n<pre>{}</pre></details>\n",
        escape(text)
    );
    section("Job", &inside)
}

/// Seconds since 1970 as a day and a time (UTC), by the civil calendar's 400-year rule.
fn date(unix_s: u64) -> String {
    let (days, second) = (unix_s / 86_400, unix_s % 86_400);
    // Years begin in March, so that the leap day is a year's last; day 0 is 1 March of year 0.
    let z = days + 719_468;
    let (era, doe) = (z / 146_097, z % 146_097);
    let yoe = (doe - doe / 1460 + doe / 36_524 - doe / 146_096) / 365;
    let doy = doe - (365 * yoe + yoe / 4 - yoe / 100);
    let mp = (5 * doy + 2) / 153;
    let (day, month) = (doy - (153 * mp + 2) / 5 + 1, if mp < 10 { mp + 3 } else { mp - 9 });
    let year = yoe + era * 400 + u64::from(month <= 2);
    format!(
        "{year:04}-{month:02}-{day:02} {:02}:{:02} UTC",
        second / 3600,
        second % 3600 / 60
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn date_knows_leap_days_and_the_turn_of_years() {
        assert_eq!(date(0), "1970-01-01 00:00 UTC");
        assert_eq!(date(951_782_399), "2000-02-28 23:59 UTC");
        assert_eq!(date(951_782_400), "2000-02-29 00:00 UTC");
        assert_eq!(date(1_735_689_599), "2024-12-31 23:59 UTC");
    }
}
