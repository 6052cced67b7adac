//! The plot: a bar for each tool, its speed to the right, what it costs beside it.

use std::fmt::Write as _;

use crate::results::{Results, Series};

const WIDTH: f64 = 980.0;
const LABELS: f64 = 250.0;
const PANEL: f64 = 300.0;
const BAR: f64 = 16.0;
const STEP: f64 = 24.0;
const HEAD: f64 = 44.0;

/// Draws everything that has a rate.
pub(crate) fn draw(results: &Results) -> String {
    let mut groups: Vec<(String, Vec<&Series>)> = Vec::new();
    for series in &results.series {
        let name = format!("{}; {}", series.input, series.network);
        match groups.iter_mut().find(|(group, _)| *group == name) {
            Some((_, members)) => members.push(series),
            None => groups.push((name, vec![series])),
        }
    }
    let rows: usize = groups.iter().map(|(_, members)| members.len()).sum();
    let height = HEAD + groups.len() as f64 * (STEP + 18.0) + rows as f64 * STEP + 20.0;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" \
         font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"{WIDTH}\" height=\"{height}\" fill=\"#fff\"/>\n"
    );
    let cost_left = LABELS + PANEL + 90.0;
    text(&mut svg, LABELS, 24.0, "GB/s, more is better", "bold");
    text(&mut svg, cost_left, 24.0, "CPU seconds per GB, both ends, less is better", "bold");
    let mut y = HEAD;
    for (name, members) in groups {
        y += 18.0;
        text(&mut svg, 8.0, y, &name, "bold");
        y += 10.0;
        // Each group has a scale of its own: the floor of one would hide another.
        let most = |of: fn(&Series) -> f64| members.iter().map(|s| of(s)).fold(0.0, f64::max);
        let (fastest, dearest) = (most(Series::gb_per_second), most(Series::cpu_per_gb));
        for series in members {
            let colour = if series.ours { "#1f6feb" } else { "#9aa4b2" };
            text(&mut svg, 16.0, y + 12.0, &series.tool, "normal");
            bar(&mut svg, LABELS, y, series.gb_per_second(), fastest, colour);
            // Without it the daemon's part is not known.
            if series.startup_cpu_seconds > 0.0 {
                bar(&mut svg, cost_left, y, series.cpu_per_gb(), dearest, colour);
            }
            y += STEP;
        }
        y += STEP - 10.0;
    }
    svg += "</svg>\n";
    svg
}

fn bar(svg: &mut String, x: f64, y: f64, value: f64, most: f64, colour: &str) {
    if value.is_nan() {
        return text(svg, x, y + 12.0, "none", "normal");
    }
    let length = if most > 0.0 { value / most * (PANEL - 60.0) } else { 0.0 };
    let _ = writeln!(
        svg,
        "<rect x=\"{x}\" y=\"{y}\" width=\"{length:.1}\" height=\"{BAR}\" fill=\"{colour}\"/>"
    );
    text(svg, x + length + 6.0, y + 12.0, &format!("{value:.2}"), "normal");
}

fn text(svg: &mut String, x: f64, y: f64, words: &str, weight: &str) {
    let words = words.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
    let _ = writeln!(
        svg,
        "<text x=\"{x}\" y=\"{y}\" font-weight=\"{weight}\" fill=\"#1b1f24\">{words}</text>"
    );
}
