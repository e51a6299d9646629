//! What is wrong with a request, in the form every caller shows: field, value, rule.
//!
//! The kind decides the gRPC code and nothing else; the mapping stands with the services.

use std::borrow::Cow;
use std::fmt;

/// Longest beginning of a value that an error repeats, in bytes: it goes into the log, and into a header of the answer.
const SHOWN: usize = 256;

/// `value`, or the beginning of one that is too long to be repeated, with its length.
pub(crate) fn shown(value: &str) -> Cow<'_, str> {
    if value.len() <= SHOWN {
        return Cow::Borrowed(value);
    }
    let beginning = &value[..value.floor_char_boundary(SHOWN)];
    Cow::Owned(format!("{beginning}... ({} bytes)", value.len()))
}

/// Which of the three ways a request cannot be followed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The request breaks a rule: repeating it changes nothing (INVALID_ARGUMENT).
    Invalid,
    /// A valid request for something that is not built (UNIMPLEMENTED).
    Unimplemented,
    /// A valid request that this node failed to follow: a path, a file, a kernel call (INTERNAL).
    Failed,
}

/// A CRI field, the value it had, and the rule it breaks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SpecError {
    /// Path of the field as the CRI names it, `linux.security_context.run_as_group`.
    pub field: String,
    /// The offending value.
    pub value: String,
    /// What would have been right, or what went wrong.
    pub rule: String,
    /// Who is at fault.
    pub kind: Kind,
}

impl SpecError {
    /// The request breaks `rule`.
    pub fn invalid(field: impl Into<String>, value: impl fmt::Display, rule: impl Into<String>) -> Self {
        Self::new(Kind::Invalid, field, value, rule)
    }

    /// The request asks for something that is not built.
    pub fn unimplemented(field: impl Into<String>, value: impl fmt::Display, rule: impl Into<String>) -> Self {
        Self::new(Kind::Unimplemented, field, value, rule)
    }

    /// The node could not do its part; `rule` says what happened.
    pub fn failed(field: impl Into<String>, value: impl fmt::Display, rule: impl Into<String>) -> Self {
        Self::new(Kind::Failed, field, value, rule)
    }

    fn new(kind: Kind, field: impl Into<String>, value: impl fmt::Display, rule: impl Into<String>) -> Self {
        SpecError {
            field: shown(&field.into()).into_owned(),
            value: shown(&value.to_string()).into_owned(),
            rule: rule.into(),
            kind,
        }
    }
}

impl fmt::Display for SpecError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Debug form of the value: it is a stranger's and may hold line breaks.
        write!(f, "{} {:?}: {}", self.field, self.value, self.rule)
    }
}

impl std::error::Error for SpecError {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_is_one_line_with_field_value_and_rule() {
        let text = SpecError::invalid("hostname", "a\nb", "no line breaks").to_string();
        assert_eq!(text, r#"hostname "a\nb": no line breaks"#);
    }

    #[test]
    fn a_long_value_is_not_repeated() {
        let error = SpecError::invalid(
            format!("labels[{:?}]", "k".repeat(1 << 20)),
            "ä".repeat(1 << 20),
            "short",
        );
        let text = error.to_string();
        assert!(
            text.len() < 3 * SHOWN && text.contains("ä... (2097152 bytes)"),
            "{text}"
        );
    }
}
