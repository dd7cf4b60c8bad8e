//! One figure of a bench: its rounds, their medians, and whether it keeps its bound.

use serde_json::{Value, json};

/// Which way is better.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Better {
    /// A rate: ratio = ours / peer.
    Higher,
    /// A cost: ratio = peer / ours, so that a ratio above one always means "ours is better".
    Lower,
}

/// What a figure must keep.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Bound {
    AtLeast(f64),
    AtMost(f64),
}

impl Bound {
    fn keeps(self, value: f64) -> bool {
        match self {
            Self::AtLeast(bound) => value >= bound,
            Self::AtMost(bound) => value <= bound,
        }
    }

    fn text(self) -> String {
        match self {
            Self::AtLeast(bound) => format!(">= {bound}"),
            Self::AtMost(bound) => format!("<= {bound}"),
        }
    }
}

/// What is measured.
#[derive(Debug, Clone)]
pub(crate) struct Measure {
    /// As a reader of the table needs it: "ViT-B-32, batch 16, fp32".
    pub(crate) label: String,
    /// "samples/s", "s", "MB".
    pub(crate) unit: &'static str,
    pub(crate) better: Better,
    /// On the ratio in a race, on the value otherwise. `None` only shows the figure.
    pub(crate) bound: Option<Bound>,
}

/// A measure with its rounds. `peer` has as many as `ours`, or none.
#[derive(Debug, Clone)]
pub(crate) struct Figure {
    pub(crate) measure: Measure,
    pub(crate) ours: Vec<f64>,
    pub(crate) peer: Vec<f64>,
    pub(crate) peer_name: String,
}

impl Figure {
    /// Median over rounds of each round's ratio: what both sides met in a round cancels.
    pub(crate) fn ratio(&self) -> Option<f64> {
        let ratios: Vec<f64> = self
            .ours
            .iter()
            .zip(&self.peer)
            .map(|(ours, peer)| match self.measure.better {
                Better::Higher => ours / peer,
                Better::Lower => peer / ours,
            })
            .collect();
        (!ratios.is_empty()).then(|| median(&ratios))
    }

    pub(crate) fn is_met(&self) -> bool {
        let value = self.ratio().unwrap_or_else(|| median(&self.ours));
        self.measure.bound.is_none_or(|bound| bound.keeps(value))
    }

    pub(crate) fn to_json(&self) -> Value {
        let mut value = json!({
            "measure": self.measure.label, "unit": self.measure.unit,
            "ours": self.ours, "ours_median": median(&self.ours),
            "bound": self.measure.bound.map(Bound::text), "met": self.is_met(),
        });
        if let Some(ratio) = self.ratio() {
            value["peer"] = json!(self.peer);
            value["peer_name"] = json!(self.peer_name);
            value["peer_median"] = json!(median(&self.peer));
            value["ratio"] = json!(ratio);
        }
        value
    }
}

/// Middle value, or the mean of the two middle ones; 0 of nothing.
fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    match sorted.len() {
        0 => 0.0,
        odd if odd % 2 == 1 => sorted[odd / 2],
        even => f64::midpoint(sorted[even / 2 - 1], sorted[even / 2]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn figure(better: Better, bound: Bound, ours: &[f64], peer: &[f64]) -> Figure {
        Figure {
            measure: Measure {
                label: "a step".into(),
                unit: "s",
                better,
                bound: Some(bound),
            },
            ours: ours.to_vec(),
            peer: peer.to_vec(),
            peer_name: "them".into(),
        }
    }

    #[test]
    fn ratio_of_a_cost_is_how_many_times_less_we_take() {
        let step = figure(Better::Lower, Bound::AtLeast(1.5), &[1.0, 2.0, 1.0], &[2.0, 3.0, 1.6]);
        assert_eq!(step.ratio(), Some(1.6));
        assert!(step.is_met());
    }

    #[test]
    fn ratio_is_taken_round_by_round_before_the_median() {
        // Medians of the sides would say 1.0: the machine was slow in another round for each.
        let rate = figure(Better::Higher, Bound::AtLeast(1.5), &[2.0, 1.0, 4.0], &[1.0, 2.0, 2.0]);
        assert_eq!(rate.ratio(), Some(2.0));
    }

    #[test]
    fn bound_without_a_peer_is_on_the_value() {
        assert!(!figure(Better::Lower, Bound::AtMost(215.0), &[216.0], &[]).is_met());
        assert!(figure(Better::Lower, Bound::AtMost(215.0), &[214.0], &[]).is_met());
    }
}
