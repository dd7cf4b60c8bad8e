//! Line charts as SVG: no script, colours by class so that the page's style decides light and dark.

use std::fmt::Write as _;

/// Size of a chart in its own units.
const WIDTH: f64 = 720.0;
const HEIGHT: f64 = 240.0;
/// Room for numbers.
const LEFT: f64 = 58.0;
const RIGHT: f64 = 14.0;
const TOP: f64 = 12.0;
const BOTTOM: f64 = 40.0;
/// Points that are drawn of one line; more are drawn as the extremes of each stretch.
const POINTS_MAX: usize = 600;

/// How the horizontal axis reads.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Axis {
    Steps,
    Seconds,
}

/// One line.
#[derive(Clone, Debug)]
pub(super) struct Line {
    pub(super) name: String,
    pub(super) points: Vec<(f64, f64)>,
    /// Number of its colour.
    pub(super) color: usize,
    /// A dashed line without points, for what is compared with.
    pub(super) dashed: bool,
}

/// A chart.
#[derive(Clone, Debug)]
pub(super) struct Chart {
    /// Read out by those who cannot see it.
    pub(super) label: String,
    pub(super) axis: Axis,
    pub(super) lines: Vec<Line>,
    /// Stretches that are shaded: from, to, why.
    pub(super) bands: Vec<(f64, f64, String)>,
    /// Whether the vertical axis begins at zero.
    pub(super) from_zero: bool,
    /// Shows a dot for each point.
    pub(super) dots: bool,
    pub(super) percent: bool,
}

#[derive(Debug)]
struct Scale {
    low: f64,
    high: f64,
    from: f64,
    to: f64,
}

impl Scale {
    fn place(&self, value: f64) -> f64 {
        self.from + (value - self.low) / (self.high - self.low) * (self.to - self.from)
    }
}

impl Chart {
    /// The chart; nothing if it has no point.
    pub(super) fn svg(&self) -> Option<String> {
        let points = || self.lines.iter().flat_map(|l| &l.points);
        let range = |values: &mut dyn Iterator<Item = f64>| {
            let finite = values.filter(|v| v.is_finite());
            finite.fold((f64::INFINITY, f64::NEG_INFINITY), |(a, b), v| (a.min(v), b.max(v)))
        };
        let (x_low, x_high) = range(&mut points().map(|p| p.0));
        let (mut y_low, y_high) = range(&mut points().map(|p| p.1));
        if x_low > x_high || y_low > y_high {
            return None;
        }
        if self.from_zero {
            y_low = y_low.min(0.0);
        }
        let y_ticks = ticks(y_low, y_high, 4);
        let x = Scale {
            low: x_low,
            high: if x_high > x_low { x_high } else { x_low + 1.0 },
            from: LEFT,
            to: WIDTH - RIGHT,
        };
        let y = Scale {
            low: y_ticks[0],
            high: y_ticks[y_ticks.len() - 1],
            from: HEIGHT - BOTTOM,
            to: TOP,
        };
        let mut svg = format!(
            "<svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" aria-label=\"{}\">",
            super::page::escape(&self.label)
        );
        self.bands(&mut svg, &x);
        self.axes(&mut svg, &x, &y, &y_ticks);
        for line in &self.lines {
            self.line(&mut svg, line, &x, &y);
        }
        svg.push_str("</svg>");
        Some(svg)
    }

    fn bands(&self, svg: &mut String, x: &Scale) {
        for (from, to, why) in &self.bands {
            let left = x.place(from.clamp(x.low, x.high));
            let right = x.place(to.clamp(x.low, x.high));
            // A short recovery of a long run must still be seen.
            let _ = write!(
                svg,
                "<rect class=\"band\" x=\"{:.1}\" y=\"{TOP}\" width=\"{:.1}\" height=\"{:.1}\"><title>{}</title></rect>",
                left.min(WIDTH - RIGHT - 2.0),
                (right - left).max(2.0),
                HEIGHT - BOTTOM - TOP,
                super::page::escape(why)
            );
        }
    }

    fn axes(&self, svg: &mut String, x: &Scale, y: &Scale, y_ticks: &[f64]) {
        let gap = y_ticks[1] - y_ticks[0];
        for tick in y_ticks {
            let at = y.place(*tick);
            let text = if self.percent {
                format!("{} %", number(tick * 100.0, gap * 100.0))
            } else {
                number(*tick, gap)
            };
            let _ = write!(
                svg,
                "<line class=\"grid\" x1=\"{LEFT}\" x2=\"{:.1}\" y1=\"{at:.1}\" y2=\"{at:.1}\"/>\
                 <text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{text}</text>",
                WIDTH - RIGHT,
                LEFT - 8.0,
                at + 4.0
            );
        }
        let x_ticks = ticks(x.low, x.high, 6);
        let gap = x_ticks[1] - x_ticks[0];
        for tick in x_ticks.iter().filter(|t| (x.low..=x.high).contains(*t)) {
            // Numbers of steps are whole.
            if self.axis == Axis::Steps && tick.fract() != 0.0 {
                continue;
            }
            let text = match self.axis {
                Axis::Steps => number(*tick, gap),
                Axis::Seconds => clock(*tick),
            };
            let at = x.place(*tick);
            let _ = write!(
                svg,
                "<text x=\"{at:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{text}</text>",
                HEIGHT - 22.0
            );
        }
        let name = match self.axis {
            Axis::Steps => "step",
            Axis::Seconds => "time",
        };
        let _ = write!(
            svg,
            "<text class=\"axis\" x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{name}</text>",
            WIDTH - RIGHT,
            HEIGHT - 5.0
        );
    }

