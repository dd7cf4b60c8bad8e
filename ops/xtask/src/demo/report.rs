//! The demo's numbers, for a person and for a machine.

use anyhow::{Context, Result};
use serde_json::{Value, json};
use std::fmt::Write as _;

use super::follow::Story;

/// Zero-shot accuracy on one style. Accuracies are shares, 0 to 1.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Style {
    pub(crate) name: String,
    pub(crate) trained: bool,
    pub(crate) top1: f64,
    pub(crate) top5: f64,
    pub(crate) chance: f64,
    pub(crate) samples: u64,
    pub(crate) subcategory_top1: Option<f64>,
}

impl Style {
    /// From what `argosy eval zero-shot -o json` prints.
    pub(crate) fn read(name: &str, trained: bool, value: &Value) -> Result<Self> {
        let number = |key: &str| {
            value[key]
                .as_f64()
                .with_context(|| format!("the evaluation of {name} has no `{key}`: {value}"))
        };
        Ok(Self {
            name: name.to_owned(),
            trained,
            top1: number("top1")?,
            top5: number("top5")?,
            chance: number("chance")?,
            samples: number("samples")? as u64,
            subcategory_top1: value["subcategories"]["top1"].as_f64(),
        })
    }

    fn json(&self) -> Value {
        json!({
            "name": self.name, "trained": self.trained, "top1": self.top1, "top5": self.top5,
            "chance": self.chance, "samples": self.samples, "subcategory_top1": self.subcategory_top1,
        })
    }
}

/// Accuracy on a style at one checkpoint.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Point {
    style: String,
    step: u64,
    seconds: f64,
    top1: f64,
}

impl Point {
    /// What was measured beside the training, in the order of steps.
    pub(crate) fn of(story: &Story) -> Vec<Self> {
        let seconds = |step: u64| {
            story
                .checkpoints
                .iter()
                .find(|c| c.step == step)
                .map_or(0.0, |c| c.seconds)
        };
        let mut points: Vec<Self> = story
            .evaluations
            .iter()
            .map(|(style, step, top1)| Self {
                style: style.clone(),
                step: *step,
                seconds: seconds(*step),
                top1: *top1,
            })
            .collect();
        points.sort_by(|a, b| (&a.style, a.step).cmp(&(&b.style, b.step)));
        points
    }
}

/// Spearman's rank correlation of top-1 with time, the mean over styles; `None` where a style has less than three points.
pub(crate) fn rank_correlation(points: &[Point]) -> Option<f64> {
    let mut styles: Vec<&str> = points.iter().map(|p| p.style.as_str()).collect();
    styles.dedup();
    let of = |style: &&str| {
        let own: Vec<&Point> = points.iter().filter(|p| p.style == **style).collect();
        let column = |value: fn(&Point) -> f64| ranks(&own.iter().map(|p| value(p)).collect::<Vec<f64>>());
        (own.len() > 2).then(|| correlation(&column(|p| p.step as f64), &column(|p| p.top1)))
    };
    let each: Option<Vec<f64>> = styles.iter().map(of).collect();
    each.filter(|e| !e.is_empty())
        .map(|e| e.iter().sum::<f64>() / e.len() as f64)
}

/// Equal values share the mean of their ranks.
fn ranks(values: &[f64]) -> Vec<f64> {
    let rank = |v: &f64| {
        let below = values.iter().filter(|o| *o < v).count();
        let equal = values.iter().filter(|o| *o == v).count();
        below as f64 + (equal as f64 - 1.0) / 2.0
    };
    values.iter().map(rank).collect()
}

fn correlation(a: &[f64], b: &[f64]) -> f64 {
    let mean = |v: &[f64]| v.iter().sum::<f64>() / v.len().max(1) as f64;
    let (ma, mb) = (mean(a), mean(b));
    let sum = |f: fn(f64, f64) -> f64| a.iter().zip(b).map(|(x, y)| f(x - ma, y - mb)).sum::<f64>();
    let spread = (sum(|x, _| x * x) * sum(|_, y| y * y)).sqrt();
    if spread > 0.0 { sum(|x, y| x * y) / spread } else { 0.0 }
}

