//! The configuration: every mistake in it.

use super::check::Check;
use crate::config::{Config, Problems};

const NAME: &str = "configuration";

/// One check for each mistake, or one for none.
pub(super) fn judge(config: Result<&Config, &Problems>) -> Vec<Check> {
    match config {
        Ok(config) => vec![Check::ok(NAME, format!("valid; root {}", config.root.display()))],
        Err(Problems(problems)) => problems
            .iter()
            .map(|problem| {
                Check::problem(
                    NAME,
                    problem.to_string(),
                    "no server starts with it; what follows is judged by the default configuration",
                    "mend that line; `corten-cri config default` explains every key",
                )
            })
            .collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::super::check::Verdict;
    use super::*;
    use crate::config::Problem;

    #[test]
    fn every_mistake_is_a_problem() {
        let problem = |key: &str| Problem {
            file: Some("/etc/corten/config.toml".into()),
            line: Some(3),
            key: Some(key.to_owned()),
            rule: "unknown".to_owned(),
        };
        let checks = judge(Err(&Problems(vec![problem("a"), problem("b")])));
        assert_eq!(checks.len(), 2);
        assert_eq!(checks[1].found, "/etc/corten/config.toml:3: b: unknown");
        assert_eq!(judge(Ok(&Config::default()))[0].verdict, Verdict::Ok);
    }
}
