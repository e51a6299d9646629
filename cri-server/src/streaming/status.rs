//! How an exec or attach ended, as the client reads it from the error stream: a `metav1.Status` in JSON for protocol v4 and
//! later, a line of text before.

use bytes::Bytes;
use serde_json::json;

/// The end of an exec or attach.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Ending {
    /// Exit code 0; of an attach: the container has ended, or the client is done.
    Success,
    /// The command's exit code.
    Code(i32),
    /// It could not be run, or was ended from here.
    Failed(String),
}

impl Ending {
    /// What is written to the error stream; none where an older protocol says nothing.
    pub(super) fn message(&self, json: bool) -> Option<Bytes> {
        match (json, self) {
            (true, _) => Some(self.status().to_string().into()),
            (false, Ending::Success) => None,
            (false, _) => Some(self.text().into()),
        }
    }

    fn text(&self) -> String {
        match self {
            Ending::Success => String::new(),
            Ending::Code(code) => format!("command terminated with exit code {code}"),
            Ending::Failed(cause) => cause.clone(),
        }
    }

    fn status(&self) -> serde_json::Value {
        let message = self.text();
        match self {
            Ending::Success => json!({ "metadata": {}, "status": "Success" }),
            Ending::Code(code) => json!({
                "metadata": {}, "status": "Failure", "message": message, "reason": "NonZeroExitCode",
                "details": { "causes": [{ "reason": "ExitCode", "message": code.to_string() }] },
            }),
            Ending::Failed(cause) => json!({
                "metadata": {}, "status": "Failure", "message": message, "reason": "InternalError",
                "details": { "causes": [{ "message": cause }] }, "code": 500,
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages() {
        let failed = Ending::Failed("no \"x\"".to_owned());
        let table = [
            (&Ending::Success, true, Some(r#"{"metadata":{},"status":"Success"}"#)),
            (&Ending::Success, false, None),
            (
                &Ending::Code(3),
                true,
                Some(
                    r#"{"details":{"causes":[{"message":"3","reason":"ExitCode"}]},"message":"command terminated with exit code 3","metadata":{},"reason":"NonZeroExitCode","status":"Failure"}"#,
                ),
            ),
            (&Ending::Code(3), false, Some("command terminated with exit code 3")),
            (
                &failed,
                true,
                Some(
                    r#"{"code":500,"details":{"causes":[{"message":"no \"x\""}]},"message":"no \"x\"","metadata":{},"reason":"InternalError","status":"Failure"}"#,
                ),
            ),
            (&failed, false, Some("no \"x\"")),
        ];
        for (ending, json, expected) in table {
            let found = ending.message(json);
            match expected {
                Some(expected) if json => {
                    let found: serde_json::Value = serde_json::from_slice(&found.unwrap()).unwrap();
                    let expected: serde_json::Value = serde_json::from_str(expected).unwrap();
                    assert_eq!(found, expected, "{ending:?}");
                }
                expected => assert_eq!(found.as_deref(), expected.map(str::as_bytes), "{ending:?}"),
            }
        }
    }
}
