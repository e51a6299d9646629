//! The table of a benchmark: a row a case, a column a program, and the first program's ratios to the others.

use std::time::Duration;

/// What is in a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unit {
    /// Milliseconds; less is better.
    Milliseconds,
    /// KiB; less is better.
    Kibibytes,
    /// Containers per second; more is better.
    PerSecond,
    /// Millions of bytes per second; more is better.
    MegabytesPerSecond,
    /// Thousandths of one processor; less is better.
    MilliCpus,
}

/// Rows in the order of their measurement.
#[derive(Debug)]
pub struct Table {
    peers: Vec<String>,
    rows: Vec<(String, Unit, Vec<f64>)>,
    printed: usize,
}

impl Table {
    /// An empty table with a column for each of `peers`.
    pub fn new(peers: Vec<String>) -> Table {
        Table {
            peers,
            rows: Vec::new(),
            printed: 0,
        }
    }

    /// Adds a row with a value for each program; NaN is shown as a dash.
    pub fn add(&mut self, name: String, unit: Unit, values: Vec<f64>) {
        self.rows.push((name, unit, values));
    }

    /// Adds a row of medians.
    pub fn add_medians(&mut self, name: String, samples: Vec<Vec<Duration>>) {
        let medians = samples.into_iter().map(|samples| median(samples) * 1e3).collect();
        self.add(name, Unit::Milliseconds, medians);
    }

    /// Adds a row of medians and one of the 95th percentiles.
    pub fn add_percentiles(&mut self, name: &str, samples: &[Vec<Duration>]) {
        for (label, share) in [("p50", 0.5), ("p95", 0.95)] {
            let values = samples.iter().map(|samples| percentile(samples, share) * 1e3).collect();
            self.add(format!("{name} {label}"), Unit::Milliseconds, values);
        }
    }

    /// Prints the rows that have not been printed, and before the first of all the heading.
    pub fn print_new(&mut self) {
        if self.printed == 0 {
            let ratios = self.peers.iter().skip(1).map(|peer| format!("/ {peer}"));
            let columns: Vec<String> = self.peers.iter().cloned().chain(ratios).collect();
            println!("{:<34}{}", "", cells(&columns));
        }
        for (name, unit, values) in &self.rows[self.printed..] {
            let ratios = values.iter().skip(1).map(|value| ratio(values[0], *value));
            let columns: Vec<String> = values.iter().map(|value| number(*unit, *value)).chain(ratios).collect();
            println!("{:<34}{}", format!("{name}, {}", unit_name(*unit)), cells(&columns));
        }
        self.printed = self.rows.len();
    }
}

fn cells(columns: &[String]) -> String {
    columns.iter().map(|column| format!("{column:>12}")).collect()
}

fn unit_name(unit: Unit) -> &'static str {
    match unit {
        Unit::Milliseconds => "ms",
        Unit::Kibibytes => "KiB",
        Unit::PerSecond => "per second",
        Unit::MegabytesPerSecond => "MB/s",
        Unit::MilliCpus => "CPU/1000",
    }
}

fn number(unit: Unit, value: f64) -> String {
    match unit {
        _ if value.is_nan() => "-".to_owned(),
        Unit::Milliseconds => format!("{value:.2}"),
        Unit::Kibibytes => format!("{value:.0}"),
        Unit::PerSecond | Unit::MegabytesPerSecond | Unit::MilliCpus => format!("{value:.1}"),
    }
}

fn ratio(ours: f64, theirs: f64) -> String {
    if ours.is_nan() || theirs.is_nan() || theirs == 0.0 {
        return "-".to_owned();
    }
    format!("{:.2}", ours / theirs)
}

/// The middle one, in seconds; of an even number the mean of the middle two.
fn median(mut samples: Vec<Duration>) -> f64 {
    samples.sort_unstable();
    let middle = samples.len() / 2;
    match samples.len() {
        0 => f64::NAN,
        length if length % 2 == 1 => samples[middle].as_secs_f64(),
        _ => (samples[middle - 1] + samples[middle]).as_secs_f64() / 2.0,
    }
}

/// The smallest sample that `share` of all samples do not exceed, in seconds.
fn percentile(samples: &[Duration], share: f64) -> f64 {
    let mut sorted = samples.to_vec();
    sorted.sort_unstable();
    let exceeded = |index: &usize| (index + 1) as f64 >= share * sorted.len() as f64;
    let index = (0..sorted.len()).find(exceeded);
    index.map_or(f64::NAN, |index| sorted[index].as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians() {
        let of = |seconds: &[u64]| median(seconds.iter().copied().map(Duration::from_secs).collect());
        assert!(of(&[]).is_nan());
        for (samples, expected) in [(&[3][..], 3.0), (&[9, 1, 2], 2.0), (&[4, 1, 2, 100], 3.0)] {
            assert!((of(samples) - expected).abs() < 1e-9, "{samples:?}");
        }
    }

    #[test]
    fn percentiles() {
        let seconds: Vec<_> = (1..=20).map(Duration::from_secs).collect();
        for (count, share, expected) in [(20, 0.5, 10.0), (20, 0.95, 19.0), (1, 0.95, 1.0), (3, 0.5, 2.0)] {
            let found = percentile(&seconds[..count], share);
            assert!((found - expected).abs() < 1e-9, "{share} of {count}: {found}");
        }
        assert!(percentile(&[], 0.5).is_nan());
    }

    #[test]
    fn ratios_of_what_was_measured() {
        assert_eq!(ratio(1.0, 4.0), "0.25");
        assert_eq!(ratio(1.0, f64::NAN), "-");
        assert_eq!(ratio(1.0, 0.0), "-");
    }
}
