//! Plots as SVG: lines over axes of any scale, and bars of parts.
//!
//! Called by the report and by `countersign bench`. It must never draw a point that was not measured, nor cut one off.

use std::path::Path;

use anyhow::{Result, anyhow};
use plotters::coord::ranged1d::{DefaultFormatting, KeyPointHint, Ranged};
use plotters::prelude::*;
use plotters::style::FontTransform;

const SIZE: (u32, u32) = (920, 520);
/// One for each peer.
const COLORS: [RGBColor; 12] = [
    RGBColor(31, 119, 180),
    RGBColor(214, 39, 40),
    RGBColor(44, 160, 44),
    RGBColor(148, 103, 189),
    RGBColor(255, 127, 14),
    RGBColor(23, 190, 207),
    RGBColor(140, 86, 75),
    RGBColor(227, 119, 194),
    RGBColor(188, 189, 34),
    RGBColor(127, 127, 127),
    RGBColor(0, 0, 0),
    RGBColor(152, 223, 138),
];
/// Of parts of bars: two shades for each of three things.
const PARTS: [RGBColor; 6] = [
    RGBColor(31, 119, 180),
    RGBColor(158, 202, 225),
    RGBColor(230, 110, 10),
    RGBColor(253, 190, 133),
    RGBColor(44, 160, 44),
    RGBColor(161, 217, 155),
];
/// Text and lines that are not data.
const QUIET: RGBColor = RGBColor(90, 90, 90);
const GRID: RGBColor = RGBColor(228, 228, 228);

/// How numbers lie along an axis.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scale {
    /// From zero, evenly.
    Linear,
    /// By factors; what is not above zero is not drawn.
    Log,
    /// Shares of requests below one, by nines: 50%, 90%, 99%, ...
    Nines,
}

/// An axis.
#[derive(Clone, Copy, Debug)]
pub struct Axis<'a> {
    /// What it shows, with its unit.
    pub label: &'a str,
    /// How.
    pub scale: Scale,
}

/// One line.
#[derive(Clone, Debug)]
pub struct Series {
    /// For the legend.
    pub name: String,
    /// In order.
    pub points: Vec<(f64, f64)>,
    /// Drawn thick: it is what the plot is about.
    pub strong: bool,
}

/// One bar, of parts on top of each other.
#[derive(Clone, Debug)]
pub struct Bar {
    /// Below it.
    pub name: String,
    /// From below.
    pub parts: Vec<f64>,
}

/// Draws lines into an SVG file.
///
/// # Errors
/// If there is nothing to draw, or the file cannot be written.
pub fn lines(file: &Path, title: &str, x: Axis<'_>, y: Axis<'_>, series: &[Series]) -> Result<()> {
    let placed: Vec<Vec<(f64, f64)>> = series.iter().map(|series| place(&series.points, x.scale, y.scale)).collect();
    let all = || placed.iter().flatten();
    let (xs, ys) = (range(all().map(|point| point.0), x.scale), range(all().map(|point| point.1), y.scale));
    let ((x_from, x_to), (y_from, y_to)) = (
        xs.ok_or_else(|| anyhow!("{title}: nothing to draw"))?,
        ys.ok_or_else(|| anyhow!("{title}: nothing to draw"))?,
    );
    let root = SVGBackend::new(file, SIZE).into_drawing_area();
    root.fill(&WHITE).map_err(wrong)?;
    let mut chart = ChartBuilder::on(&root)
        .caption(title, ("sans-serif", 25))
        .margin(14)
        .x_label_area_size(52)
        .y_label_area_size(72)
        .build_cartesian_2d(Ticked::new(x_from, x_to, x.scale), Ticked::new(y_from, y_to, y.scale))
        .map_err(wrong)?;
    chart
        .configure_mesh()
        .x_desc(x.label)
        .y_desc(y.label)
        .x_label_formatter(&|value| label(*value, x.scale))
        .y_label_formatter(&|value| label(*value, y.scale))
        .light_line_style(TRANSPARENT)
        .bold_line_style(GRID)
        .axis_style(QUIET)
        .label_style(("sans-serif", 17, &QUIET))
        .draw()
        .map_err(wrong)?;
    for (number, (series, points)) in
        series.iter().zip(placed).enumerate().filter(|(_, (_, points))| !points.is_empty())
    {
        let color = COLORS[number % COLORS.len()];
        let style = color.stroke_width(if series.strong { 4 } else { 2 });
        if points.len() <= 30 {
            chart.draw_series(points.iter().map(|point| Circle::new(*point, 3, color.filled()))).map_err(wrong)?;
        }
        chart
            .draw_series(LineSeries::new(points, style))
            .map_err(wrong)?
            .label(&series.name)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], style));
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperLeft)
        .label_font(("sans-serif", 17))
        .background_style(WHITE.mix(0.85))
        .border_style(GRID)
        .draw()
        .map_err(wrong)?;
    root.present().map_err(wrong)
}

