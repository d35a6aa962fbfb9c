// SPDX-License-Identifier: MIT OR Apache-2.0
//! Figures: a value, its target and the verdict.

use std::fmt;

use serde_json::{Value, json};

use crate::measure::Samples;

/// If the quartiles are further apart than this share of the median, a target that lies between
/// them cannot be judged.
const NOISY_SPREAD: f64 = 0.15;

/// What a figure should be.
#[derive(Clone, Copy, Debug)]
pub enum Target {
    /// Smaller is better.
    AtMost(f64),
    /// Larger is better.
    AtLeast(f64),
    /// No target: the figure is printed for comparison.
    None,
}

impl Target {
    /// This target if `judged`, else none.
    pub fn when(self, judged: bool) -> Self {
        if judged { self } else { Target::None }
    }

    fn is_met_by(self, value: f64) -> bool {
        match self {
            Target::AtMost(limit) => value <= limit,
            Target::AtLeast(limit) => value >= limit,
            Target::None => true,
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Target::AtMost(limit) => write!(f, "<={limit}"),
            Target::AtLeast(limit) => write!(f, ">={limit}"),
            Target::None => f.write_str("-"),
        }
    }
}

/// Whether a target is met.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The target is met.
    Ok,
    /// The target is missed.
    Miss,
    /// The machine was too noisy to tell.
    Noisy,
    /// There is no target.
    Info,
}

impl Verdict {
    /// The word that is printed.
    pub fn name(self) -> &'static str {
        match self {
            Verdict::Ok => "ok",
            Verdict::Miss => "MISS",
            Verdict::Noisy => "noisy",
            Verdict::Info => "info",
        }
    }
}

/// One line of the report.
#[derive(Clone, Debug)]
pub struct Figure {
    /// Parts joined by dots: the group, what is measured, the size, the contender or comparison.
    pub name: String,
    /// ns, x (a ratio), bytes, …
    pub unit: &'static str,
    /// What the median should be.
    pub target: Target,
    /// One value for each round; the median is printed.
    pub samples: Samples,
}

impl Figure {
    /// The median decides. There are two exceptions, which give no verdict: the quartiles are far
    /// apart and one of them contradicts the median; or the median misses the target and more than
    /// half of the rounds were disturbed.
    pub fn verdict(&self) -> Verdict {
        if matches!(self.target, Target::None) {
            return Verdict::Info;
        }
        let [low, median, high] = [0.25, 0.5, 0.75].map(|q| self.samples.quantile(q));
        let met = self.target.is_met_by(median);
        let wide = high - low > NOISY_SPREAD * median.abs();
        let split = [low, high].iter().any(|v| self.target.is_met_by(*v) != met);
        let disturbed = self.samples.disturbed * 2 > self.samples.values.len();
        match met {
            _ if wide && split => Verdict::Noisy,
            true => Verdict::Ok,
            false if disturbed => Verdict::Noisy,
            false => Verdict::Miss,
        }
    }

    /// The figure as it stands in results.json.
    pub fn to_json(&self) -> Value {
        json!({
            "name": self.name,
            "value": self.samples.median(),
            "unit": self.unit,
            "target": self.target.to_string(),
            "verdict": self.verdict().name(),
            "least": self.samples.quantile(0.0),
            "quartiles": [self.samples.quantile(0.25), self.samples.quantile(0.75)],
            "rounds": self.samples.values.len(),
            "disturbed": self.samples.disturbed,
        })
    }
}

impl fmt::Display for Figure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let value = readable(self.samples.median());
        let verdict = self.verdict().name();
        write!(
            f,
            "{:<44} {value:>12} {:<8} {:<8} {verdict}",
            self.name,
            self.unit,
            self.target.to_string()
        )
    }
}

fn readable(value: f64) -> String {
    match value.abs() {
        v if v == 0.0 || (v >= 1000.0 && v.fract() == 0.0) => format!("{value:.0}"),
        v if v >= 1000.0 => format!("{value:.0}"),
        v if v >= 10.0 => format!("{value:.1}"),
        v if v >= 0.1 => format!("{value:.3}"),
        _ => format!("{value:.3e}"),
    }
}

