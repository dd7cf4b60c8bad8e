//! Is the machine quiet enough to measure on?

use std::fs;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail};

/// Share of all cores that may be busy with something else.
const BUSY_MAX: f64 = 0.15;
const WATCH: Duration = Duration::from_secs(2);

/// Share of all cores' time that was spent working while we watched.
pub(crate) fn busy_share() -> Result<f64> {
    let before = read()?;
    thread::sleep(WATCH);
    Ok(calc_busy(before, read()?))
}

/// Refuses with the share and what to do.
pub(crate) fn refuse_when_busy(busy: f64) -> Result<()> {
    if busy > BUSY_MAX {
        bail!(
            "{:.0} % of this machine's cores are busy with something else (at most {:.0} % may be): a figure taken now would \
             be noise; stop what runs, or pass --try to look without writing the report",
            busy * 100.0,
            BUSY_MAX * 100.0
        );
    }
    Ok(())
}

/// (idle, all) in clock ticks since boot.
fn read() -> Result<(u64, u64)> {
    let text = fs::read_to_string("/proc/stat").context("cannot read /proc/stat")?;
    parse(&text).context("the first line of /proc/stat is not what Linux writes there")
}

fn parse(text: &str) -> Option<(u64, u64)> {
    let ticks: Vec<u64> = text
        .lines()
        .next()?
        .strip_prefix("cpu ")?
        .split_whitespace()
        .map_while(|word| word.parse().ok())
        .collect();
    // user nice system idle iowait irq softirq steal; what follows is counted in the first ones already.
    let idle = ticks.get(3)? + ticks.get(4)?;
    Some((idle, ticks.iter().take(8).sum()))
}

fn calc_busy(before: (u64, u64), after: (u64, u64)) -> f64 {
    let all = after.1.saturating_sub(before.1).max(1);
    let idle = after.0.saturating_sub(before.0).min(all);
    (all - idle) as f64 / all as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn busy_share_counts_what_is_neither_idle_nor_waiting() {
        let before = parse("cpu  100 0 0 100 0 0 0 0 0 0\ncpu0 1").unwrap();
        let after = parse("cpu  130 0 10 150 10 0 0 0 5 0\n").unwrap();
        assert!((calc_busy(before, after) - 0.4).abs() < 1e-12);
    }

    #[test]
    fn busy_machine_is_refused_with_its_share() {
        assert!(refuse_when_busy(0.5).unwrap_err().to_string().starts_with("50 %"));
        assert!(refuse_when_busy(0.1).is_ok());
    }
}
