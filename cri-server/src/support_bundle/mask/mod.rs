//! What takes secrets out of documents and texts. Pure.
//!
//! | what | becomes |
//! |---|---|
//! | values of environment variables, in every form they come in | `NAME=***` |
//! | values whose key sounds like a secret, however deep | `***` |
//! | arguments `--password=X`, `--token X`, and `password: X` in texts | `--password=***` |
//! | `Bearer X`, `Basic X`; user and password in URLs; private keys | `Bearer ***`, `https://***@host` |
//! | what a container wrote: the end of its stderr | `***` |
//! | commands in an image's history, which hold its build arguments | `***` |
//!
//! Rather too much than too little: a name is enough.

use serde_json::Value;

/// What stands for a secret.
const MASK: &str = "***";
/// Parts of names of secrets, without `-`, `_` and `.`.
const SECRET: [&str; 14] = [
    "password",
    "passwd",
    "passphrase",
    "secret",
    "token",
    "credential",
    "authorization",
    "apikey",
    "privatekey",
    "accesskey",
    "cookie",
    "lastappliedconfiguration",
    "bearer",
    "keydata",
];
/// Whole names of secrets.
const SECRET_NAMES: [&str; 4] = ["auth", "pwd", "pass", "key"];
/// Names that sound like secrets and are files or settings of ours.
const HARMLESS: [&str; 2] = ["authfile", "credentialhelperdirs"];
/// Keys of environments: CRI's, the OCI runtime's and images'.
const ENVIRONMENTS: [&str; 3] = ["env", "envs", "environment"];
/// Keys of what containers wrote, and of what they were built by.
const OUTPUT: [&str; 2] = ["stderr", "createdby"];

/// Whether what has this name is a secret.
fn is_secret(name: &str) -> bool {
    let name = plain(name);
    let sounds = SECRET.iter().any(|part| name.contains(part)) || SECRET_NAMES.contains(&name.as_str());
    sounds && !HARMLESS.contains(&name.as_str())
}

fn plain(name: &str) -> String {
    let kept = name.chars().filter(char::is_ascii_alphanumeric);
    kept.map(|c| c.to_ascii_lowercase()).collect()
}

