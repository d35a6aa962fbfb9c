// SPDX-License-Identifier: MIT OR Apache-2.0
//! The SVG plots.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;

use plotters::prelude::*;

use crate::figure::Point;

/// How a chart is drawn.
struct Style {
    title: String,
    x: &'static str,
    y: &'static str,
    log_x: bool,
    log_y: bool,
    legend: SeriesLabelPosition,
}

fn style(chart: &str) -> Style {
    let style = |title: &str, x, y, log_x, log_y| Style {
        title: title.into(),
        x,
        y,
        log_x,
        log_y,
        legend: SeriesLabelPosition::UpperLeft,
    };
    let cost = |title| style(title, "tables", "ns", true, true);
    if let Some(tables) = chart.strip_prefix("threads_") {
        let title = format!("Hits per second, {tables} tables");
        return style(&title, "threads", "million hits/s", false, false);
    }
    if let Some(workload) = chart.strip_prefix("eviction_") {
        let title = format!("Hit ratio: {}", workload.replace('_', "/"));
        return style(&title, "tables", "hit ratio", true, false);
    }
    match chart {
        "hit" => cost("Hit: get + put, random, after churn"),
        "miss" => cost("Miss with a clean victim, without I/O"),
        "flush" => cost("Flush"),
        "clean" => cost("Cleaning pass, all tables in use"),
        "read" => cost("Copy of an entry"),
        "lookup" => cost("is_table_offset, absent"),
        "waiters" => Style {
            x: "coroutines",
            ..cost("Gets that wait in one cache, each")
        },
        _ => Style {
            legend: SeriesLabelPosition::UpperRight,
            ..style(
                "Resident memory: 3 s of load, then idle; the cleaner runs every second",
                "s",
                "MiB",
                false,
                false,
            )
        },
    }
}

type Lines = BTreeMap<String, Vec<(f64, f64)>>;

/// Draws each chart that has points, as `NAME.svg` in `out`.
pub fn draw(points: &[Point], out: &Path) -> Result<(), String> {
    let mut charts: BTreeMap<&str, Lines> = BTreeMap::new();
    for point in points {
        let lines = charts.entry(&point.chart).or_default();
        lines
            .entry(point.line.clone())
            .or_default()
            .push((point.x, point.y));
    }
    for (chart, lines) in &charts {
        let path = out.join(format!("{chart}.svg"));
        draw_one(&style(chart), lines, &path).map_err(|e| format!("{}: {e}", path.display()))?;
    }
    Ok(())
}

/// Draws one chart. Logarithmic axes hold the logarithms of their values; only the labels show the
/// values themselves.
fn draw_one(style: &Style, lines: &Lines, path: &Path) -> Result<(), Box<dyn std::error::Error>> {
    let at = |(x, y): &(f64, f64)| {
        let x = if style.log_x { x.log2() } else { *x };
        let y = if style.log_y { y.max(0.1).log10() } else { *y };
        (x, y)
    };
    let points = || lines.values().flatten().map(at);
    let x_range = range(points().map(|p| p.0), None);
    // Leave room above, but none below the 0 of a linear axis.
    let mut y_range = range(points().map(|p| p.1), (!style.log_y).then_some(0.0));
    let mut y_labels = 10;
    if style.log_y {
        // Show whole decades.
        y_range = y_range.start.floor()..y_range.end.ceil();
        y_labels = (y_range.end - y_range.start) as usize + 1;
    }
    let root = SVGBackend::new(path, (820, 480)).into_drawing_area();
    root.fill(&WHITE)?;
    let mut chart = ChartBuilder::on(&root)
        .caption(&style.title, ("sans-serif", 20))
        .margin(12)
        .x_label_area_size(44)
        .y_label_area_size(72)
        .build_cartesian_2d(x_range, y_range)?;
    let back = |log: bool, base: f64, v: &f64| number(if log { base.powf(*v) } else { *v });
    chart
        .configure_mesh()
        .light_line_style(WHITE)
        .x_labels(if style.x == "threads" { 4 } else { 10 })
        .y_labels(y_labels)
        .x_desc(style.x)
        .y_desc(style.y)
        .x_label_formatter(&|v| back(style.log_x, 2.0, v))
        .y_label_formatter(&|v| back(style.log_y, 10.0, v))
        .draw()?;
    for (i, (name, points)) in lines.iter().enumerate() {
        let color = color(name, i);
        let thick = if name.starts_with("ours") { 3 } else { 1 };
        let line = LineSeries::new(points.iter().map(at), color.stroke_width(thick));
        let drawn = chart.draw_series(line)?;
        drawn.label(name).legend(move |(x, y)| {
            PathElement::new([(x, y), (x + 18, y)], color.stroke_width(thick))
        });
        if points.len() < 50 {
            let dots = points.iter().map(|p| Circle::new(at(p), 3, color.filled()));
            chart.draw_series(dots)?;
        }
    }
    chart
        .configure_series_labels()
        .position(style.legend.clone())
        .background_style(WHITE.mix(0.85))
        .border_style(BLACK.mix(0.3))
        .draw()?;
    root.present()?;
    Ok(())
}

/// The colour of a line. A contender or policy has the same colour in every plot.
fn color(name: &str, number: usize) -> RGBAColor {
    const KNOWN: [(&str, RGBColor); 13] = [
        ("probe", RGBColor(110, 110, 110)),
        ("probe and copy", RGBColor(210, 120, 0)),
        ("process, above the start", RGBColor(200, 40, 30)),
        ("tables, by statistics", RGBColor(0, 90, 181)),
        ("ours", RGBColor(0, 90, 181)),
        ("linear", RGBColor(200, 40, 30)),
        ("lru", RGBColor(210, 120, 0)),
        ("quick_cache", RGBColor(120, 60, 160)),
        ("floor", RGBColor(110, 110, 110)),
        ("LRU", RGBColor(210, 120, 0)),
        ("CLOCK", RGBColor(20, 140, 60)),
        ("SIEVE", RGBColor(120, 60, 160)),
        ("S3-FIFO", RGBColor(200, 40, 30)),
    ];
    let known = KNOWN.iter().find(|(known, _)| *known == name);
    known.map_or_else(
        || Palette99::pick(number).to_rgba(),
        |(_, color)| color.to_rgba(),
    )
}

fn range(values: impl Iterator<Item = f64>, floor: Option<f64>) -> Range<f64> {
    let (low, high) = values.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), v| {
        (low.min(v), high.max(v))
    });
    let room = ((high - low) * 0.04).max(1e-6);
    floor.map_or(low - room, |floor| floor.min(low))..high + room
}

fn number(value: f64) -> String {
    match value {
        v if v >= 1e6 => format!("{:.0}M", v / 1e6),
        v if v >= 10.0 || v.fract() == 0.0 => format!("{v:.0}"),
        v => format!("{v:.1}"),
    }
}