/// A point of a plot: the value of one line at one place.
#[derive(Clone, Debug)]
pub struct Point {
    /// The name of the plot.
    pub chart: String,
    /// The name of the line.
    pub line: String,
    /// Place on the horizontal axis.
    pub x: f64,
    /// The value.
    pub y: f64,
}

/// What a group found. A figure is printed as soon as it is added.
#[derive(Default)]
pub struct Report {
    /// The group's figures, in the order in which they were added.
    pub figures: Vec<Figure>,
    /// The points of the group's plots.
    pub points: Vec<Point>,
}

impl Report {
    /// Adds a figure and prints it.
    pub fn figure(
        &mut self,
        name: impl Into<String>,
        unit: &'static str,
        target: Target,
        samples: Samples,
    ) {
        let figure = Figure {
            name: name.into(),
            unit,
            target,
            samples,
        };
        crate::progress::clear();
        println!("{figure}");
        self.figures.push(figure);
    }

    /// Adds a figure without a target and prints it.
    pub fn info(&mut self, name: impl Into<String>, unit: &'static str, samples: &Samples) {
        self.figure(name, unit, Target::None, samples.clone());
    }

    /// Adds a point to a plot.
    pub fn point(&mut self, chart: &str, line: &str, x: f64, y: f64) {
        self.points.push(Point {
            chart: chart.into(),
            line: line.into(),
            x,
            y,
        });
    }

    /// The report as it stands in results.json.
    pub fn to_json(&self) -> Value {
        let points = self
            .points
            .iter()
            .map(|p| json!({ "chart": p.chart, "line": p.line, "x": p.x, "y": p.y }));
        json!({
            "figures": self.figures.iter().map(Figure::to_json).collect::<Vec<_>>(),
            "points": points.collect::<Vec<_>>(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verdict(values: &[f64], disturbed: usize, target: Target) -> Verdict {
        let figure = Figure {
            name: "test".into(),
            unit: "x",
            target,
            samples: Samples {
                values: values.to_vec(),
                disturbed,
            },
        };
        figure.verdict()
    }

    #[test]
    fn verdict_follows_a_clear_median() {
        assert_eq!(
            verdict(&[1.0, 1.1, 1.2], 0, Target::AtMost(1.5)),
            Verdict::Ok
        );
        assert_eq!(
            verdict(&[1.6, 1.7, 1.8], 0, Target::AtMost(1.5)),
            Verdict::Miss
        );
        assert_eq!(verdict(&[1.0], 0, Target::AtLeast(2.0)), Verdict::Miss);
        assert_eq!(verdict(&[1.0], 0, Target::None), Verdict::Info);
    }

    #[test]
    fn verdict_near_the_target_follows_the_median_if_rounds_agree() {
        assert_eq!(
            verdict(&[1.49, 1.49, 1.51], 0, Target::AtMost(1.5)),
            Verdict::Ok
        );
        assert_eq!(
            verdict(&[1.49, 1.51, 1.51], 0, Target::AtMost(1.5)),
            Verdict::Miss
        );
    }

    #[test]
    fn verdict_is_noisy_if_rounds_disagree() {
        assert_eq!(
            verdict(&[1.0, 1.4, 2.4], 0, Target::AtMost(1.5)),
            Verdict::Noisy
        );
        assert_eq!(
            verdict(&[1.0, 1.6, 2.4], 0, Target::AtMost(1.5)),
            Verdict::Noisy
        );
    }

    #[test]
    fn disturbed_rounds_turn_a_miss_into_noisy() {
        assert_eq!(
            verdict(&[1.6, 1.7, 1.8], 2, Target::AtMost(1.5)),
            Verdict::Noisy
        );
        assert_eq!(
            verdict(&[1.0, 1.1, 1.2], 2, Target::AtMost(1.5)),
            Verdict::Ok
        );
    }
}
