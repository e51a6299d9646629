//! What a registry demands in `WWW-Authenticate` (RFC 9110, 11.6.1; RFC 7617 Basic; distribution's Bearer tokens). Pure.

use reqwest::header::{HeaderMap, WWW_AUTHENTICATE};

/// Longest header that is looked at, in bytes.
const MAX_HEADER: usize = 8 << 10;

/// A demand that can be met.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Challenge {
    /// The login with every request.
    Basic,
    /// A token of the service at `realm`.
    Bearer {
        realm: String,
        service: Option<String>,
        scope: Option<String>,
    },
}

impl Challenge {
    /// The first of a reply's demands that can be met.
    pub(super) fn of(headers: &HeaderMap) -> Option<Challenge> {
        let values = headers.get_all(WWW_AUTHENTICATE).iter();
        let mut values = values.filter_map(|value| value.to_str().ok());
        values.find_map(Challenge::parse)
    }

    /// Reads one header's value; `None` where it is of another scheme or malformed.
    pub(super) fn parse(header: &str) -> Option<Challenge> {
        if header.len() > MAX_HEADER {
            return None;
        }
        let (scheme, rest) = header.trim().split_once(' ').unwrap_or((header.trim(), ""));
        if scheme.eq_ignore_ascii_case("basic") {
            return Some(Challenge::Basic);
        }
        if !scheme.eq_ignore_ascii_case("bearer") {
            return None;
        }
        let (mut realm, mut service, mut scope) = (None, None, None);
        for (name, value) in parameters(rest) {
            match name.to_ascii_lowercase().as_str() {
                "realm" => realm = Some(value),
                "service" => service = Some(value),
                "scope" => scope = Some(value),
                _ => {}
            }
        }
        Some(Challenge::Bearer {
            realm: realm?,
            service,
            scope,
        })
    }
}

/// `name="value", name=value`: within quotes a comma belongs to the value, and a backslash takes the next character as is.
fn parameters(mut text: &str) -> Vec<(String, String)> {
    let mut found = Vec::new();
    while let Some((name, rest)) = text.split_once('=') {
        let (value, rest) = match rest.strip_prefix('"') {
            Some(quoted) => unquote(quoted),
            None => {
                let (value, rest) = rest.split_once(',').unwrap_or((rest, ""));
                (value.trim().to_owned(), rest)
            }
        };
        found.push((name.trim_matches([' ', ',']).to_owned(), value));
        text = rest;
    }
    found
}

/// The value up to the closing quote, and what follows it.
fn unquote(quoted: &str) -> (String, &str) {
    let mut value = String::new();
    let mut characters = quoted.char_indices();
    while let Some((at, character)) = characters.next() {
        match character {
            '"' => return (value, &quoted[at + 1..]),
            '\\' => value.extend(characters.next().map(|(_, next)| next)),
            other => value.push(other),
        }
    }
    (value, "")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn challenges() {
        let bearer = |realm: &str, service: Option<&str>, scope: Option<&str>| {
            Some(Challenge::Bearer {
                realm: realm.into(),
                service: service.map(Into::into),
                scope: scope.map(Into::into),
            })
        };
        let long = format!("Bearer realm=\"{}\"", "x".repeat(MAX_HEADER));
        let table = [
            (r#"Basic realm="x""#, Some(Challenge::Basic)),
            ("basic", Some(Challenge::Basic)),
            (
                r#"Bearer realm="https://a/token",service="s",scope="repository:a/b:pull,push""#,
                bearer("https://a/token", Some("s"), Some("repository:a/b:pull,push")),
            ),
            (r#"bearer scope=x, realm="r""#, bearer("r", None, Some("x"))),
            (r#"Bearer realm="a\"b",service=s"#, bearer("a\"b", Some("s"), None)),
            (r#"Bearer realm="never closed"#, bearer("never closed", None, None)),
            (r#"Bearer realm="\"#, bearer("", None, None)),
            (r#"Bearer realm="one",realm="two""#, bearer("two", None, None)),
            (r#"Bearer service="s""#, None),
            ("Bearer", None),
            ("Bearer =", None),
            ("Negotiate", None),
            ("", None),
            (&long, None),
        ];
        for (header, challenge) in table {
            assert_eq!(Challenge::parse(header), challenge, "{header}");
        }
    }
}
