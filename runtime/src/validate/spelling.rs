//! Where the types spell a value otherwise than the specification: the text is changed before they see it.

use serde_json::Value;

/// Flags of `process.scheduler`, as the specification and as the types have them.
const SCHEDULER_FLAGS: [(&str, &str); 2] = [
    ("SCHED_FLAG_RESET_ON_FORK", "SCHED_RESET_ON_FORK"),
    ("SCHED_FLAG_DL_OVERRUN", "SCHED_FLAG_D_L_OVERRUN"),
];

/// Fields of `linux.intelRdt`, likewise.
const RDT_FIELDS: [(&str, &str); 2] = [("enableCMT", "enableCmt"), ("enableMBM", "enableMbm")];

/// Changes a document whose root is at `at` of a specification: `process`, or nothing for the whole of it.
pub(super) fn settle(document: &mut Value, at: &str) {
    if at.is_empty() {
        settle_rdt(document);
    }
    let process = match at {
        "process" => Some(document),
        _ => document.get_mut("process"),
    };
    let Some(process) = process else { return };
    let flags = process.pointer_mut("/scheduler/flags").and_then(Value::as_array_mut);
    for flag in flags.into_iter().flatten() {
        if let Some((_, typed)) = SCHEDULER_FLAGS.iter().find(|(name, _)| flag == name) {
            *flag = Value::from(*typed);
        }
    }
    // "If omitted or empty" (config.md, execCPUAffinity): the types take no empty list.
    if let Some(affinity) = process.get_mut("execCPUAffinity").and_then(Value::as_object_mut) {
        affinity.retain(|_, list| list != "");
    }
}

fn settle_rdt(document: &mut Value) {
    let rdt = document.pointer_mut("/linux/intelRdt").and_then(Value::as_object_mut);
    let Some(rdt) = rdt else { return };
    for (name, typed) in RDT_FIELDS {
        if let Some(value) = rdt.remove(name) {
            rdt.insert(typed.to_owned(), value);
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::{parse_process, tests::check};

    #[test]
    fn every_flag_of_the_scheduler() {
        for flag in [
            "SCHED_FLAG_RESET_ON_FORK",
            "SCHED_FLAG_RECLAIM",
            "SCHED_FLAG_DL_OVERRUN",
            "SCHED_FLAG_KEEP_POLICY",
            "SCHED_FLAG_KEEP_PARAMS",
            "SCHED_FLAG_UTIL_CLAMP_MIN",
            "SCHED_FLAG_UTIL_CLAMP_MAX",
        ] {
            let scheduler = json!({"policy": "SCHED_OTHER", "flags": [flag]});
            assert_eq!(
                check(&[("/process/scheduler", scheduler.clone())]),
                Ok(vec![]),
                "{flag}"
            );
            let process = json!({"cwd": "/", "user": {"uid": 0, "gid": 0}, "scheduler": scheduler});
            assert!(parse_process(process.to_string().as_bytes()).is_ok(), "{flag}");
        }
    }

    #[test]
    fn the_older_fields_for_monitoring() {
        for name in ["enableCMT", "enableMBM", "enableMonitoring"] {
            let mut document = super::super::tests::minimal();
            document["linux"]["intelRdt"] = json!({ name: true });
            let spec = super::super::parse_spec(document.to_string().as_bytes()).unwrap().value;
            let rdt = spec.linux().as_ref().unwrap().intel_rdt().as_ref().unwrap();
            assert!(crate::rdt::monitors(rdt), "{name}");
        }
    }

    #[test]
    fn empty_lists_of_cpus() {
        let affinity = json!({"initial": "", "final": "0"});
        assert_eq!(check(&[("/process/execCPUAffinity", affinity)]), Ok(vec![]));
    }
}
