//! Bytes on the wire against seconds of processor, drawn as an SVG that reads in light and in dark: one point a tool.
//!
//! Both axes are logarithmic, because tools differ by factors. The nearer to the lower left corner, the better. Colours follow
//! the reader's scheme; shapes say the same as colours, for who cannot tell these apart.

use std::fmt::Write;

use super::row::Knows;

/// A scatter plot.
#[derive(Debug)]
pub struct Plot {
    /// Above it.
    pub title: String,
    /// What is in it.
    pub points: Vec<Point>,
}

/// A tool.
#[derive(Debug)]
pub struct Point {
    /// Seconds of processor, both sides; above zero.
    pub x: f64,
    /// Bytes on the wire, both ways.
    pub y: f64,
    /// Its name.
    pub label: String,
    /// Whether it is goldsync.
    pub ours: bool,
    /// What the publisher must know: its shape.
    pub knows: Knows,
}

const WIDTH: f64 = 880.0;
const HEIGHT: f64 = 600.0;
const LEFT: f64 = 84.0;
const RIGHT: f64 = WIDTH - 28.0;
const TOP: f64 = 72.0;
const BOTTOM: f64 = HEIGHT - 104.0;

/// A character of a label, about.
const LETTER: f64 = 6.5;
const LINE: f64 = 15.0;

const STYLE: &str = "\
text{font:12px system-ui,-apple-system,'Segoe UI',sans-serif;fill:#24292f}\
.paper{fill:#fff}.title{font-size:16px;font-weight:600}.soft{fill:#57606a}.grid{stroke:#d8dee4;stroke-width:1}\
.minor{stroke:#eef1f4}.frame{fill:none;stroke:#8c959f}.lead{stroke:#8c959f;stroke-width:1}\
.peer{fill:#4a6785;stroke:#fff}.ours{fill:#d9480f;stroke:#fff}.ourtext{fill:#b93c08;font-weight:600}\
@media (prefers-color-scheme:dark){text{fill:#e6edf3}.paper{fill:#0d1117}.soft{fill:#9da7b3}.grid{stroke:#262c36}\
.minor{stroke:#191f27}.frame{stroke:#6e7681}.lead{stroke:#6e7681}.peer{fill:#8fb3d9;stroke:#0d1117}\
.ours{fill:#ff8a4c;stroke:#0d1117}.ourtext{fill:#ffa26e}}";

impl Plot {
    /// The drawing.
    pub fn svg(&self) -> String {
        let mut out = String::new();
        // Writing to a String does not fail.
        let _ = self.write(&mut out);
        out
    }

    fn write(&self, out: &mut String) -> std::fmt::Result {
        writeln!(
            out,
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" width=\"{WIDTH}\" height=\"{HEIGHT}\" \
             role=\"img\" aria-label=\"{0}\">\n<style>{STYLE}</style>\n<rect class=\"paper\" width=\"{WIDTH}\" \
             height=\"{HEIGHT}\"/>\n<text class=\"title\" x=\"{LEFT}\" y=\"32\">{0}</text>\n\
             <text class=\"soft\" x=\"{LEFT}\" y=\"54\">One update of one node. Lower left is better.</text>",
            escaped(&self.title)
        )?;
        let x = Axis::over(self.points.iter().map(|point| point.x), LEFT, RIGHT, &seconds_ticks());
        let y = Axis::over(self.points.iter().map(|point| point.y), BOTTOM, TOP, &byte_ticks());
        grid(out, &x, &y)?;
        let places: Vec<(f64, f64)> = self.points.iter().map(|point| (x.place(point.x), y.place(point.y))).collect();
        for (at, label) in labels(&self.points, &places).into_iter().enumerate() {
            self.draw(out, at, places[at], label)?;
        }
        legend(out)?;
        writeln!(out, "</svg>")
    }

    fn draw(&self, out: &mut String, at: usize, (x, y): (f64, f64), label: Label) -> std::fmt::Result {
        let point = &self.points[at];
        let (class, text) = if point.ours { ("ours", "ourtext") } else { ("peer", "") };
        if label.leads {
            let (to_x, to_y) = (x.clamp(label.left, label.left + label.width), label.top + LINE / 2.0);
            writeln!(out, "<line class=\"lead\" x1=\"{x:.1}\" y1=\"{y:.1}\" x2=\"{to_x:.1}\" y2=\"{to_y:.1}\"/>")?;
        }
        shape(out, point.knows, class, x, y, if point.ours { 7.0 } else { 5.5 })?;
        let (left, base) = (label.left, label.top + LINE - 4.0);
        writeln!(out, "<text class=\"{text}\" x=\"{left:.1}\" y=\"{base:.1}\">{}</text>", escaped(&point.label))
    }
}

/// A logarithmic axis.
struct Axis {
    low: f64,
    high: f64,
    from: f64,
    to: f64,
    ticks: Vec<(f64, String)>,
}

