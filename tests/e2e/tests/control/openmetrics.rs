//! A strict reader of OpenMetrics 1.0 text, written from its specification and from nothing of ours: the judge of `/metrics`.
//!
//! Called by `observe` and `egress`. Timestamps and exemplars, which we never write, are errors here.

use std::collections::{BTreeMap, HashSet};

use anyhow::{Context as _, Result, bail, ensure};
use countersign_kit::Inside;

/// A whole exposition.
#[derive(Debug, Default)]
pub struct Exposition {
    families: Vec<Family>,
}

/// One metric family.
#[derive(Debug, Default)]
struct Family {
    name: String,
    kind: Option<String>,
    unit: Option<String>,
    help: Option<String>,
    samples: Vec<Sample>,
}

/// One line with a value.
#[derive(Clone, Debug)]
pub struct Sample {
    pub name: String,
    pub labels: BTreeMap<String, String>,
    pub value: f64,
}

impl Exposition {
    /// All samples of this name.
    pub fn samples<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a Sample> {
        self.families.iter().flat_map(|family| &family.samples).filter(move |sample| sample.name == name)
    }

    /// The type of a family, if it is there.
    pub fn kind(&self, family: &str) -> Option<&str> {
        self.families.iter().find(|known| known.name == family)?.kind.as_deref()
    }
}

/// Reads a whole exposition.
///
/// # Errors
/// With the line that is wrong.
pub fn parse(text: &str) -> Result<Exposition> {
    let body = text.strip_suffix("# EOF\n").context("it does not end with # EOF")?;
    ensure!(body.is_empty() || body.ends_with('\n'), "the last line before # EOF is cut");
    let mut exposition = Exposition::default();
    for line in body.lines() {
        exposition.line(line).with_context(|| line.to_owned())?;
    }
    let mut series = HashSet::new();
    for family in &exposition.families {
        family.judge().with_context(|| family.name.clone())?;
        for sample in &family.samples {
            ensure!(series.insert((sample.name.clone(), sample.labels.clone())), "{sample:?} is there twice");
        }
    }
    Ok(exposition)
}

impl Exposition {
    fn line(&mut self, line: &str) -> Result<()> {
        if let Some(meta) = line.strip_prefix("# ") {
            let mut words = meta.splitn(3, ' ');
            let (word, name) = (words.next().unwrap_or_default(), words.next().context("no name")?);
            let rest = words.next().unwrap_or_default().to_owned();
            let family = self.family(name)?;
            ensure!(family.samples.is_empty(), "after the family's samples");
            let place = match word {
                "TYPE" => &mut family.kind,
                "UNIT" => &mut family.unit,
                "HELP" => &mut family.help,
                _ => bail!("neither TYPE, UNIT, HELP nor EOF"),
            };
            ensure!(place.replace(rest).is_none(), "said twice");
            return Ok(());
        }
        let sample = sample(line)?;
        let family = self.families.last_mut().context("a sample before any family")?;
        ensure!(family.owns(&sample.name), "a sample of {} among those of {}", sample.name, family.name);
        family.samples.push(sample);
        Ok(())
    }

    /// The family that is being read, or a new one: families never come in parts.
    fn family(&mut self, name: &str) -> Result<&mut Family> {
        if self.families.last().is_none_or(|last| last.name != name) {
            ensure!(is_name(name), "{name:?} is no name");
            ensure!(self.families.iter().all(|known| known.name != name), "the family comes in parts");
            self.families.push(Family { name: name.to_owned(), ..Family::default() });
        }
        self.families.last_mut().context("pushed just now")
    }
}

impl Family {
    fn owns(&self, sample: &str) -> bool {
        let endings: &[&str] = match self.kind.as_deref() {
            Some("counter") => &["_total", "_created"],
            Some("histogram") => &["_bucket", "_sum", "_count", "_created"],
            Some("info") => &["_info"],
            Some("gauge") => &[""],
            _ => &[],
        };
        sample.strip_prefix(&self.name).is_some_and(|ending| endings.contains(&ending))
    }

    fn judge(&self) -> Result<()> {
        ensure!(self.kind.is_some(), "no TYPE");
        ensure!(self.help.as_ref().is_some_and(|help| !help.is_empty()), "no HELP");
        if let Some(unit) = &self.unit {
            ensure!(!unit.is_empty() && self.name.ends_with(&format!("_{unit}")), "unit {unit} is not in the name");
        }
        for sample in &self.samples {
            ensure!(self.kind.as_deref() == Some("gauge") || sample.value >= 0.0, "{sample:?} is negative");
        }
        if self.kind.as_deref() == Some("histogram") {
            self.judge_buckets()?;
        }
        Ok(())
    }