/// Masks a document in place.
pub(super) fn json(value: &mut Value) {
    match value {
        Value::Object(map) => {
            for (key, value) in map {
                let name = plain(key);
                if ENVIRONMENTS.contains(&name.as_str()) {
                    environment(value);
                } else if is_secret(key) && !is_list_of_pairs(value) || OUTPUT.iter().any(|part| name.contains(part)) {
                    leaves(value);
                } else {
                    json(value);
                }
            }
        }
        Value::Array(items) => array(items),
        Value::String(text) => string(text),
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

/// `key` in a list of key-value pairs is a name, not a secret.
fn is_list_of_pairs(value: &Value) -> bool {
    value
        .as_array()
        .is_some_and(|items| items.iter().all(|item| item["key"].is_string()))
}

/// Arguments: what follows `--password` is one.
fn array(items: &mut [Value]) {
    let mut is_value = false;
    for item in items {
        let argument = item.as_str().unwrap_or_default();
        let names_secret = argument.starts_with('-') && !argument.contains('=') && is_secret(argument);
        match is_value {
            true => leaves(item),
            false => json(item),
        }
        is_value = names_secret;
    }
}

/// A text; one that is a document itself, as verbose infos and annotations are, is masked as such.
fn string(text: &mut String) {
    let is_document = text.starts_with(['{', '[']);
    match serde_json::from_str::<Value>(text) {
        Ok(mut inner) if is_document => {
            json(&mut inner);
            *text = inner.to_string();
        }
        _ => *text = self::text(text),
    }
}

/// Everything below is masked.
fn leaves(value: &mut Value) {
    match value {
        Value::Object(map) => map.values_mut().for_each(leaves),
        // Bytes, which say how many there are.
        Value::Array(items) if items.iter().all(Value::is_number) => *value = MASK.into(),
        Value::Array(items) => items.iter_mut().for_each(leaves),
        Value::String(text) if text.is_empty() => {}
        Value::String(_) | Value::Number(_) => *value = MASK.into(),
        Value::Null | Value::Bool(_) => {}
    }
}

/// `["NAME=VALUE"]`, `[{"key": NAME, "value": VALUE}]`, `{NAME: VALUE}`: the names stay.
fn environment(value: &mut Value) {
    match value {
        Value::Array(items) => items.iter_mut().for_each(|item| match item {
            Value::String(pair) => {
                let name = pair.split('=').next().unwrap_or_default();
                *pair = format!("{name}={MASK}");
            }
            Value::Object(pair) => {
                let values = pair
                    .iter_mut()
                    .filter(|(key, _)| !matches!(key.as_str(), "key" | "name"));
                values.for_each(|(_, value)| leaves(value));
            }
            other => leaves(other),
        }),
        other => leaves(other),
    }
}

/// Masks a text: words in it that are secrets by what is before them.
pub(super) fn text(text: &str) -> String {
    let mut result = String::with_capacity(text.len());
    let mut is_key = false;
    for line in text.split_inclusive('\n') {
        if line.contains("-----BEGIN") && line.contains("PRIVATE KEY") {
            is_key = true;
            result += "*** a private key\n";
        }
        if !is_key {
            result += &one_line(line);
        }
        if line.contains("-----END") {
            is_key = false;
        }
    }
    result
}

/// What the words so far say of the next one.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Next {
    Harmless,
    /// The name of a secret was read; a colon makes the next word its value.
    Named,
    /// It is a secret.
    Secret,
}

fn one_line(line: &str) -> String {
    let is_delimiter = |c: char| c.is_whitespace() || "\"'`,;&?()[]{}<>\\".contains(c);
    let mut result = String::with_capacity(line.len());
    let (mut rest, mut next) = (line, Next::Harmless);
    while !rest.is_empty() {
        let end = rest.find(is_delimiter).unwrap_or(rest.len());
        let (word, tail) = rest.split_at(end);
        if !word.is_empty() {
            next = add_word(word, next, &mut result);
        }
        let end = tail.find(|c| !is_delimiter(c)).unwrap_or(tail.len());
        let (delimiters, tail) = tail.split_at(end);
        result += delimiters;
        rest = tail;
    }
    result
}

/// Adds a word, or what stands for it; what it says of the next one.
fn add_word(word: &str, before: Next, result: &mut String) -> Next {
    let is_separator = word.chars().all(|c| c == ':' || c == '=');
    match before {
        Next::Named if is_separator => {
            result.push_str(word);
            return Next::Secret;
        }
        Next::Secret if is_separator => {
            result.push_str(word);
            return Next::Secret;
        }
        // "Authorization: Bearer X": the secret comes after.
        Next::Secret if is_scheme(word) => {
            result.push_str(word);
            return Next::Secret;
        }
        Next::Secret => {
            result.push_str(MASK);
            return Next::Harmless;
        }
        Next::Named | Next::Harmless => {}
    }
    if let Some((name, value)) = word.split_once('=')
        && is_secret(name)
    {
        result.push_str(name);
        result.push('=');
        if value.is_empty() {
            return Next::Secret;
        }
        result.push_str(MASK);
        return Next::Harmless;
    }
    if let Some((name, value)) = word.split_once(':')
        && is_secret(name)
        && !value.is_empty()
    {
        result.push_str(name);
        result.push(':');
        result.push_str(MASK);
        return Next::Harmless;
    }
    result.push_str(&without_login(word));
    if is_scheme(word) {
        return Next::Secret;
    }
    match is_secret(word) {
        true if word.ends_with(':') || word.starts_with("--") => Next::Secret,
        true => Next::Named,
        false => Next::Harmless,
    }
}

fn is_scheme(word: &str) -> bool {
    word == "Bearer" || word == "Basic"
}

/// `https://user:password@host` without the part before the `@`.
fn without_login(word: &str) -> String {
    let Some((scheme, rest)) = word.split_once("://") else {
        return word.to_owned();
    };
    let host_end = rest.find('/').unwrap_or(rest.len());
    match rest[..host_end].rfind('@') {
        Some(at) => format!("{scheme}://{MASK}{}", &rest[at..]),
        None => word.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json as value;

    use super::*;

    #[test]
    fn documents() {
        let table = [
            (
                value!({"envs": [{"key": "A", "value": "X"}]}),
                value!({"envs": [{"key": "A", "value": "***"}]}),
            ),
            (
                value!({"envs": [{"key": "A", "value": [88, 89]}]}),
                value!({"envs": [{"key": "A", "value": "***"}]}),
            ),
            (
                value!({"process": {"env": ["A=X", "B=Y=Z"]}}),
                value!({"process": {"env": ["A=***", "B=***"]}}),
            ),
            (value!({"Env": ["PATH=/bin"]}), value!({"Env": ["PATH=***"]})),
            (
                value!({"auth": {"username": "u", "n": 7}}),
                value!({"auth": {"username": "***", "n": "***"}}),
            ),
            (
                value!({"registry_token": "X", "empty_token": ""}),
                value!({"registry_token": "***", "empty_token": ""}),
            ),
            (
                value!({"auth_file": "/etc/corten/auth.json"}),
                value!({"auth_file": "/etc/corten/auth.json"}),
            ),
            (
                value!({"args": ["a", "--password", "X", "b"]}),
                value!({"args": ["a", "--password", "***", "b"]}),
            ),
            (
                value!({"args": ["--db-password=X", "-v"]}),
                value!({"args": ["--db-password=***", "-v"]}),
            ),
            (
                value!({"history": [{"created_by": "ARG X"}]}),
                value!({"history": [{"created_by": "***"}]}),
            ),
            (
                value!({"last_stderr": "X", "exit_code": 1}),
                value!({"last_stderr": "***", "exit_code": 1}),
            ),
            (
                value!({"info": "{\"env\":[\"A=X\"]}"}),
                value!({"info": "{\"env\":[\"A=***\"]}"}),
            ),
            (
                value!({"annotations": {"kubectl.kubernetes.io/last-applied-configuration": "X"}}),
                value!({"annotations": {"kubectl.kubernetes.io/last-applied-configuration": "***"}}),
            ),
            (
                value!({"labels": {"app": "web"}, "pid": 7}),
                value!({"labels": {"app": "web"}, "pid": 7}),
            ),
        ];
        for (mut document, expected) in table {
            let before = document.clone();
            json(&mut document);
            assert_eq!(document, expected, "{before}");
        }
    }

    #[test]
    fn texts() {
        let table = [
            ("nothing to hide: 7\n", "nothing to hide: 7\n"),
            ("the token was refused", "the token was refused"),
            ("password=X user=a", "password=*** user=a"),
            ("password: X, b", "password: ***, b"),
            ("{\"password\": \"X\"}", "{\"password\": \"***\"}"),
            ("password = \"X\"", "password = \"***\""),
            ("Authorization: Bearer X", "Authorization: Bearer ***"),
            ("curl -H Basic X", "curl -H Basic ***"),
            ("run --token X --verbose", "run --token *** --verbose"),
            ("https://u:X@r.example/v2?a=b", "https://***@r.example/v2?a=b"),
            (
                "https://r.example/v2?access_token=X&a=b",
                "https://r.example/v2?access_token=***&a=b",
            ),
            (
                "a\n-----BEGIN EC PRIVATE KEY-----\nX\n-----END EC PRIVATE KEY-----\nb",
                "a\n*** a private key\nb",
            ),
        ];
        for (line, expected) in table {
            assert_eq!(text(line), expected, "{line}");
            assert_eq!(text(expected), expected, "masked twice");
        }
    }
}
