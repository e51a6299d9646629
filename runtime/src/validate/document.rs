//! From the text of config.json to types: what the types cannot hold, or would silently drop, is seen here.

use anyhow::{Result, anyhow, bail, ensure};
use oci_spec::runtime::{Process, Spec};
use rustix::thread::CapabilitySet;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::spelling;

/// Something parsed, and what the user should hear about it.
#[derive(Debug)]
pub struct Parsed<T> {
    /// The document.
    pub value: T,
    /// What was left out.
    pub warnings: Vec<String>,
}

/// Fields of the specification, up to 1.3, that this runtime does not implement, with what it lacks. `[]` stands for
/// every element of an array.
///
/// By their path in the text, because the types lack some of them.
const UNSUPPORTED: [(&str, &str); 11] = [
    ("process.commandLine", "Windows"),
    ("solaris", "Solaris"),
    ("windows", "Windows"),
    ("freebsd", "FreeBSD"),
    ("zos", "z/OS"),
    ("vm", "virtual machines"),
    // Of the types, but never of the specification.
    ("uidMappings", "mappings outside of linux"),
    ("gidMappings", "mappings outside of linux"),
    // Once in drafts; a reader that ignored them would run the container with less protection than was meant.
    ("linux.selinuxProcessLabel", "SELinux"),
    ("linux.apparmorProfile", "AppArmor"),
    ("linux.rlimits", "limits outside of process"),
];

/// Whether a field of the specification is implemented, by its path.
pub fn is_supported(field: &str) -> bool {
    UNSUPPORTED.iter().all(|(path, _)| *path != field)
}

/// Parses config.json. Refuses every field this runtime does not implement.
pub fn parse_spec(json: &[u8]) -> Result<Parsed<Spec>> {
    parse(json, "")
}

/// Parses the process document of `exec --process`, by the same rules.
pub fn parse_process(json: &[u8]) -> Result<Parsed<Process>> {
    parse(json, "process")
}

/// `at` is the path of the document's root within a specification.
fn parse<T: DeserializeOwned>(json: &[u8], at: &str) -> Result<Parsed<T>> {
    let mut document: Value = serde_json::from_slice(json).map_err(|error| anyhow!("not valid JSON: {error}"))?;
    // The types would take an array for the fields in their order.
    ensure!(
        document.is_object(),
        "document: {}: must be an object",
        quoted(&document)
    );
    for (path, what) in UNSUPPORTED {
        let Some(path) = below(path, at) else {
            continue;
        };
        if let Some((place, value)) = find(&document, path, at) {
            bail!("{place}: {}: {what}: not supported by this runtime", quoted(value));
        }
    }
    spelling::settle(&mut document, at);
    let capabilities = match at {
        "" => document.pointer_mut("/process/capabilities"),
        _ => document.pointer_mut("/capabilities"),
    };
    let warnings = capabilities.map(drop_unknown_capabilities).unwrap_or_default();
    let value = serde_path_to_error::deserialize(document).map_err(|error| {
        let path = error.path().to_string();
        let place = [at, &path]
            .into_iter()
            .filter(|part| !part.is_empty() && *part != ".")
            .collect::<Vec<_>>();
        anyhow!(
            "{}: {}",
            if place.is_empty() {
                "document".to_owned()
            } else {
                place.join(".")
            },
            error.inner()
        )
    })?;
    Ok(Parsed { value, warnings })
}

/// How much of a value an error repeats, in characters: callers keep a few KB of an error, and need its end.
const MAX_QUOTED: usize = 200;

/// A value as an error repeats it.
fn quoted(value: &Value) -> String {
    let text = value.to_string();
    match text.char_indices().nth(MAX_QUOTED) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text,
    }
}

/// The rest of `path` below `at`.
fn below<'a>(path: &'a str, at: &str) -> Option<&'a str> {
    if at.is_empty() {
        Some(path)
    } else {
        path.strip_prefix(at)?.strip_prefix('.')
    }
}

/// The first field at `path` that asks for something, with its full path.
fn find<'v>(value: &'v Value, path: &str, at: &str) -> Option<(String, &'v Value)> {
    let (name, rest) = path
        .split_once('.')
        .map_or((path, None), |(name, rest)| (name, Some(rest)));
    let (name, each) = name.strip_suffix("[]").map_or((name, false), |name| (name, true));
    let field = value.get(name)?;
    let place = if at.is_empty() {
        name.to_owned()
    } else {
        format!("{at}.{name}")
    };
    match rest {
        None => asks(field).then_some((place, field)),
        Some(rest) if each => {
            let elements = field.as_array()?.iter().enumerate();
            elements
                .into_iter()
                .find_map(|(index, element)| find(element, rest, &format!("{place}[{index}]")))
        }
        Some(rest) => find(field, rest, &place),
    }
}

/// Whether a field wants something done. Programs in Go write many fields they leave unset as empty ones.
fn asks(value: &Value) -> bool {
    match value {
        Value::Null => false,
        Value::Bool(value) => *value,
        Value::Number(number) => number.as_f64() != Some(0.0),
        Value::String(text) => !text.is_empty(),
        Value::Array(array) => !array.is_empty(),
        Value::Object(object) => !object.is_empty(),
    }
}

