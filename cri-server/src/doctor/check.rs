//! What one look at the machine has come to, and how it is told.

use std::fmt::Write as _;

use serde::Serialize;

/// How bad it is, the worst first: the order of a report.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Verdict {
    /// Pods cannot be run, or not as they are meant to be.
    Problem,
    /// Pods run; something will go wrong, or is not what it could be.
    Warning,
    /// Nothing can be said, or it does not matter here.
    Skipped,
    /// As it should be.
    Ok,
}

/// One check: a name that stays, and what was found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Check {
    /// What was looked at, in kebab case.
    pub(crate) name: &'static str,
    /// How bad it is.
    pub(crate) verdict: Verdict,
    /// What was found.
    pub(crate) found: String,
    /// What that means for pods; for problems and warnings.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(crate) meaning: String,
    /// What to do about it; for problems and warnings.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(crate) fix: String,
}

impl Check {
    /// All is well.
    pub(crate) fn ok(name: &'static str, found: impl Into<String>) -> Check {
        Check {
            name,
            verdict: Verdict::Ok,
            found: found.into(),
            meaning: String::new(),
            fix: String::new(),
        }
    }

    /// Nothing can be said, for this reason.
    pub(crate) fn skipped(name: &'static str, why: impl Into<String>) -> Check {
        Check {
            verdict: Verdict::Skipped,
            ..Check::ok(name, why)
        }
    }

    /// Something to know of.
    pub(crate) fn warning(
        name: &'static str,
        found: impl Into<String>,
        meaning: impl Into<String>,
        fix: impl Into<String>,
    ) -> Check {
        Check {
            name,
            verdict: Verdict::Warning,
            found: found.into(),
            meaning: meaning.into(),
            fix: fix.into(),
        }
    }

    /// Something to mend.
    pub(crate) fn problem(
        name: &'static str,
        found: impl Into<String>,
        meaning: impl Into<String>,
        fix: impl Into<String>,
    ) -> Check {
        Check {
            verdict: Verdict::Problem,
            ..Check::warning(name, found, meaning, fix)
        }
    }
}

/// The report for a person, the worst first. What is fine is counted, or with `all` listed; `colour` is for terminals.
pub(crate) fn text(checks: &[Check], all: bool, colour: bool) -> String {
    let width = checks.iter().map(|check| check.name.len()).max().unwrap_or_default();
    let mut text = String::new();
    let shown = |check: &&Check| all || check.verdict <= Verdict::Warning;
    for check in checks.iter().filter(shown) {
        let label = label(check.verdict, colour);
        // Writing to a String cannot fail.
        writeln!(text, "{label} {:width$}  {}", check.name, check.found).expect("a String");
        for (word, line) in [("means", &check.meaning), ("fix", &check.fix)] {
            if !line.is_empty() {
                writeln!(text, "{:8} {:>width$}  {line}", "", word).expect("a String");
            }
        }
    }
    let count = |verdict| checks.iter().filter(|check| check.verdict == verdict).count();
    let hint = if all { "" } else { " (--all lists everything)" };
    writeln!(
        text,
        "{} problems, {} warnings, {} fine, {} skipped{hint}",
        count(Verdict::Problem),
        count(Verdict::Warning),
        count(Verdict::Ok),
        count(Verdict::Skipped),
    )
    .expect("a String");
    text
}

/// The verdict as the first word of a line, eight columns wide.
fn label(verdict: Verdict, colour: bool) -> String {
    let (word, code) = match verdict {
        Verdict::Problem => ("problem", "31;1"),
        Verdict::Warning => ("warning", "33"),
        Verdict::Skipped => ("skipped", "2"),
        Verdict::Ok => ("ok", "32"),
    };
    match colour {
        true => format!("\x1b[{code}m{word:8}\x1b[0m"),
        false => format!("{word:8}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_fine_is_counted() {
        let checks = [
            Check::problem("disk", "full", "no pod", "make room"),
            Check::skipped("criu", "not installed"),
            Check::ok("kernel", "Linux 6.18"),
        ];
        let short = text(&checks, false, false);
        let expected = "\
problem  disk    full
          means  no pod
            fix  make room
1 problems, 0 warnings, 1 fine, 1 skipped (--all lists everything)
";
        assert_eq!(short, expected);
        let long = text(&checks, true, false);
        assert!(long.contains("ok       kernel  Linux 6.18\n"), "{long}");
        assert!(!long.contains('\x1b') && text(&checks, true, true).contains("\x1b[31;1mproblem"));
    }

    #[test]
    fn the_worst_comes_first() {
        assert!(Verdict::Problem < Verdict::Warning && Verdict::Warning < Verdict::Skipped);
        assert!(Verdict::Skipped < Verdict::Ok);
    }
}