impl Axis {
    /// Over all values and a little room on both sides.
    fn over(values: impl Iterator<Item = f64>, from: f64, to: f64, ticks: &[(f64, String)]) -> Self {
        let (low, high) = values
            .filter(|value| *value > 0.0)
            .fold((f64::INFINITY, 0.0_f64), |(low, high), value| (low.min(value), high.max(value)));
        let (low, high) = if low <= high { (low, high) } else { (1.0, 1.0) };
        // At least a factor of four, so that two equal tools do not fill the page.
        let room = (high / low).powf(0.1).max(2.0 * (low / high).sqrt()).max(1.15);
        let (low, high) = (low / room, high * room);
        let ticks = ticks.iter().filter(|(value, _)| (low..=high).contains(value)).cloned().collect();
        Self { low, high, from, to, ticks }
    }

    fn place(&self, value: f64) -> f64 {
        let part = (value.clamp(self.low, self.high) / self.low).ln() / (self.high / self.low).ln();
        self.from + part * (self.to - self.from)
    }
}

fn seconds_ticks() -> Vec<(f64, String)> {
    let decades = (-2..4).flat_map(|decade| [1.0, 2.0, 5.0].map(|digit| digit * 10_f64.powi(decade)));
    decades.map(|value| (value, if value < 1.0 { format!("{value:.2} s") } else { format!("{value:.0} s") })).collect()
}

fn byte_ticks() -> Vec<(f64, String)> {
    let units = ["KiB", "MiB", "GiB"].into_iter().zip([10, 20, 30]);
    let tick = |unit: &str, log: i32, step: i32| (2_f64.powi(log + step), format!("{} {unit}", 1 << step));
    units.flat_map(|(unit, log)| (0..10).map(move |step| tick(unit, log, step))).collect()
}

fn grid(out: &mut String, x: &Axis, y: &Axis) -> std::fmt::Result {
    for (value, text) in &x.ticks {
        let at = x.place(*value);
        writeln!(out, "<line class=\"grid\" x1=\"{at:.1}\" y1=\"{TOP}\" x2=\"{at:.1}\" y2=\"{BOTTOM}\"/>")?;
        writeln!(
            out,
            "<text class=\"soft\" text-anchor=\"middle\" x=\"{at:.1}\" y=\"{}\">{text}</text>",
            BOTTOM + 18.0
        )?;
    }
    for (value, text) in &y.ticks {
        let at = y.place(*value);
        writeln!(out, "<line class=\"grid\" x1=\"{LEFT}\" y1=\"{at:.1}\" x2=\"{RIGHT}\" y2=\"{at:.1}\"/>")?;
        writeln!(
            out,
            "<text class=\"soft\" text-anchor=\"end\" x=\"{}\" y=\"{:.1}\">{text}</text>",
            LEFT - 8.0,
            at + 4.0
        )?;
    }
    let (width, height, middle) = (RIGHT - LEFT, BOTTOM - TOP, (TOP + BOTTOM) / 2.0);
    writeln!(out, "<rect class=\"frame\" x=\"{LEFT}\" y=\"{TOP}\" width=\"{width}\" height=\"{height}\"/>")?;
    writeln!(
        out,
        "<text text-anchor=\"middle\" x=\"{}\" y=\"{}\">processor time of node and server for one update (log)</text>",
        (LEFT + RIGHT) / 2.0,
        BOTTOM + 40.0
    )?;
    writeln!(
        out,
        "<text text-anchor=\"middle\" transform=\"translate(20 {middle}) rotate(-90)\">bytes on the wire, both ways (log)</text>"
    )
}

fn legend(out: &mut String) -> std::fmt::Result {
    let y = HEIGHT - 36.0;
    let entries = [
        (Knows::Base, "publisher knows the node's image: patch made once"),
        (Knows::Nothing, "publisher knows nothing: node searches"),
        (Knows::Whole, "whole image"),
    ];
    let mut x = LEFT;
    for (knows, text) in entries {
        shape(out, knows, "peer", x + 6.0, y, 5.5)?;
        writeln!(out, "<text class=\"soft\" x=\"{:.1}\" y=\"{:.1}\">{text}</text>", x + 18.0, y + 4.0)?;
        x += 18.0 + text.len() as f64 * 6.2 + 24.0;
    }
    let note = "Orange: goldsync. Making a patch or an archive, once, is not in the time; of each tool the setting with the fewest bytes.";
    writeln!(out, "<text class=\"soft\" x=\"{LEFT}\" y=\"{}\">{note}</text>", y + 24.0)
}

fn shape(out: &mut String, knows: Knows, class: &str, x: f64, y: f64, r: f64) -> std::fmt::Result {
    match knows {
        Knows::Base => {
            let (left, top, side) = (x - r, y - r, 2.0 * r);
            writeln!(out, "<rect class=\"{class}\" x=\"{left:.1}\" y=\"{top:.1}\" width=\"{side}\" height=\"{side}\"/>")
        }
        Knows::Nothing => writeln!(out, "<circle class=\"{class}\" cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"{r}\"/>"),
        Knows::Whole => {
            let r = r * 1.25;
            let corners =
                [(x, y - r), (x + r, y), (x, y + r), (x - r, y)].map(|(x, y)| format!("{x:.1},{y:.1}")).join(" ");
            writeln!(out, "<polygon class=\"{class}\" points=\"{corners}\"/>")
        }
    }
}

