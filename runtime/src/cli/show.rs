//! The commands that show something: `list`, `ps`, `events`, `spec`, `features`.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use corten_proto::id::ContainerId;

use super::arguments::Arguments;
use super::definition::{Count, Definition, Flag, Operand};

const FORMAT: Flag = Flag::words(
    "format",
    "FORMAT",
    &["table", "json"],
    "how it is printed (default: table)",
)
.or('f');

/// How often `events` prints statistics unless told otherwise.
const INTERVAL: Duration = Duration::from_secs(5);

pub(super) const LIST: Definition = Definition {
    name: "list",
    about: "list the containers below --root",
    details: "",
    flags: &[&[FORMAT, Flag::switch("quiet", "print the ids alone").or('q')]],
    operands: &[],
    ends_options: false,
};

pub(super) const PS: Definition = Definition {
    name: "ps",
    about: "list the processes of a container",
    details: "\
The table is what ps(1) of the host prints with these options (default: -ef), the processes of other
containers left out; it must have a column PID. As JSON it is the list of the pids.",
    flags: &[&[FORMAT]],
    operands: &[
        Operand::ID,
        Operand {
            name: "PS-OPTION",
            what: "options for ps",
            count: Count::Any,
        },
    ],
    ends_options: true,
};

pub(super) const EVENTS: Definition = Definition {
    name: "events",
    about: "print statistics and events of a container, as lines of JSON",
    details: "Prints statistics once per interval, and a notice of each out-of-memory kill, until the container ends.",
    flags: &[&[
        Flag::text(
            "interval",
            "DURATION",
            "the time between two statistics, such as 500ms (default: 5s)",
        ),
        Flag::switch("stats", "print the statistics of now, and exit"),
    ]],
    operands: &[Operand::ID],
    ends_options: false,
};

pub(super) const SPEC: Definition = Definition {
    name: "spec",
    about: "write a config.json to start from",
    details: "\
The specification runs `sh` in a read-only root filesystem in the directory rootfs. An existing
config.json is not replaced.",
    flags: &[&[
        Flag::directory("bundle", "where to write it (default: the working directory)").or('b'),
        Flag::switch("rootless", "for a container made by a user other than root"),
    ]],
    operands: &[],
    ends_options: false,
};

pub(super) const FEATURES: Definition = Definition {
    name: "features",
    about: "print what this runtime can do, as JSON",
    details: "The document is that of the OCI runtime specification, features.md.",
    flags: &[],
    operands: &[],
    ends_options: false,
};

/// `list`.
#[derive(Debug, PartialEq, Eq)]
pub struct List {
    /// As JSON, not as a table.
    pub json: bool,
    /// The ids alone.
    pub quiet: bool,
}

/// `ps`.
#[derive(Debug, PartialEq, Eq)]
pub struct Ps {
    /// Which container.
    pub id: ContainerId,
    /// As JSON, not as a table.
    pub json: bool,
    /// The options of the host's `ps`; none for those it has by default.
    pub options: Vec<String>,
}

/// `events`.
#[derive(Debug, PartialEq, Eq)]
pub struct Events {
    /// Which container.
    pub id: ContainerId,
    /// The time between two statistics; not zero.
    pub interval: Duration,
    /// The statistics of now alone.
    pub stats: bool,
}

/// `spec`.
#[derive(Debug, PartialEq, Eq)]
pub struct NewSpec {
    /// Where config.json is written.
    pub bundle: PathBuf,
    /// For a container made by a user other than root.
    pub rootless: bool,
}

impl List {
    pub(super) fn new(arguments: &Arguments) -> List {
        List {
            json: arguments.is("format", "json"),
            quiet: arguments.has("quiet"),
        }
    }
}

impl Ps {
    pub(super) fn new(arguments: Arguments) -> Result<Ps> {
        Ok(Ps {
            id: arguments.id()?,
            json: arguments.is("format", "json"),
            options: arguments.operands_from(1)?,
        })
    }
}

impl Events {
    pub(super) fn new(arguments: &Arguments) -> Result<Events> {
        Ok(Events {
            id: arguments.id()?,
            interval: arguments.parsed_by("interval", duration)?.unwrap_or(INTERVAL),
            stats: arguments.has("stats"),
        })
    }
}

impl NewSpec {
    pub(super) fn new(arguments: &Arguments) -> NewSpec {
        NewSpec {
            bundle: arguments.path("bundle").unwrap_or_else(|| ".".into()),
            rootless: arguments.has("rootless"),
        }
    }
}

/// A time greater than zero, as Go writes it: `500ms`, `1m30s`.
fn duration(text: &str) -> Result<Duration> {
    let mut rest = text;
    let mut nanos: u128 = 0;
    while !rest.is_empty() {
        let digits = rest.len() - rest.trim_start_matches(|c: char| c.is_ascii_digit()).len();
        let (number, unit) = rest.split_at(digits);
        let length = unit.find(|c: char| c.is_ascii_digit()).unwrap_or(unit.len());
        let (unit, after) = unit.split_at(length);
        let scale: u128 = match unit {
            "ns" => 1,
            "us" | "µs" => 1_000,
            "ms" => 1_000_000,
            "s" => 1_000_000_000,
            "m" => 60_000_000_000,
            "h" => 3_600_000_000_000,
            _ => anyhow::bail!("must be numbers with the units h, m, s, ms, us, ns"),
        };
        let number: u32 = number.parse().context("must begin with a number")?;
        nanos += u128::from(number) * scale;
        rest = after;
    }
    ensure!(nanos > 0, "must be greater than zero");
    Ok(Duration::from_nanos(u64::try_from(nanos).context("is too long")?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations() {
        for (text, milliseconds) in [("5s", 5_000), ("500ms", 500), ("1m30s", 90_000), ("2h", 7_200_000)] {
            assert_eq!(duration(text).unwrap(), Duration::from_millis(milliseconds), "{text}");
        }
        assert_eq!(duration("3µs7ns").unwrap(), Duration::from_nanos(3_007));
        for bad in [
            "",
            "0s",
            "5",
            "s",
            "-5s",
            "5x",
            "5s3",
            "1.5s",
            "99999999999999s",
            "9999999h9999999h",
        ] {
            assert!(duration(bad).is_err(), "{bad}");
        }
    }
}
