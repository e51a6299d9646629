//! A strict reader of Prometheus' text format, version 0.0.4: what it takes, any scraper takes.
//!
//! ```text
//! # HELP name text        once for each metric, before its type
//! # TYPE name kind        once, before its samples, which stand together
//! name{label="value"} 1   no series twice; labels without a duplicate; the escapes \\ \" \n and no other
//! ```
//! Histograms must be whole: buckets that only rise, one for +Inf that equals the count, and a sum.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result, bail, ensure};

/// What was scraped.
#[derive(Debug, Default)]
pub struct Exposition {
    /// Every series: name, labels in order, value.
    samples: BTreeMap<(String, Labels), f64>,
    /// The kind of each metric.
    pub kinds: BTreeMap<String, String>,
}

type Labels = BTreeMap<String, String>;

impl Exposition {
    /// Reads a whole text.
    ///
    /// # Errors
    /// Names the line that breaks a rule.
    pub fn parse(text: &str) -> Result<Exposition> {
        ensure!(text.ends_with('\n'), "the last line does not end");
        let mut reader = Reader::default();
        for (number, line) in text.lines().enumerate() {
            let read = reader.line(line);
            read.with_context(|| format!("line {}: {line}", number + 1))?;
        }
        reader.exposition.check_histograms()?;
        Ok(reader.exposition)
    }

    /// The value of a series, by its name and all its labels.
    pub fn get(&self, name: &str, labels: &[(&str, &str)]) -> Option<f64> {
        let labels = labels.iter().map(|&(key, value)| (key.to_owned(), value.to_owned()));
        self.samples.get(&(name.to_owned(), labels.collect())).copied()
    }

    /// The same, 0 where there is none.
    pub fn count(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        self.get(name, labels).unwrap_or_default()
    }

    /// All values of a label of a metric.
    pub fn values(&self, name: &str, label: &str) -> BTreeSet<&str> {
        let of_name = self.samples.keys().filter(|(sample, _)| sample == name);
        of_name
            .filter_map(|(_, labels)| labels.get(label).map(String::as_str))
            .collect()
    }

    fn check_histograms(&self) -> Result<()> {
        let kinds = self.kinds.iter();
        for (name, _) in kinds.filter(|(_, kind)| *kind == "histogram") {
            let mut series: BTreeMap<Labels, Vec<(f64, f64)>> = BTreeMap::new();
            for ((sample, labels), &value) in &self.samples {
                if *sample == format!("{name}_bucket") {
                    let mut labels = labels.clone();
                    let bound = number(&labels.remove("le").context("a bucket without le")?)?;
                    series.entry(labels).or_default().push((bound, value));
                }
            }
            for (labels, mut buckets) in series {
                buckets.sort_by(|a, b| a.0.total_cmp(&b.0));
                ensure!(
                    buckets.is_sorted_by(|a, b| a.1 <= b.1),
                    "{name} {labels:?}: {buckets:?} fall"
                );
                let count = self.samples.get(&(format!("{name}_count"), labels.clone()));
                ensure!(
                    buckets.last() == count.map(|&count| (f64::INFINITY, count)).as_ref(),
                    "{name} {labels:?}: the last of {buckets:?} is not the count {count:?}"
                );
                let sum = self.samples.get(&(format!("{name}_sum"), labels.clone()));
                ensure!(sum.is_some_and(|&sum| sum >= 0.0), "{name} {labels:?}: sum {sum:?}");
            }
        }
        Ok(())
    }
}

#[derive(Default)]
struct Reader {
    exposition: Exposition,
    helped: BTreeSet<String>,
    /// The metric whose samples these are.
    current: String,
}

impl Reader {
    fn line(&mut self, line: &str) -> Result<()> {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            let (name, help) = rest.split_once(' ').context("no help")?;
            check_name(name, true)?;
            ensure!(!help.trim().is_empty(), "an empty help");
            unescape(help, false)?;
            ensure!(self.helped.insert(name.to_owned()), "a second help");
            return Ok(());
        }
        if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').context("no type")?;
            ensure!(self.helped.contains(name), "a type without a help");
            ensure!(
                ["counter", "gauge", "histogram"].contains(&kind),
                "unknown type {kind:?}"
            );
            ensure!(
                kind != "counter" || name.ends_with("_total"),
                "a counter without _total"
            );
            ensure!(
                kind == "counter" || !name.ends_with("_total"),
                "_total without a counter"
            );
            let before = self.exposition.kinds.insert(name.to_owned(), kind.to_owned());
            ensure!(before.is_none(), "a second type, or samples that do not stand together");
            self.current = name.to_owned();
            return Ok(());
        }
        ensure!(
            !line.starts_with('#') && !line.is_empty(),
            "neither a sample nor about one"
        );
        self.sample(line)
    }

    fn sample(&mut self, line: &str) -> Result<()> {
        let end = line.find(['{', ' ']).context("no value")?;
        let (name, rest) = line.split_at(end);
        check_name(name, true)?;
        let (labels, value) = match rest.strip_prefix('{') {
            Some(rest) => labels(rest)?,
            None => (Labels::new(), rest),
        };
        let value = number(value.strip_prefix(' ').context("no space before the value")?)?;
        let kind = &self.exposition.kinds[&self.current];
        let suffix = name.strip_prefix(self.current.as_str()).context("of another metric")?;
        let fits = match kind.as_str() {
            "histogram" => ["_bucket", "_sum", "_count"].contains(&suffix),
            _ => suffix.is_empty(),
        };
        ensure!(fits, "not a sample of {} {}", kind, self.current);
        ensure!(kind == "gauge" || value >= 0.0, "a negative {kind}");
        let before = self.exposition.samples.insert((name.to_owned(), labels), value);
        ensure!(before.is_none(), "the series twice");
        Ok(())
    }
}

