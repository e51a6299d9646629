//! Pinned images: what the kubelet's garbage collection must leave alone. Pure.
//!
//! A pin is a word to the kubelet, which asks for no removal of such an image; RemoveImage removes it all the same, as
//! with the peers: whoever names an image means it.

use glob::Pattern;

use super::record::Image;

/// The patterns of pinned images.
#[derive(Clone, Debug, Default)]
pub struct Pins(Vec<Pattern>);

impl Pins {
    /// Pins what `patterns` match. A pattern that breaks [`Pins::check`] matches nothing.
    #[must_use]
    pub fn new(patterns: &[String]) -> Pins {
        let patterns = patterns.iter().filter_map(|pattern| Pattern::new(pattern).ok());
        Pins(patterns.collect())
    }

    /// What is wrong with a pattern.
    pub fn check(pattern: &str) -> Result<(), String> {
        if pattern.is_empty() {
            return Err("must not be empty".to_owned());
        }
        let checked = Pattern::new(pattern);
        checked
            .map(drop)
            .map_err(|error| format!("{pattern:?} at character {}: {}", error.pos, error.msg))
    }

    /// Whether an image has a name that is pinned: a tag or a digest, in full.
    #[must_use]
    pub fn hold(&self, image: &Image) -> bool {
        let mut names = image.repo_tags.iter().chain(&image.repo_digests);
        names.any(|name| self.0.iter().any(|pattern| pattern.matches(name)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_in_full_and_by_pattern() {
        let digest = format!("sha256:{}", "0".repeat(64));
        let image = Image {
            id: digest.parse().unwrap(),
            repo_tags: vec!["registry.example.com:5000/team/app:v1".to_owned()],
            repo_digests: vec![format!("registry.example.com:5000/team/app@{digest}")],
            size: 1,
            config: Default::default(),
            layers: Vec::new(),
            admissions: Default::default(),
            checkpoint: false,
        };
        let by_digest = format!("*@{digest}");
        let table = [
            ("registry.example.com:5000/team/app:v1", true),
            ("registry.example.com:5000/*", true),
            ("*/app:v?", true),
            (&by_digest, true),
            ("registry.example.com:5000/team/app", false),
            ("team/app:v1", false),
            ("*/app:v1.*", false),
        ];
        for (pattern, pinned) in table {
            assert_eq!(Pins::check(pattern), Ok(()));
            assert_eq!(Pins::new(&[pattern.to_owned()]).hold(&image), pinned, "{pattern}");
        }
        assert!(!Pins::default().hold(&image));
    }

    #[test]
    fn patterns_that_are_none() {
        for bad in ["", "a/***", "[a"] {
            assert!(Pins::check(bad).is_err(), "{bad}");
        }
    }
}