/// Draws bars of parts into an SVG file; `parts` names them.
///
/// # Errors
/// If there is nothing to draw, or the file cannot be written.
pub fn bars(file: &Path, title: &str, unit: &str, parts: &[&str], bars: &[Bar]) -> Result<()> {
    let top = bars.iter().map(|bar| bar.parts.iter().sum::<f64>()).fold(0.0, f64::max) * 1.15;
    if top <= 0.0 {
        return Err(anyhow!("{title}: nothing to draw"));
    }
    let root = SVGBackend::new(file, SIZE).into_drawing_area();
    root.fill(&WHITE).map_err(wrong)?;
    let many = bars.len() as f64;
    let mut chart = ChartBuilder::on(&root)
        .caption(title, ("sans-serif", 25))
        .margin(14)
        .x_label_area_size(52)
        .y_label_area_size(72)
        .build_cartesian_2d(0.0..many, Ticked::new(0.0, top, Scale::Linear))
        .map_err(wrong)?;
    chart
        .configure_mesh()
        .disable_x_mesh()
        .disable_x_axis()
        .y_desc(unit)
        .y_label_formatter(&|value| label(*value, Scale::Linear))
        .light_line_style(TRANSPARENT)
        .bold_line_style(GRID)
        .axis_style(QUIET)
        .label_style(("sans-serif", 17, &QUIET))
        .draw()
        .map_err(wrong)?;
    for (part, name) in parts.iter().enumerate() {
        let color = PARTS[part % PARTS.len()];
        let rectangles = bars.iter().enumerate().filter_map(|(number, bar)| {
            let below: f64 = bar.parts.iter().take(part).sum();
            let (left, height) = (number as f64 + 0.18, *bar.parts.get(part)?);
            Some(Rectangle::new([(left, below), (left + 0.64, below + height)], color.filled()))
        });
        chart
            .draw_series(rectangles)
            .map_err(wrong)?
            .label(*name)
            .legend(move |(x, y)| Rectangle::new([(x, y - 5), (x + 12, y + 5)], color.filled()));
    }
    for (number, bar) in bars.iter().enumerate() {
        let middle = number as f64 + 0.5;
        let at = |y| chart.backend_coord(&(middle, y));
        let sum: f64 = bar.parts.iter().sum();
        let centred = plotters::style::text_anchor::Pos::new(
            plotters::style::text_anchor::HPos::Center,
            plotters::style::text_anchor::VPos::Bottom,
        );
        let style = TextStyle::from(("sans-serif", 15)).color(&QUIET).pos(centred).transform(FontTransform::None);
        let (x, y) = at(sum);
        root.draw_text(&short(sum), &style, (x, y - 3)).map_err(wrong)?;
        let (x, y) = at(0.0);
        root.draw_text(&bar.name, &style, (x, y + 20)).map_err(wrong)?;
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperLeft)
        .label_font(("sans-serif", 17))
        .background_style(WHITE.mix(0.85))
        .border_style(GRID)
        .draw()
        .map_err(wrong)?;
    root.present().map_err(wrong)
}

/// An axis that is named where we say.
struct Ticked {
    range: std::ops::Range<f64>,
    ticks: Vec<f64>,
}

impl Ticked {
    fn new(from: f64, to: f64, scale: Scale) -> Self {
        Self { range: from..to, ticks: ticks(from, to, scale) }
    }
}

impl Ranged for Ticked {
    type FormatOption = DefaultFormatting;
    type ValueType = f64;

    fn map(&self, value: &f64, limit: (i32, i32)) -> i32 {
        let share = (value - self.range.start) / (self.range.end - self.range.start);
        // Pixels.
        limit.0 + (share * f64::from(limit.1 - limit.0)).round() as i32
    }

    fn key_points<Hint: KeyPointHint>(&self, _: Hint) -> Vec<f64> {
        self.ticks.clone()
    }

    fn range(&self) -> std::ops::Range<f64> {
        self.range.clone()
    }
}

fn wrong(error: impl std::fmt::Display) -> anyhow::Error {
    anyhow!("plot: {error}")
}

fn place(points: &[(f64, f64)], x: Scale, y: Scale) -> Vec<(f64, f64)> {
    points.iter().filter_map(|(px, py)| Some((on(*px, x)?, on(*py, y)?))).collect()
}