    fn line(&self, svg: &mut String, line: &Line, x: &Scale, y: &Scale) {
        let points = thin(&line.points);
        let mut path = String::new();
        let mut pen_down = false;
        for (px, py) in &points {
            if py.is_finite() {
                let verb = if pen_down { 'L' } else { 'M' };
                let _ = write!(path, "{verb}{:.1} {:.1}", x.place(*px), y.place(*py));
            }
            pen_down = py.is_finite();
        }
        let dash = if line.dashed { " dash" } else { "" };
        let _ = write!(svg, "<path class=\"line c{}{dash}\" d=\"{path}\"/>", line.color % 6);
        if self.dots && !line.dashed {
            for (px, py) in points.iter().filter(|p| p.1.is_finite()) {
                let value = if self.percent {
                    format!("{:.2} %", py * 100.0)
                } else {
                    format!("{py}")
                };
                let _ = write!(
                    svg,
                    "<circle class=\"c{}\" cx=\"{:.1}\" cy=\"{:.1}\" r=\"3.5\"><title>{}, step {px}: {value}</title></circle>",
                    line.color % 6,
                    x.place(*px),
                    y.place(*py),
                    super::page::escape(&line.name)
                );
            }
        }
    }
}

/// Lowest and highest point of each stretch, in their order, where there are too many.
fn thin(points: &[(f64, f64)]) -> Vec<(f64, f64)> {
    if points.len() <= POINTS_MAX {
        return points.to_vec();
    }
    let size = points.len().div_ceil(POINTS_MAX / 2);
    let mut out = Vec::new();
    for stretch in points.chunks(size) {
        let at = |better: fn(f64, f64) -> bool| {
            (0..stretch.len()).fold(
                0,
                |best, i| if better(stretch[i].1, stretch[best].1) { i } else { best },
            )
        };
        let (low, high) = (at(|a, b| a < b), at(|a, b| a > b));
        out.push(stretch[low.min(high)]);
        if low != high {
            out.push(stretch[low.max(high)]);
        }
    }
    out
}

/// Round numbers that enclose `low` and `high`, about `count` gaps apart; at least two.
fn ticks(low: f64, high: f64, count: usize) -> Vec<f64> {
    let span = if high > low {
        high - low
    } else {
        low.abs().max(1.0) * 0.1
    };
    let raw = span / count as f64;
    let power = 10f64.powf(raw.log10().floor());
    let step = [1.0, 2.0, 5.0, 10.0]
        .iter()
        .map(|m| m * power)
        .find(|s| *s >= raw * 0.999)
        .unwrap_or(10.0 * power);
    let first = (low / step).floor();
    let last = (high / step).ceil().max(first + 1.0);
    (0..=(last - first) as usize)
        .map(|i| (first + i as f64) * step)
        .collect()
}

/// A tick in as many digits as tell it from its neighbour.
fn number(value: f64, gap: f64) -> String {
    if value == 0.0 {
        return "0".to_owned();
    }
    let text = match value.abs() {
        v if v >= 1e6 => format!("{:.1}M", value / 1e6),
        v if v >= 1e4 => format!("{:.1}k", value / 1e3),
        v if v < 1e-3 => return format!("{value:.1e}").replace(".0e", "e"),
        _ => format!("{value:.*}", (-gap.log10().floor()).clamp(0.0, 6.0) as usize),
    };
    text.replace(".0k", "k").replace(".0M", "M")
}

/// Seconds as `1:02:03`, `2:03` or `7 s`.
pub(super) fn clock(seconds: f64) -> String {
    let s = seconds.round().max(0.0) as u64;
    match s {
        0..=59 => format!("{s} s"),
        60..=3599 => format!("{}:{:02}", s / 60, s % 60),
        _ => format!("{}:{:02}:{:02}", s / 3600, s % 3600 / 60, s % 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round_and_enclose_the_values() {
        assert_eq!(ticks(0.0, 7.3, 4), [0.0, 2.0, 4.0, 6.0, 8.0]);
        assert!(ticks(5.0, 5.0, 4).len() >= 2);
        let t = ticks(4.61, 5.73, 4);
        assert!(t[0] <= 4.61 && t[t.len() - 1] >= 5.73, "{t:?}");
        assert_eq!(
            (number(0.5, 0.5), number(12_000.0, 2000.0), number(1e-4, 1e-4)),
            ("0.5".into(), "12k".into(), "1e-4".into())
        );
    }

    #[test]
    fn thin_keeps_the_extremes_of_many_points() {
        let mut points: Vec<(f64, f64)> = (0..100_000).map(|i| (f64::from(i), 1.0)).collect();
        (points[4_321].1, points[77_777].1) = (9.0, -9.0);
        let thinned = thin(&points);
        assert!(thinned.len() <= POINTS_MAX && thinned.contains(&(4321.0, 9.0)) && thinned.contains(&(77_777.0, -9.0)));
        assert!(thinned.windows(2).all(|w| w[0].0 < w[1].0));
    }

    #[test]
    fn chart_of_hostile_names_holds_no_markup_of_theirs_and_an_empty_one_is_none() {
        let mut chart = Chart {
            label: "a\"><script>".into(),
            axis: Axis::Steps,
            lines: vec![Line {
                name: "<b>".into(),
                points: vec![(1.0, 0.1), (2.0, f64::NAN), (3.0, 0.2)],
                color: 0,
                dashed: false,
            }],
            bands: vec![(1.0, 2.0, "<i>".into())],
            from_zero: true,
            dots: true,
            percent: true,
        };
        let svg = chart.svg().unwrap();
        assert!(
            !svg.contains("<script") && !svg.contains("<b>") && !svg.contains("<i>"),
            "{svg}"
        );
        assert!(!svg.contains("NaN"), "{svg}");
        chart.lines.clear();
        assert_eq!(chart.svg(), None);
    }
}