/// Takes names out of the five sets that no kernel we know of has: they are to be logged and no failure (config.md, Linux
/// process, capabilities), while the types would refuse the whole document.
fn drop_unknown_capabilities(sets: &mut Value) -> Vec<String> {
    let mut warnings = Vec::new();
    for (set, names) in sets.as_object_mut().into_iter().flatten() {
        let Some(names) = names.as_array_mut() else {
            continue;
        };
        names.retain(|name| {
            // What is no string is for the types to refuse.
            let Some(text) = name.as_str() else {
                return true;
            };
            let known = text
                .strip_prefix("CAP_")
                .is_some_and(|name| CapabilitySet::from_name(name).is_some());
            if !known {
                warnings.push(format!(
                    "process.capabilities.{set}: {text:?}: no such capability: left out"
                ));
            }
            known
        });
    }
    warnings
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::tests::{check, minimal, set};
    use super::*;

    #[test]
    fn each_unsupported_field_is_refused_and_its_empty_form_is_not() {
        for (path, what) in UNSUPPORTED {
            let place = path.replace("[]", "[1]");
            let pointer = format!("/{}", place.replace("[1]", "/1").replace('.', "/"));
            for (value, refused) in [
                (json!({"x": 1}), true),
                (json!("x"), true),
                (json!([1]), true),
                (json!(""), false),
                (json!([]), false),
            ] {
                let mut document = minimal();
                set(&mut document, &pointer, value.clone());
                let asked = parse_spec(document.to_string().as_bytes()).map_err(|error| format!("{error:#}"));
                let refusal = asked
                    .as_ref()
                    .err()
                    .is_some_and(|error| error.starts_with(&format!("{place}: {value}: {what}")));
                assert_eq!(refusal, refused, "{path} {value}: {:?}", asked.err());
            }
        }
    }

    #[test]
    fn a_long_value_is_cut() {
        for (length, whole) in [(MAX_QUOTED - 2, true), (MAX_QUOTED, false), (50 << 10, false)] {
            let value = "é".repeat(length);
            let error = check(&[("/windows", json!(value))]).unwrap_err();
            let expected = if whole {
                format!("windows: \"{value}\": Windows: ")
            } else {
                format!("windows: \"{}...: Windows: ", "é".repeat(MAX_QUOTED - 1))
            };
            assert!(error.starts_with(&expected), "{length}: {error}");
        }
    }

    #[test]
    fn failures_say_where() {
        for (pointer, value, message) in [
            (
                "/process/user/uid",
                json!(4_294_967_296_u64),
                "process.user.uid: invalid value: integer `4294967296`, expected u32",
            ),
            ("/process/user/uid", json!(-1), "process.user.uid: "),
            ("/process/args", json!("sh"), "process.args: invalid type: string"),
            (
                "/process/rlimits",
                json!([{"type": "RLIMIT_X", "soft": 1, "hard": 1}]),
                "process.rlimits[0].type: unknown variant `RLIMIT_X`",
            ),
            (
                "/linux/namespaces",
                json!([{"type": "bogus"}]),
                "linux.namespaces[0].type: unknown variant `bogus`",
            ),
            (
                "/linux/resources",
                json!({"memory": {"limit": 1.5}}),
                "linux.resources.memory.limit: invalid type: floating",
            ),
            (
                "/process/capabilities",
                json!({"bounding": [5]}),
                "process.capabilities.bounding[0]: invalid type: integer",
            ),
        ] {
            let error = check(&[(pointer, value.clone())]).unwrap_err();
            assert!(error.starts_with(message), "{pointer} {value}: {error}");
        }
    }

    #[test]
    fn text_that_is_no_document() {
        for text in ["", "{", "[]x", "\u{feff}{}", "{\"a\": nan}"] {
            let error = parse_spec(text.as_bytes()).unwrap_err().to_string();
            assert!(error.starts_with("not valid JSON: "), "{text:?}: {error}");
        }
        for text in ["[]", "1", "null", "\"x\""] {
            let error = parse_spec(text.as_bytes()).unwrap_err().to_string();
            assert!(
                error.starts_with("document: ") && error.contains("object"),
                "{text:?}: {error}"
            );
        }
        assert!(parse_spec(&[0xff, 0xfe]).is_err());
    }

    #[test]
    fn unknown_capabilities_are_left_out() {
        let sets = json!({"bounding": ["CAP_CHOWN", "CAP_TIME_TRAVEL", "chown", "CAP_"], "effective": ["CAP_CHOWN"]});
        let mut document = minimal();
        set(&mut document, "/process/capabilities", sets.clone());
        let parsed = parse_spec(document.to_string().as_bytes()).unwrap();
        assert_eq!(parsed.warnings.len(), 3, "{:?}", parsed.warnings);
        assert!(parsed.warnings[0].contains("process.capabilities.bounding: \"CAP_TIME_TRAVEL\""));
        let process = parsed.value.process().as_ref().unwrap();
        let bounding = process.capabilities().as_ref().unwrap().bounding().as_ref().unwrap();
        assert_eq!(bounding.len(), 1);

        let process = json!({"cwd": "/", "args": ["x"], "user": {"uid": 0, "gid": 0}, "capabilities": sets});
        assert_eq!(parse_process(process.to_string().as_bytes()).unwrap().warnings.len(), 3);
    }

    #[test]
    fn a_process_alone() {
        let process = json!({"cwd": "/", "user": {"uid": 0, "gid": 0}, "commandLine": "x"});
        let error = parse_process(process.to_string().as_bytes()).unwrap_err().to_string();
        assert!(error.starts_with("process.commandLine: \"x\": Windows"), "{error}");
        let error = parse_process(br#"{"cwd": 5}"#).unwrap_err().to_string();
        assert!(error.starts_with("process.cwd: invalid type: integer"), "{error}");
    }
}