/// Where a value lies on its axis.
fn on(value: f64, scale: Scale) -> Option<f64> {
    match scale {
        Scale::Linear => Some(value),
        Scale::Log => (value > 0.0).then(|| value.log10()),
        Scale::Nines => (0.0..1.0).contains(&value).then(|| -(1.0 - value).log10()),
    }
}

fn range(values: impl Iterator<Item = f64>, scale: Scale) -> Option<(f64, f64)> {
    let (low, high) = values.fold((f64::MAX, f64::MIN), |(low, high), value| (low.min(value), high.max(value)));
    if low > high {
        return None;
    }
    Some(match scale {
        Scale::Linear => (low.min(0.0), if high > 0.0 { high * 1.08 } else { 1.0 }),
        Scale::Log => (low - 0.05, high.max(low + 0.3) + 0.1),
        Scale::Nines => (0.0, high.max(1.0)),
    })
}

/// Where the axis is named: round numbers.
fn ticks(from: f64, to: f64, scale: Scale) -> Vec<f64> {
    let within = |value: &f64| (from - 1e-9..=to + 1e-9).contains(value);
    match scale {
        Scale::Linear => {
            let rough = (to - from) / 6.0;
            let power = 10_f64.powf(rough.log10().floor());
            let step = [1.0, 2.0, 5.0, 10.0].into_iter().map(|factor| factor * power).find(|step| *step >= rough);
            let step = step.unwrap_or(rough);
            (0..=40).map(|number| (from / step).ceil().mul_add(step, f64::from(number) * step)).filter(within).collect()
        }
        Scale::Log => {
            let factors: &[f64] = if to - from > 3.0 { &[1.0] } else { &[1.0, 2.0, 5.0] };
            let powers = (from.floor() as i32)..=(to.ceil() as i32);
            powers.flat_map(|power| factors.iter().map(move |f| f.log10() + f64::from(power))).filter(within).collect()
        }
        Scale::Nines => [0.0, 0.5, 0.9, 0.99, 0.999, 0.9999]
            .into_iter()
            .filter_map(|share| on(share, scale))
            .filter(within)
            .collect(),
    }
}

fn label(value: f64, scale: Scale) -> String {
    match scale {
        Scale::Linear => short(value),
        Scale::Log => short(10_f64.powf(value)),
        Scale::Nines => format!("{}%", short(100.0 * (1.0 - 10_f64.powf(-value)))),
    }
}

/// Three digits that matter, and no more.
fn short(value: f64) -> String {
    let digits = if value.abs() >= 100.0 || value.abs() < 1e-9 {
        0
    } else if value.abs() >= 10.0 {
        1
    } else {
        3
    };
    let digits = if (99.0..100.0).contains(&value) { 2 } else { digits };
    let text = format!("{value:.digits$}");
    if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.').to_owned() } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn axes_are_named_at_round_numbers_within_them() {
        assert_eq!(ticks(0.0, 10.0, Scale::Linear), [0.0, 2.0, 4.0, 6.0, 8.0, 10.0]);
        let log: Vec<String> = ticks(-1.0, 1.0, Scale::Log).into_iter().map(|tick| label(tick, Scale::Log)).collect();
        assert_eq!(log, ["0.1", "0.2", "0.5", "1", "2", "5", "10"]);
        let nines: Vec<String> =
            ticks(0.0, 3.0, Scale::Nines).into_iter().map(|tick| label(tick, Scale::Nines)).collect();
        assert_eq!(nines, ["0%", "50%", "90%", "99%", "99.9%"]);
    }

    #[test]
    fn no_two_peers_have_one_colour() {
        assert!(COLORS.len() >= crate::peers::all(Some(Path::new("before"))).len());
        assert!(COLORS.iter().enumerate().all(|(n, colour)| !COLORS[..n].contains(colour)));
    }

    #[test]
    fn what_was_measured_is_in_the_file() {
        let folder = std::env::temp_dir().join(format!("countersign-plot-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let file = folder.join("a.svg");
        let x = Axis { label: "share", scale: Scale::Nines };
        let y = Axis { label: "milliseconds", scale: Scale::Log };
        let series = [Series { name: "ours".into(), points: vec![(0.5, 0.6), (0.99, 1.2)], strong: true }];
        lines(&file, "latency", x, y, &series).unwrap();
        let text = std::fs::read_to_string(&file).unwrap();
        assert!(text.starts_with("<svg") && text.contains("ours") && text.contains("polyline"));
        let bar = [Bar { name: "relay".into(), parts: vec![1.0, 2.0] }];
        bars(&file, "cpu", "seconds", &["client", "server"], &bar).unwrap();
        assert!(std::fs::read_to_string(&file).unwrap().contains("relay"));
        assert!(lines(&file, "nothing", x, y, &[]).is_err());
        std::fs::remove_dir_all(&folder).unwrap();
    }
}
