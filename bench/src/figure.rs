// SPDX-License-Identifier: MIT OR Apache-2.0
//! Figures: a value, its target, and the verdict.

use std::fmt;

use serde_json::{Value, json};

use crate::measure::Samples;

/// Quartiles further apart than this share of the median are too far apart to judge a value between them.
const NOISY_SPREAD: f64 = 0.15;

/// What is asked of a figure.
#[derive(Clone, Copy, Debug)]
pub enum Target {
    /// Smaller is better.
    AtMost(f64),
    /// Larger is better.
    AtLeast(f64),
    /// Printed for comparison.
    None,
}

impl Target {
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
    /// It is.
    Ok,
    /// It is not.
    Miss,
    /// The machine was too noisy to tell.
    Noisy,
    /// There is none.
    Info,
}

impl Verdict {
    /// As printed.
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
    /// Dotted: group, what, size, unit of comparison.
    pub name: String,
    /// ns, x (a ratio), bytes, …
    pub unit: &'static str,
    /// What is asked of it.
    pub target: Target,
    /// One value a round; the median is the figure.
    pub samples: Samples,
}

impl Figure {
    /// The median decides. If the quartiles are far apart and do not agree with it, or it fails while most rounds were
    /// disturbed, it decides nothing.
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

    /// For results.json.
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

/// A point of a plot: one line's value at one place.
#[derive(Clone, Debug)]
pub struct Point {
    /// Which plot.
    pub chart: String,
    /// Which line.
    pub line: String,
    /// Where.
    pub x: f64,
    /// What.
    pub y: f64,
}

/// What a group found. Figures are printed as they come.
#[derive(Default)]
pub struct Report {
    /// Of the group, in order.
    pub figures: Vec<Figure>,
    /// For the plots.
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

    /// A figure without a target.
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

    /// For results.json.
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
    fn a_clear_value_is_judged() {
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
    fn a_value_near_its_target_is_judged_by_its_median_if_the_rounds_agree() {
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
    fn rounds_that_disagree_are_noise() {
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
    fn a_disturbed_run_does_not_miss() {
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