/// `target/demo/summary.json`.
pub(crate) fn summary(story: &Story, styles: &[Style], over_time: &[Point]) -> Value {
    let killed: Vec<Value> = story
        .victim
        .iter()
        .map(|(_, pid)| json!({"pid": pid, "wait_status": story.victim_status}))
        .collect();
    let point = |p: &Point| json!({"style": p.style, "step": p.step, "seconds": p.seconds, "top1": p.top1});
    json!({
        "styles": styles.iter().map(Style::json).collect::<Vec<_>>(),
        "pids": story.pids.values().collect::<Vec<_>>(),
        "killed": killed,
        "workers_lost": story.workers_lost,
        "workers_rejoined": story.rejoined(),
        "train_seconds": story.summary["train_seconds"],
        "images_per_second": story.summary["images_per_second"],
        "loss_first": story.summary["loss_first"],
        "loss_last": story.summary["loss_last"],
        "interrupted_at_step": story.interrupted_at,
        "resumed_from_step": story.resumed_from,
        "resumed_first_step_seconds": story.summary["resumed_first_step_seconds"],
        "top1_rank_correlation": rank_correlation(over_time),
        "top1_over_time": over_time.iter().map(point).collect::<Vec<_>>(),
    })
}

/// The table at the end of the demo: trained styles first.
pub(crate) fn table(story: &Story, styles: &[Style]) -> String {
    let mut text =
        String::from("\nstyle         trained   top-1   top-5  chance  x chance  samples  subcategory top-1\n");
    let mut sorted: Vec<&Style> = styles.iter().collect();
    sorted.sort_by_key(|style| (!style.trained, style.name.clone()));
    for s in sorted {
        let group = s.subcategory_top1.map_or_else(|| "-".to_owned(), percent);
        let _ = writeln!(
            text,
            "{:<12}  {:<7}  {:>6}  {:>6}  {:>6}  {:>8.0}  {:>7}  {group:>17}",
            s.name,
            if s.trained { "yes" } else { "no" },
            percent(s.top1),
            percent(s.top5),
            percent(s.chance),
            s.top1 / s.chance,
            s.samples,
        );
    }
    let number = |key: &str| story.summary[key].as_f64().unwrap_or_default();
    let _ = writeln!(
        text,
        "\nloss {:.2} to {:.2}, {:.0} images/s for {:.0} s; workers lost {}, rejoined {}; interrupted and resumed with another number, first step begun {:.1} s after the start; every position trained once (audited)",
        number("loss_first"),
        number("loss_last"),
        number("images_per_second"),
        number("train_seconds"),
        story.workers_lost,
        story.rejoined(),
        number("resumed_first_step_seconds"),
    );
    text
}

fn percent(share: f64) -> String {
    format!("{:.2}%", share * 100.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn style(name: &str, trained: bool) -> Style {
        let value =
            json!({"top1": 0.05, "top5": 0.2, "chance": 0.001, "samples": 856, "subcategories": {"top1": 0.25}});
        Style::read(name, trained, &value).unwrap()
    }

    #[test]
    fn table_lists_trained_styles_first_with_their_factor_over_chance() {
        let text = table(&Story::default(), &[style("fx", false), style("noto", true)]);
        let lines: Vec<&str> = text.lines().filter(|line| line.contains('%')).collect();
        assert!(lines[0].starts_with("noto") && lines[0].contains("yes"), "{text}");
        assert!(
            lines[1].starts_with("fx") && lines[1].contains(" 50 ") && lines[1].contains("25.00%"),
            "{text}"
        );
    }

    #[test]
    fn summary_has_the_keys_that_readers_expect() {
        let unseen = style("fx", false);
        let mut story = Story::default();
        (story.victim, story.victim_status) = (Some((2, 72)), Some(9));
        story.evaluations = vec![("fx".into(), 8, 0.25)];
        let points = Point::of(&story);
        let value = summary(&story, std::slice::from_ref(&unseen), &points);
        assert_eq!(value["killed"], json!([{"pid": 72, "wait_status": 9}]));
        assert_eq!(value["styles"][0]["samples"], 856);
        assert_eq!(value["top1_over_time"][0]["step"], 8);
        for key in [
            "pids",
            "workers_lost",
            "workers_rejoined",
            "train_seconds",
            "images_per_second",
            "loss_first",
            "loss_last",
        ] {
            assert!(value.get(key).is_some(), "{key}");
        }
    }

    #[test]
    fn rank_correlation_is_one_for_what_only_rises_and_less_for_what_falls_once() {
        let mut story = Story::default();
        story.evaluations = [0.1, 0.2, 0.3, 0.4]
            .iter()
            .zip(1..)
            .map(|(t, s)| ("fx".into(), s, *t))
            .collect();
        assert!((rank_correlation(&Point::of(&story)).unwrap() - 1.0).abs() < 1e-12);
        story.evaluations[3].2 = 0.0;
        assert!((rank_correlation(&Point::of(&story)).unwrap() + 0.2).abs() < 1e-12);
        story.evaluations.truncate(2);
        assert_eq!(rank_correlation(&Point::of(&story)), None);
    }

    #[test]
    fn evaluation_without_a_number_is_named() {
        let error = Style::read("fx", false, &json!({"top1": 0.1})).unwrap_err().to_string();
        assert!(error.contains("fx") && error.contains("top5"), "{error}");
    }
}
