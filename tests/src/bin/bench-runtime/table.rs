//! The table of results: a row a case, a column a runtime, and the ratios to the first.

use std::time::Duration;

/// What is in a row.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unit {
    /// Milliseconds; less is better.
    Milliseconds,
    /// KiB; less is better.
    Kibibytes,
    /// Containers per second; more is better.
    PerSecond,
}

/// Rows in the order of their measurement.
pub(crate) struct Table {
    peers: Vec<String>,
    rows: Vec<(String, Unit, Vec<f64>)>,
    printed: usize,
}

impl Table {
    pub(crate) fn new(peers: Vec<String>) -> Table {
        Table {
            peers,
            rows: Vec::new(),
            printed: 0,
        }
    }

    /// Adds a row with a value for each runtime.
    pub(crate) fn add(&mut self, name: String, unit: Unit, values: Vec<f64>) {
        self.rows.push((name, unit, values));
    }

    /// Adds a row of medians.
    pub(crate) fn add_medians(&mut self, name: String, samples: Vec<Vec<Duration>>) {
        let medians = samples.into_iter().map(|samples| median(samples) * 1e3).collect();
        self.add(name, Unit::Milliseconds, medians);
    }

    /// Prints the rows that have not been printed, and before the first of all the heading.
    pub(crate) fn print_new(&mut self) {
        if self.printed == 0 {
            let ratios = self.peers.iter().skip(1).map(|peer| format!("/ {peer}"));
            let columns: Vec<String> = self.peers.iter().cloned().chain(ratios).collect();
            println!("{:<28}{}", "", cells(&columns));
        }
        for (name, unit, values) in &self.rows[self.printed..] {
            let ratios = values.iter().skip(1).map(|value| ratio(values[0], *value));
            let columns: Vec<String> = values.iter().map(|value| number(*unit, *value)).chain(ratios).collect();
            println!("{:<28}{}", format!("{name}, {}", unit_name(*unit)), cells(&columns));
        }
        self.printed = self.rows.len();
    }
}

fn cells(columns: &[String]) -> String {
    columns.iter().map(|column| format!("{column:>10}")).collect()
}

fn unit_name(unit: Unit) -> &'static str {
    match unit {
        Unit::Milliseconds => "ms",
        Unit::Kibibytes => "KiB",
        Unit::PerSecond => "per second",
    }
}

fn number(unit: Unit, value: f64) -> String {
    match unit {
        _ if value.is_nan() => "-".to_owned(),
        Unit::Milliseconds => format!("{value:.2}"),
        Unit::Kibibytes => format!("{value:.0}"),
        Unit::PerSecond => format!("{value:.1}"),
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
    fn ratios_of_what_was_measured() {
        assert_eq!(ratio(1.0, 4.0), "0.25");
        assert_eq!(ratio(1.0, f64::NAN), "-");
        assert_eq!(ratio(1.0, 0.0), "-");
    }
}
