//! What takes secrets out of documents and texts. Pure.
//!
//! | what | becomes |
//! |---|---|
//! | values of environment variables, in every form they come in | `NAME=***` |
//! | values whose key sounds like a secret, however deep | `***` |
//! | command lines but for the program and the names of options | `--password=***` |
//! | `--token X`, `password: X` in texts, up to the closing quote or the next space | `--token ***` |
//! | lines of the headers Authorization, Cookie, X-Registry-Auth; `Bearer X`; words that begin as a JWT does | `Bearer ***` |
//! | user and password in URLs; private keys | `https://***@host` |
//! | what a container wrote: the end of its output | `***` |
//! | commands in an image's history, which hold its build arguments | `***` |
//!
//! Rather too much than too little: a name is enough.

mod names;
mod text;

use serde_json::Value;

use self::names::{is_secret, plain};
pub(super) use self::text::text;

/// What stands for a secret.
const MASK: &str = "***";
/// Keys of environments: CRI's, the OCI runtime's and images'.
const ENVIRONMENTS: [&str; 3] = ["env", "envs", "environment"];
/// Parts of keys of what containers wrote, and of what they were built by.
const OUTPUT: [&str; 2] = ["stderr", "createdby"];
/// The key of a container's last words, in the record of its exit.
const LAST_WORDS: &str = "tail";
/// Keys of a program with its arguments.
const PROGRAMS: [&str; 2] = ["command", "entrypoint"];
/// Keys of arguments, which are a program's too where none of [`PROGRAMS`] is beside them.
const ARGUMENTS: [&str; 2] = ["args", "cmd"];

/// Masks a document in place.
pub(super) fn json(value: &mut Value) {
    match value {
        Value::Object(map) => {
            let has_program = map.iter().any(|(key, value)| is_program(key, value));
            map.iter_mut().for_each(|(key, value)| member(key, value, has_program));
        }
        Value::Array(items) => array(items),
        Value::String(text) => string(text),
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

/// What an object has under `key`; `has_program`: its program is under a key of its own.
fn member(key: &str, value: &mut Value, has_program: bool) {
    let name = plain(key);
    let is_output = name == LAST_WORDS || OUTPUT.iter().any(|part| name.contains(part));
    match value {
        value if ENVIRONMENTS.contains(&name.as_str()) => environment(value),
        value if is_output || is_secret(key) && !is_list_of_pairs(value) => leaves(value),
        Value::Array(items) if PROGRAMS.contains(&name.as_str()) => arguments(items, true),
        Value::Array(items) if ARGUMENTS.contains(&name.as_str()) => arguments(items, !has_program),
        value => json(value),
    }
}

fn is_program(key: &str, value: &Value) -> bool {
    PROGRAMS.contains(&plain(key).as_str()) && value.as_array().is_some_and(|items| !items.is_empty())
}

/// Of a command line the program and the names of options stay.
fn arguments(items: &mut [Value], program_first: bool) {
    for item in items.iter_mut().skip(usize::from(program_first)) {
        match item {
            Value::String(argument) => *argument = option_name(argument),
            other => leaves(other),
        }
    }
}

/// `--name` of `--name=value`, `-n` of `-nvalue`, and nothing of what is no option.
fn option_name(argument: &str) -> String {
    let end = match argument.strip_prefix("--") {
        Some(long) => 2 + long.find('=').unwrap_or(long.len()),
        None if argument.starts_with('-') => argument.char_indices().nth(2).map_or(argument.len(), |(at, _)| at),
        None => 0,
    };
    match &argument[..end] {
        name if end == argument.len() => name.to_owned(),
        name if name.starts_with("--") => format!("{name}={MASK}"),
        name => format!("{name}{MASK}"),
    }
}

/// `key` in a list of key-value pairs is a name, not a secret.
fn is_list_of_pairs(value: &Value) -> bool {
    value
        .as_array()
        .is_some_and(|items| items.iter().all(|item| item["key"].is_string()))
}

/// A list that may be of arguments: what follows `--password` is one.
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
                value!({"args": ["a", "--password", "***", "***"]}),
            ),
            (
                value!({"command": ["sh"], "args": ["--db-pass=X", "-v", "-pX", "X"]}),
                value!({"command": ["sh"], "args": ["--db-pass=***", "-v", "-p***", "***"]}),
            ),
            (
                value!({"command": ["a", "X"], "args": ["X"]}),
                value!({"command": ["a", "***"], "args": ["***"]}),
            ),
            (
                value!({"other": ["a", "--db-pass", "X", "b"]}),
                value!({"other": ["a", "--db-pass", "***", "b"]}),
            ),
            (
                value!({"DB_PASS": "X", "encryptionKey": "X", "tail": {"text": "X"}}),
                value!({"DB_PASS": "***", "encryptionKey": "***", "tail": {"text": "***"}}),
            ),
            (
                value!({"history": [{"created_by": "ARG X"}], "last_stderr": "X", "exit_code": 1}),
                value!({"history": [{"created_by": "***"}], "last_stderr": "***", "exit_code": 1}),
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
    fn last_words_are_no_part_of_an_exit_record() {
        use corten_proto::exit::{Details, ExitRecord, Tail};
        let tail = Tail {
            stream: "stderr".to_owned(),
            text: "planted".to_owned(),
        };
        let details = Details {
            tail: Some(tail),
            kernel: vec!["oom-kill: a".to_owned()],
            ..Details::default()
        };
        let record = ExitRecord {
            details: Some(Box::new(details)),
            ..ExitRecord::default()
        };
        let mut document = serde_json::to_value(record).unwrap();
        json(&mut document);
        let text = document.to_string();
        assert!(!text.contains("planted") && text.contains("oom-kill: a"), "{text}");
    }
}