    /// Buckets only grow, and the last one holds all.
    fn judge_buckets(&self) -> Result<()> {
        let mut by_labels: BTreeMap<BTreeMap<String, String>, Vec<(f64, f64)>> = BTreeMap::new();
        for sample in self.samples.iter().filter(|sample| sample.name.ends_with("_bucket")) {
            let mut labels = sample.labels.clone();
            let bound = labels.remove("le").context("a bucket without le")?;
            by_labels.entry(labels).or_default().push((number(&bound)?, sample.value));
        }
        for (labels, buckets) in by_labels {
            let growing = buckets.windows(2).all(|pair| pair[0].0 < pair[1].0 && pair[0].1 <= pair[1].1);
            let last = buckets.last().context("no bucket")?;
            let count = self.samples.iter().find(|s| s.name.ends_with("_count") && s.labels == labels);
            ensure!(growing && last.0 == f64::INFINITY, "buckets of {labels:?}: {buckets:?}");
            ensure!(count.context("no count")?.value == last.1, "the count is not the last bucket's");
        }
        Ok(())
    }
}

/// The judge itself is judged: what it is to refuse, it does.
pub fn judged(_: &Inside) -> Result<()> {
    let good = "# HELP a_seconds A.\n# TYPE a_seconds histogram\n# UNIT a_seconds seconds\n\
                a_seconds_bucket{le=\"1.0\",x=\"\\\"\\n\"} 1\na_seconds_bucket{le=\"+Inf\",x=\"\\\"\\n\"} 2\n\
                a_seconds_count{x=\"\\\"\\n\"} 2\n# HELP b B.\n# TYPE b counter\nb_total 3\n# EOF\n";
    let read = parse(good)?;
    ensure!(read.kind("b") == Some("counter") && read.samples("b_total").all(|sample| sample.value == 3.0));
    ensure!(read.samples("a_seconds_count").all(|sample| sample.labels["x"] == "\"\n"));
    for (from, to) in [
        ("# EOF\n", ""),
        ("# EOF\n", "# EOF\nb_total 4\n"),
        ("b_total 3", "b_total 3\nb_total 3"),
        ("b_total 3", "b 3"),
        ("b_total 3", "b_total -3"),
        ("b_total 3", "b_total"),
        ("b_total 3", "b_total three"),
        ("b_total 3", "b_total{x=\"1} 3"),
        ("b_total 3", "b_total{x=\"1\",x=\"2\"} 3"),
        ("b_total 3", "b_total{1x=\"1\"} 3"),
        ("# TYPE b counter\n", ""),
        ("# HELP b B.\n", ""),
        ("# TYPE b counter\n", "# TYPE b counter\n# TYPE b counter\n"),
        ("# UNIT a_seconds seconds", "# UNIT a_seconds bytes"),
        ("le=\"+Inf\"", "le=\"2.0\""),
        ("\"} 1\n", "\"} 3\n"),
        ("a_seconds_count{x=\"\\\"\\n\"} 2", "a_seconds_count{x=\"\\\"\\n\"} 1"),
        ("# EOF", "# HELP a_seconds Again.\n# EOF"),
    ] {
        let bad = good.replacen(from, to, 1);
        ensure!(bad != good, "{from} is not in it");
        ensure!(parse(&bad).is_err(), "it lets this pass:\n{bad}");
    }
    Ok(())
}

fn sample(line: &str) -> Result<Sample> {
    let end = line.find(['{', ' ']).context("no value")?;
    let (name, mut rest) = line.split_at(end);
    ensure!(is_name(name), "{name:?} is no name");
    let mut labels = BTreeMap::new();
    if let Some(inside) = rest.strip_prefix('{') {
        rest = inside;
        while !rest.starts_with('}') {
            let (key, after) = rest.split_once("=\"").context("no label")?;
            ensure!(is_name(key), "{key:?} is no label name");
            let (value, after) = quoted(after)?;
            ensure!(labels.insert(key.to_owned(), value).is_none(), "label {key} twice");
            rest = after.strip_prefix(',').unwrap_or(after);
            ensure!(after.starts_with('}') || after.starts_with(",") && !rest.starts_with('}'), "no end of labels");
        }
        rest = &rest[1..];
    }
    let value = rest.strip_prefix(' ').context("no space before the value")?;
    Ok(Sample { name: name.to_owned(), labels, value: number(value)? })
}

/// Up to the closing quote, and what follows it.
fn quoted(text: &str) -> Result<(String, &str)> {
    let mut value = String::new();
    let mut chars = text.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return Ok((value, &text[at + 1..])),
            '\\' => match chars.next().context("cut escape")?.1 {
                'n' => value.push('\n'),
                c @ ('"' | '\\') => value.push(c),
                c => bail!("unknown escape \\{c}"),
            },
            c => value.push(c),
        }
    }
    bail!("no closing quote")
}

fn number(text: &str) -> Result<f64> {
    match text {
        "+Inf" => Ok(f64::INFINITY),
        "-Inf" => Ok(f64::NEG_INFINITY),
        "NaN" => Ok(f64::NAN),
        _ => {
            ensure!(text.starts_with(|c: char| c.is_ascii_digit() || c == '-'), "{text:?} is no number");
            text.parse().with_context(|| format!("{text:?} is no number"))
        }
    }
}

fn is_name(name: &str) -> bool {
    name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_' || c == ':')
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b':')
}
