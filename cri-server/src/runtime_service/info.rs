//! The `info` of verbose answers: one JSON document, which crictl prints and other tools read.
//!
//! The keys are those that the field has settled on. Whatever has become of an object, the answer is JSON: what cannot be
//! read of it is null, with the reason beside it. Nothing of registries or their credentials is in any of them; a container's
//! environment is, as in its bundle, for the root user who alone can ask.

use std::collections::HashMap;
use std::path::PathBuf;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use crate::node::{Node, blocking};
use crate::record::read_optional;

/// The specification in a bundle.
pub(super) struct RuntimeSpec {
    /// Null where there is none any more, or it cannot be read.
    pub(super) document: Value,
    /// Why it cannot be read.
    pub(super) error: Option<String>,
}

/// Reads `config.json` of a bundle.
pub(super) async fn runtime_spec(bundle: PathBuf) -> RuntimeSpec {
    let path = bundle.join("config.json");
    match blocking(move || read_optional(&path)).await {
        Ok(document) => RuntimeSpec {
            document: document.unwrap_or(Value::Null),
            error: None,
        },
        Err(error) => RuntimeSpec {
            document: Value::Null,
            error: Some(format!("{error:#}")),
        },
    }
}

/// The map of an answer that holds this document alone.
pub(super) fn document(info: &Value) -> Result<HashMap<String, String>> {
    let text = serde_json::to_string(info).context("encode the info")?;
    Ok(HashMap::from([("info".to_owned(), text)]))
}

impl Node {
    /// Where a runtime is and where it keeps its state; null for one that is not configured any more.
    pub(super) fn runtime_options(&self, name: &str) -> Value {
        match self.runtime(name) {
            Ok((path, root)) => json!({ "binaryName": path, "root": root }),
            Err(_) => Value::Null,
        }
    }
}
