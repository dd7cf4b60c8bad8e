//! What is told of a profile, as data and as a table.

use super::classes::{self, Class};
use super::machine::Machine;
use crate::trainer::PHASES;
use argosy_common::events::StepReport;
use argosy_torch_ext::record::Span;
use serde::Serialize;
use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::PathBuf;

/// A phase of one step on the clock of the spans.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Phase {
    pub(super) name: String,
    pub(super) start_ns: i64,
    pub(super) end_ns: i64,
}

/// One measured step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Step {
    pub(super) start_ns: i64,
    pub(super) end_ns: i64,
    pub(super) rows: u32,
    pub(super) phases: Vec<Phase>,
}

impl Step {
    /// A step that was reported at `end_ns`: its phases end there, one behind the other.
    pub(super) fn new(end_ns: i64, report: &StepReport) -> Self {
        let known = PHASES.iter().filter_map(|name| report.phase_ms.get_key_value(*name));
        let rest = report
            .phase_ms
            .iter()
            .filter(|(name, _)| !PHASES.contains(&name.as_str()));
        let mut at = end_ns;
        let mut phases = Vec::new();
        for (name, ms) in known.chain(rest).collect::<Vec<_>>().into_iter().rev() {
            let start_ns = at - (f64::from(*ms) * 1e6) as i64;
            phases.push(Phase {
                name: name.clone(),
                start_ns,
                end_ns: at,
            });
            at = start_ns;
        }
        phases.reverse();
        Self {
            start_ns: at,
            end_ns,
            rows: report.valid,
            phases,
        }
    }
}

/// Time of a phase.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct PhaseTime {
    pub phase: String,
    /// Per step.
    pub ms: f64,
    /// Of the step.
    pub share: f64,
}

/// Time and work of a class of operators, per step.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ClassTime {
    pub class: Class,
    pub ms: f64,
    /// Of the step.
    pub share: f64,
    /// 10^9 multiplications and additions.
    pub gflop: f64,
    /// 10^9 bytes in and out of operators.
    pub gb: f64,
    /// Of the machine's matrix product.
    pub of_gemm_peak: f64,
    /// Of the machine's copy.
    pub of_copy_peak: f64,
}

/// The whole.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Profile {
    pub steps: usize,
    pub step_ms: f64,
    pub samples_per_second: f64,
    pub machine: Machine,
    pub phases: Vec<PhaseTime>,
    pub classes: Vec<ClassTime>,
    /// What limits this job here, in one sentence.
    pub verdict: String,
    /// The trace file.
    pub trace: PathBuf,
}

impl Profile {
    pub(super) fn new(steps: &[Step], spans: &[Span], machine: Machine, trace: PathBuf) -> Self {
        let count = steps.len().max(1) as f64;
        let total_ms = steps.iter().map(|s| (s.end_ns - s.start_ns) as f64 / 1e6).sum::<f64>() / count;
        let mut phases: BTreeMap<&str, f64> = BTreeMap::new();
        for phase in steps.iter().flat_map(|s| &s.phases) {
            *phases.entry(&phase.name).or_default() += (phase.end_ns - phase.start_ns) as f64 / 1e6 / count;
        }
        let rows: f64 = steps.iter().map(|s| f64::from(s.rows)).sum::<f64>() / count;
        let classes = class_times(steps, spans, &phases, total_ms, &machine);
        let mut phases: Vec<PhaseTime> = phases
            .into_iter()
            .map(|(phase, ms)| PhaseTime {
                phase: phase.to_owned(),
                ms,
                share: ratio(ms, total_ms),
            })
            .collect();
        phases.sort_by_key(|p| PHASES.iter().position(|name| *name == p.phase));
        let verdict = verdict(&classes);
        Self {
            steps: steps.len(),
            step_ms: total_ms,
            samples_per_second: ratio(rows * 1e3, total_ms),
            machine,
            phases,
            classes,
            verdict,
            trace,
        }
    }

    /// For people.
    #[must_use]
    pub fn table(&self) -> String {
        let mut out = String::new();
        let m = &self.machine;
        // Writing to a string cannot fail.
        let _ = writeln!(
            out,
            "{} steps of {:.1} ms, {:.1} samples/s; machine: {} threads, {:.1} GFLOP/s, copies {:.1} GB/s\n",
            self.steps, self.step_ms, self.samples_per_second, m.threads, m.gemm_gflops, m.copy_gb_per_s
        );
        let _ = writeln!(out, "{:<18} {:>9} {:>6}", "phase", "ms", "share");
        for p in &self.phases {
            let _ = writeln!(out, "{:<18} {:>9.2} {:>5.1}%", p.phase, p.ms, p.share * 100.0);
        }
        let _ = writeln!(
            out,
            "\n{:<18} {:>9} {:>6} {:>9} {:>8} {:>8} {:>8}",
            "class", "ms", "share", "GFLOP", "of peak", "GB", "of copy"
        );
        for c in &self.classes {
            let _ = writeln!(
                out,
                "{:<18} {:>9.2} {:>5.1}% {:>9.3} {:>7.0}% {:>8.3} {:>7.0}%",
                c.class.name(),
                c.ms,
                c.share * 100.0,
                c.gflop,
                c.of_gemm_peak * 100.0,
                c.gb,
                c.of_copy_peak * 100.0
            );
        }
        let _ = writeln!(
            out,
            "\n{}\ntrace: {} (ui.perfetto.dev)",
            self.verdict,
            self.trace.display()
        );
        out
    }
}

fn ratio(a: f64, b: f64) -> f64 {
    if b > 0.0 { a / b } else { 0.0 }
}