/// The labels up to `}`, and what comes after it.
fn labels(mut rest: &str) -> Result<(Labels, &str)> {
    let mut labels = Labels::new();
    loop {
        let (name, after) = rest.split_once("=\"").context("no label")?;
        check_name(name, false)?;
        let end = closing_quote(after).context("a label's value does not end")?;
        let value = unescape(&after[..end], true)?;
        ensure!(labels.insert(name.to_owned(), value).is_none(), "label {name} twice");
        rest = &after[end + 1..];
        match rest.chars().next() {
            Some(',') => rest = &rest[1..],
            Some('}') => return Ok((labels, &rest[1..])),
            other => bail!("{other:?} after a label"),
        }
    }
}

fn closing_quote(text: &str) -> Option<usize> {
    let mut escaped = false;
    text.bytes().position(|byte| {
        let closes = byte == b'"' && !escaped;
        escaped = byte == b'\\' && !escaped;
        closes
    })
}

fn unescape(text: &str, quoted: bool) -> Result<String> {
    let mut plain = String::new();
    let mut characters = text.chars();
    while let Some(character) = characters.next() {
        plain.push(match character {
            '\\' => match characters.next() {
                Some('\\') => '\\',
                Some('n') => '\n',
                Some('"') if quoted => '"',
                other => bail!("\\ before {other:?}"),
            },
            plain => plain,
        });
    }
    Ok(plain)
}

fn check_name(name: &str, colons: bool) -> Result<()> {
    let first = |c: char| c.is_ascii_alphabetic() || c == '_' || (colons && c == ':');
    let is_name = name.starts_with(first) && name.chars().all(|c| first(c) || c.is_ascii_digit());
    ensure!(is_name, "{name:?} is no name");
    Ok(())
}

fn number(text: &str) -> Result<f64> {
    match text {
        "+Inf" => Ok(f64::INFINITY),
        text => {
            let value: f64 = text.parse().with_context(|| format!("{text:?} is no number"))?;
            ensure!(value.is_finite(), "{text:?} is not finite");
            Ok(value)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_read_and_what_is_not() {
        let good = "# HELP a_total x\n# TYPE a_total counter\na_total{b=\"\\\"\\\\\\n,}\",c=\"\"} 1\na_total 2\n";
        let read = Exposition::parse(good).unwrap();
        assert_eq!(read.get("a_total", &[]), Some(2.0));
        assert_eq!(read.get("a_total", &[("b", "\"\\\n,}"), ("c", "")]), Some(1.0));
        for (text, rule) in [
            ("# HELP a x\n# TYPE a gauge\na 1", "does not end"),
            ("# TYPE a gauge\na 1\n", "without a help"),
            ("# HELP a x\n# TYPE a counter\na 1\n", "without _total"),
            ("# HELP a x\n# TYPE a gauge\na 1\na 2\n", "twice"),
            ("# HELP a x\n# TYPE a gauge\nb 1\n", "another metric"),
            ("# HELP a x\n# TYPE a gauge\na{b=\"\\x\"} 1\n", "before"),
            ("# HELP a x\n# TYPE a gauge\na{1b=\"\"} 1\n", "no name"),
            ("# HELP a x\n# TYPE a gauge\na NaN\n", "not finite"),
            (
                "# HELP a x\n# TYPE a histogram\na_bucket{le=\"1\"} 2\na_bucket{le=\"+Inf\"} 1\na_sum 1\na_count 1\n",
                "fall",
            ),
            (
                "# HELP a x\n# TYPE a histogram\na_bucket{le=\"+Inf\"} 1\na_sum 1\na_count 2\n",
                "not the count",
            ),
        ] {
            let error = format!("{:#}", Exposition::parse(text).unwrap_err());
            assert!(error.contains(rule), "{text}{error}");
        }
    }
}
