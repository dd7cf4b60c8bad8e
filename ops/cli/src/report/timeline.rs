//! Members and generations over time: a row a worker process, a stretch for each generation it was in.

use super::chart::clock;
use super::page::escape;
use super::story::Story;
use std::fmt::Write as _;

const WIDTH: f64 = 1000.0;
const LEFT: f64 = 56.0;
const ROW: f64 = 26.0;
const TOP: f64 = 26.0;
/// Rows that are drawn; a run that lost hundreds of workers shows the last ones.
const ROWS_MAX: usize = 60;

/// The timeline, or nothing when no worker was ever started.
pub(super) fn svg(story: &Story) -> Option<String> {
    let hidden = story.members.len().saturating_sub(ROWS_MAX);
    let members = &story.members[hidden..];
    if members.is_empty() {
        return None;
    }
    let from_s = if hidden > 0 {
        members.first()?.spans.first()?.from_s
    } else {
        0.0
    };
    let end_s = story.end_s.max(from_s + 0.001);
    let x = |at_s: f64| LEFT + (at_s - from_s).max(0.0) / (end_s - from_s) * (WIDTH - LEFT - 12.0);
    let bottom = TOP + ROW * members.len() as f64;
    let height = bottom + 24.0;
    let mut svg = format!(
        "<svg class=\"timeline\" viewBox=\"0 0 {WIDTH} {height}\" role=\"img\" aria-label=\"Workers over time\">"
    );
    for (i, session) in story.sessions.iter().enumerate().skip(1).filter(|(_, s)| **s >= from_s) {
        let at = x(*session);
        let _ = write!(
            svg,
            "<line class=\"session\" x1=\"{at:.1}\" x2=\"{at:.1}\" y1=\"4\" y2=\"{bottom:.1}\"><title>process {} of the run begins</title></line>",
            i + 1
        );
    }
    let mut free_from = f64::NEG_INFINITY;
    for generation in story.generations.iter().filter(|g| g.at_s >= from_s) {
        let at = x(generation.at_s);
        let _ = write!(
            svg,
            "<line class=\"generation\" x1=\"{at:.1}\" x2=\"{at:.1}\" y1=\"18\" y2=\"{bottom:.1}\"/>"
        );
        // Numbers that would lie on each other are left out; the table has them.
        if at >= free_from {
            let _ = write!(svg, "<text x=\"{at:.1}\" y=\"13\">g{}</text>", generation.number);
            free_from = at + 30.0;
        }
    }
    for (row, member) in members.iter().enumerate() {
        let y = TOP + ROW * row as f64;
        let _ = write!(
            svg,
            "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
            LEFT - 10.0,
            y + 17.0,
            member.worker
        );
        for span in &member.spans {
            let (class, what) = match span.generation {
                Some(g) if g % 2 == 0 => ("even", format!("generation {g}")),
                Some(g) => ("odd", format!("generation {g}")),
                None => ("idle", "starts or waits".to_owned()),
            };
            let _ = write!(
                svg,
                "<rect class=\"{class}\" x=\"{:.1}\" y=\"{:.1}\" width=\"{:.1}\" height=\"14\" rx=\"2\"><title>{}, {what}: {} to {}</title></rect>",
                x(span.from_s),
                y + 6.0,
                (x(span.to_s) - x(span.from_s)).max(1.0),
                member.worker,
                clock(span.from_s),
                clock(span.to_s)
            );
        }
        if let Some((at_s, how)) = member.end.as_ref().filter(|(_, how)| is_loss(how)) {
            let (at, mid) = (x(*at_s), y + 13.0);
            let _ = write!(
                svg,
                "<path class=\"lost\" d=\"M{:.1} {:.1}l10 10m0 -10l-10 10\"><title>{}: {}</title></path>",
                at - 5.0,
                mid - 5.0,
                member.worker,
                escape(how)
            );
        }
    }
    for i in 0..=4 {
        let at_s = from_s + (end_s - from_s) * f64::from(i) / 4.0;
        let anchor = ["start", "middle", "middle", "middle", "end"][i as usize];
        let _ = write!(
            svg,
            "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"{anchor}\">{}</text>",
            x(at_s),
            bottom + 18.0,
            clock(at_s)
        );
    }
    svg.push_str("</svg>");
    Some(svg)
}

/// Did it end other than in order?
fn is_loss(how: &str) -> bool {
    how != "exited with code 0" && !how.starts_with("still there")
}
