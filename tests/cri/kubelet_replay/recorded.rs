//! The recording, and its messages by the description of the CRI.

use std::path::Path;
use std::sync::LazyLock;

use prost_reflect::{DescriptorPool, DeserializeOptions, DynamicMessage, MessageDescriptor, SerializeOptions};
use serde::Deserialize;
use serde_json::Value;

/// One line.
#[derive(Deserialize)]
pub(super) struct Call {
    /// The method, or `METHOD#msg` for a message of its stream.
    #[serde(rename = "m")]
    pub(super) method: String,
    /// What was asked.
    #[serde(rename = "req", default)]
    pub(super) request: Value,
    /// What was answered.
    #[serde(rename = "resp", default)]
    pub(super) response: Value,
    /// The error there was instead.
    #[serde(rename = "err", default)]
    pub(super) error: Option<String>,
}

/// Every line, in order.
pub(super) fn recorded() -> Vec<Call> {
    // In ours the names of signals have a prefix, as those of the other enumerations do.
    let text =
        include_str!("../data/kubelet-calls.jsonl").replace(r#""stop_signal":"SIG"#, r#""stop_signal":"SIGNAL_SIG"#);
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// The CRI, as proto/cri describes it.
static POOL: LazyLock<DescriptorPool> = LazyLock::new(|| {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../proto/cri");
    let files = protox::compile(["api.proto"], [dir]).expect("the CRI's description compiles");
    DescriptorPool::from_file_descriptor_set(files).expect("it is whole")
});

/// The messages of a method: request and response.
pub(super) fn messages(method: &str) -> (MessageDescriptor, MessageDescriptor) {
    let name = method.trim_end_matches("#msg");
    let mut methods = POOL
        .services()
        .flat_map(|service| service.methods().collect::<Vec<_>>());
    let found = methods.find(|known| known.name() == name);
    let found = found.unwrap_or_else(|| panic!("no such method: {method}"));
    (found.input(), found.output())
}

/// A message from protobuf's JSON.
///
/// # Panics
/// On a field or a name that ours does not have.
#[track_caller]
pub(super) fn from_json(kind: MessageDescriptor, json: &Value) -> DynamicMessage {
    let options = DeserializeOptions::new().deny_unknown_fields(true);
    let name = kind.full_name().to_owned();
    let message = DynamicMessage::deserialize_with_options(kind, json, &options);
    message.unwrap_or_else(|error| panic!("{name}: {error}: {json}"))
}

/// A message as the recording has them: fields by the names of the description, and only those that are set.
pub(super) fn to_json(message: &DynamicMessage) -> Value {
    let options = SerializeOptions::new().use_proto_field_name(true);
    message
        .serialize_with_options(serde_json::value::Serializer, &options)
        .expect("a message is JSON")
}

impl Call {
    /// Decodes what there is of it, and finds it whole.
    #[track_caller]
    pub(super) fn decode(&self) {
        let (request, response) = messages(&self.method);
        for (kind, json) in [(request, &self.request), (response, &self.response)] {
            if !json.is_null() {
                assert_eq!(&to_json(&from_json(kind, json)), json, "{}", self.method);
            }
        }
        assert_eq!(
            self.response.is_null(),
            self.error.is_some() && self.method == "RunPodSandbox"
        );
    }
}
