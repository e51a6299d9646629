//! What names without a registry mean, by configuration. Pure.
//!
//! An alias is one image's name for another. Any other short name is looked for at the configured registries in their
//! order; by default that is docker.io, as everywhere.

use super::reference::{Reference, ReferenceError, short_name};
use super::registry::PullConfig;

/// The references that `text` may mean, in the order to try; one where it names a registry.
pub(super) fn candidates(text: &str, config: &PullConfig) -> Result<Vec<Reference>, ReferenceError> {
    // The rules of a reference first: a broken one is blamed as it was given.
    let plain: Reference = text.parse()?;
    let Some(name) = short_name(text) else {
        return Ok(vec![plain]);
    };
    if let Some(full) = config.short_names.get(name) {
        return Ok(vec![format!("{full}{}", &text[name.len()..]).parse()?]);
    }
    let registries = config.short_name_registries.iter();
    registries
        .map(|registry| format!("{registry}/{text}").parse())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_what_they_may_mean() {
        let digest = format!("sha256:{}", "ab".repeat(32));
        let config = PullConfig {
            short_name_registries: vec!["r.example:5000".into(), "docker.io".into(), "[::1]:5".into()],
            short_names: [
                ("base".to_owned(), "r.example/team/base".to_owned()),
                ("team/tool".to_owned(), "localhost/tool".to_owned()),
            ]
            .into(),
            ..PullConfig::default()
        };
        let table = [
            (
                "busybox",
                vec![
                    "r.example:5000/busybox:latest",
                    "docker.io/library/busybox:latest",
                    "[::1]:5/busybox:latest",
                ],
            ),
            (
                "team/app:1",
                vec![
                    "r.example:5000/team/app:1",
                    "docker.io/team/app:1",
                    "[::1]:5/team/app:1",
                ],
            ),
            ("docker.io/busybox", vec!["docker.io/library/busybox:latest"]),
            ("localhost/busybox:1", vec!["localhost/busybox:1"]),
            ("other:5000/a", vec!["other:5000/a:latest"]),
            ("[2001:db8::1]/a", vec!["[2001:db8::1]/a:latest"]),
            ("base", vec!["r.example/team/base:latest"]),
            ("base:2", vec!["r.example/team/base:2"]),
            ("team/tool:x", vec!["localhost/tool:x"]),
        ];
        for (text, expected) in table {
            let found: Vec<_> = candidates(text, &config)
                .unwrap()
                .iter()
                .map(Reference::to_string)
                .collect();
            assert_eq!(found, expected, "{text}");
        }
        let found = candidates(&format!("base:2@{digest}"), &config).unwrap();
        assert_eq!(found[0].to_string(), format!("r.example/team/base@{digest}"));
        for bad in ["", "Base", "base:", "a//b", "base@sha256:1"] {
            candidates(bad, &config).unwrap_err();
        }
        let default = candidates("busybox", &PullConfig::default()).unwrap();
        assert_eq!((default.len(), default[0].registry.as_str()), (1, "docker.io"));
    }
}