fn class_times(
    steps: &[Step],
    spans: &[Span],
    phases: &BTreeMap<&str, f64>,
    total_ms: f64,
    machine: &Machine,
) -> Vec<ClassTime> {
    let count = steps.len().max(1) as f64;
    let mut sums: BTreeMap<Class, (f64, f64, f64)> = Class::ALL.into_iter().map(|c| (c, (0.0, 0.0, 0.0))).collect();
    for share in classes::shares(steps, spans) {
        let sum = sums.entry(share.class).or_default();
        sum.0 += share.own_ns as f64 / 1e6 / count;
        sum.1 += share.flops / 1e9 / count;
        sum.2 += share.bytes / 1e9 / count;
    }
    for (phase, ms) in phases {
        if let Some(class) = Class::of_phase(phase) {
            sums.entry(class).or_default().0 += ms;
        }
    }
    let known: f64 = sums.values().map(|s| s.0).sum();
    sums.entry(Class::Outside).or_default().0 += (total_ms - known).max(0.0);
    let time = |(class, (ms, gflop, gb)): (Class, (f64, f64, f64))| ClassTime {
        class,
        ms,
        share: ratio(ms, total_ms),
        gflop,
        gb,
        of_gemm_peak: ratio(gflop * 1e3, ms * machine.gemm_gflops),
        of_copy_peak: ratio(gb * 1e3, ms * machine.copy_gb_per_s),
    };
    sums.into_iter().map(time).collect()
}

/// One sentence: where most of the time goes, and what would help.
fn verdict(classes: &[ClassTime]) -> String {
    let share = |of: &[Class]| {
        classes
            .iter()
            .filter(|c| of.contains(&c.class))
            .map(|c| c.share)
            .sum::<f64>()
            * 100.0
    };
    let products: Vec<&ClassTime> = classes
        .iter()
        .filter(|c| matches!(c.class, Class::Matmul | Class::Attention))
        .collect();
    let busy = products.iter().map(|c| c.share).sum::<f64>();
    let peak = 100.0 * ratio(products.iter().map(|c| c.of_gemm_peak * c.share).sum(), busy);
    let (data, collective) = (share(&[Class::DataWait]), share(&[Class::Collective]));
    let (outside, memory) = (
        share(&[Class::Outside]),
        share(&[Class::Elementwise, Class::Norms, Class::Optimiser]),
    );
    let (loss, busy) = (share(&[Class::LossTiles]), busy * 100.0);
    let groups = [
        (
            busy,
            format!(
                "limited by arithmetic: {busy:.0} % of a step is the towers' products and attention at {peak:.0} % of this \
             machine's peak; lower precision, more cores or a smaller model would help"
            ),
        ),
        (
            data,
            format!(
                "limited by data: {data:.0} % of a step waits for the loader; more decode threads, smaller pictures or faster \
             storage would help"
            ),
        ),
        (
            collective,
            format!(
                "limited by the collective: {collective:.0} % of a step goes into gathers and sums; a larger batch would help"
            ),
        ),
        (
            memory,
            format!(
                "limited by memory: {memory:.0} % of a step is elementwise work, norms and the optimiser; a larger batch or \
             fewer passes over memory would help"
            ),
        ),
        (
            loss,
            format!("limited by the loss: {loss:.0} % of a step is its tiles; a smaller global batch would help"),
        ),
        (
            outside,
            format!(
                "limited by overhead: {outside:.0} % of a step runs no operator; larger operators (batch, width) would help"
            ),
        ),
    ];
    let largest = groups.into_iter().max_by(|a, b| a.0.total_cmp(&b.0));
    largest.map_or_else(String::new, |(_, sentence)| sentence)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(phases: &[(&str, f32)]) -> StepReport {
        StepReport {
            valid: 8,
            phase_ms: phases.iter().map(|(name, ms)| ((*name).to_owned(), *ms)).collect(),
            ..StepReport::default()
        }
    }

    #[test]
    fn phases_of_a_step_lie_end_to_end_in_the_order_they_happen() {
        let step = Step::new(
            100_000_000,
            &report(&[
                ("apply", 20.0),
                ("checkpoint", 4.0),
                ("lease", 1.0),
                ("encode", 30.0),
                ("load", 10.0),
            ]),
        );
        let names: Vec<&str> = step.phases.iter().map(|p| p.name.as_str()).collect();
        assert_eq!(names, ["load", "encode", "checkpoint", "lease", "apply"]);
        assert_eq!((step.start_ns, step.phases[4].start_ns), (35_000_000, 80_000_000));
    }

    #[test]
    fn profile_sums_to_the_step_and_names_what_limits_it() {
        let machine = Machine {
            threads: 1,
            gemm_gflops: 100.0,
            copy_gb_per_s: 10.0,
        };
        let steps = [Step::new(
            100_000_000,
            &report(&[("load", 60.0), ("encode", 30.0), ("apply", 10.0)]),
        )];
        let product = Span {
            name: "aten::mm".into(),
            start_ns: 70_000_000,
            end_ns: 80_000_000,
            flops: 5e8,
            bytes: 1e6,
            thread: 1,
            backward: false,
        };
        let profile = Profile::new(&steps, &[product], machine, "t.json".into());
        let total: f64 = profile.classes.iter().map(|c| c.ms).sum();
        assert!((total - profile.step_ms).abs() < 1e-3 && (profile.step_ms - 100.0).abs() < 1e-3);
        let matmul = &profile.classes[0];
        assert!((matmul.of_gemm_peak - 0.5).abs() < 1e-6, "{matmul:?}");
        assert!(
            profile.verdict.starts_with("limited by data: 60 %"),
            "{}",
            profile.verdict
        );
        assert!((profile.samples_per_second - 80.0).abs() < 1e-3);
        assert!(profile.table().contains("data wait"));
    }
}