/// Where a label stands.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Label {
    left: f64,
    top: f64,
    width: f64,
    /// It is so far off that a line leads to it.
    leads: bool,
}

impl Label {
    /// Area that it shares with a box.
    fn shares(self, left: f64, top: f64, width: f64, height: f64) -> f64 {
        let across = (self.left + self.width).min(left + width) - self.left.max(left);
        let down = (self.top + LINE).min(top + height) - self.top.max(top);
        across.max(0.0) * down.max(0.0)
    }

    /// Area that it has outside of the frame.
    fn outside(self) -> f64 {
        self.width * LINE - self.shares(LEFT, TOP, RIGHT - LEFT, BOTTOM - TOP)
    }
}

/// A place for each label, one after the other, each where it covers least: beside its point, or further off with a line.
fn labels(points: &[Point], places: &[(f64, f64)]) -> Vec<Label> {
    let mut placed: Vec<Label> = Vec::new();
    for (point, at) in points.iter().zip(places) {
        let covers = |label: &Label| {
            let labels: f64 = placed.iter().map(|other| label.shares(other.left, other.top, other.width, LINE)).sum();
            let marks: f64 = places.iter().map(|(x, y)| label.shares(x - 8.0, y - 8.0, 16.0, 16.0)).sum();
            2.0 * labels + marks + 4.0 * label.outside()
        };
        let mut best: Option<(f64, Label)> = None;
        for (order, label) in candidates(point, *at).into_iter().enumerate() {
            // What comes first is nicer: a later place must be better by something.
            let cost = covers(&label) + 3.0 * order as f64;
            if best.is_none_or(|(least, _)| cost < least) {
                best = Some((cost, label));
            }
        }
        placed.extend(best.map(|(_, label)| label));
    }
    placed
}

fn candidates(point: &Point, (x, y): (f64, f64)) -> Vec<Label> {
    let width = point.label.chars().count() as f64 * LETTER * if point.ours { 1.15 } else { 1.0 };
    let at = |left: f64, middle: f64, leads: bool| Label { left, top: middle - LINE / 2.0, width, leads };
    let (right, left) = (x + 12.0, x - 12.0 - width);
    let near = [(right, y), (left, y), (x - width / 2.0, y - 17.0), (x - width / 2.0, y + 17.0)];
    let near = near.into_iter().map(|(left, middle)| at(left, middle, false));
    let far = (1..6).flat_map(|step| {
        let off = 12.0 + 16.0 * f64::from(step);
        [
            (right + off / 2.0, y - off),
            (right + off / 2.0, y + off),
            (left - off / 2.0, y - off),
            (left - off / 2.0, y + off),
        ]
    });
    near.chain(far.map(|(left, middle)| at(left, middle, true))).collect()
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn point(x: f64, y: f64, label: &str) -> Point {
        Point { x, y, label: label.into(), ours: false, knows: Knows::Nothing }
    }

    #[test]
    fn a_plot_has_every_point_and_escapes_what_it_writes() {
        let points = vec![point(0.5, 1e6, "a <b>"), point(0.5, 1e6, "c"), point(50.0, 4e7, "d")];
        let svg = Plot { title: "x & y".into(), points }.svg();
        for text in ["a &lt;b&gt;", "x &amp; y", "prefers-color-scheme", "1 s</text>", "4 MiB</text>"] {
            assert!(svg.contains(text), "{text} is not in {svg}");
        }
        assert_eq!(svg.matches("<circle").count(), 3 + 1, "three points and the legend's");
        assert!(!svg.contains("NaN") && !svg.contains("inf"));
    }

    #[test]
    fn nothing_and_a_single_point_are_drawn_too() {
        for points in [vec![], vec![point(0.01, 1.0, "x")], vec![point(0.01, 0.0, "x")]] {
            let svg = Plot { title: String::new(), points }.svg();
            assert!(svg.ends_with("</svg>\n") && !svg.contains("NaN") && !svg.contains("inf"), "{svg}");
        }
    }

    #[test]
    fn labels_of_crowded_points_do_not_cover_each_other() {
        let points: Vec<Point> = (0..8).map(|at| point(1.0, 1.0, &format!("a tool's name {at}"))).collect();
        let places: Vec<(f64, f64)> = (0..8).map(|at| (400.0 + f64::from(at), 300.0)).collect();
        let labels = labels(&points, &places);
        for (at, label) in labels.iter().enumerate() {
            assert!(label.outside() < 1.0, "{label:?}");
            for other in &labels[at + 1..] {
                assert!(label.shares(other.left, other.top, other.width, LINE) < 1.0, "{label:?} {other:?}");
            }
        }
    }
}
