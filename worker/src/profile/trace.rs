//! The trace in Chrome's event format, which Perfetto reads: complete events (`ph: X`) in microseconds.

use super::report::Step;
use argosy_torch_ext::record::Span;
use serde_json::json;
use std::io::{BufWriter, Write};
use std::path::Path;

/// Line of the phases; operators lie on lines of their threads.
const PHASES_LINE: u64 = 0;

pub(super) fn write(path: &Path, steps: &[Step], spans: &[Span]) -> std::io::Result<()> {
    let mut out = BufWriter::new(std::fs::File::create(path)?);
    let zero = steps.first().map_or(0, |s| s.start_ns);
    let end = steps.last().map_or(0, |s| s.end_ns);
    let us = |ns: i64| (ns - zero) as f64 / 1e3;
    let event = |name: &str, category: &str, line: u64, start: i64, end: i64, args: serde_json::Value| {
        json!({
            "name": name, "cat": category, "ph": "X", "pid": 1, "tid": line, "ts": us(start),
            "dur": (end - start) as f64 / 1e3, "args": args,
        })
    };
    writeln!(out, "{{\"displayTimeUnit\":\"ms\",\"traceEvents\":[")?;
    let named = json!({"name": "thread_name", "ph": "M", "pid": 1, "tid": PHASES_LINE, "args": {"name": "phases"}});
    write!(out, "{named}")?;
    for (number, step) in (1..).zip(steps) {
        let whole = event(
            &format!("step {number}"),
            "step",
            PHASES_LINE,
            step.start_ns,
            step.end_ns,
            json!({"rows": step.rows}),
        );
        write!(out, ",\n{whole}")?;
        for phase in &step.phases {
            let line = event(
                &phase.name,
                "phase",
                PHASES_LINE,
                phase.start_ns,
                phase.end_ns,
                json!({}),
            );
            write!(out, ",\n{line}")?;
        }
    }
    for span in spans.iter().filter(|s| s.start_ns >= zero && s.end_ns <= end) {
        let category = if span.backward { "node" } else { "operator" };
        let args = json!({"flops": span.flops, "bytes": span.bytes});
        let line = event(&span.name, category, span.thread, span.start_ns, span.end_ns, args);
        write!(out, ",\n{line}")?;
    }
    writeln!(out, "\n]}}")?;
    out.flush()
}
