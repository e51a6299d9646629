//! `corten update`: changing the limits of a container.
//!
//! The change is a part of `linux.resources`, as a document (`-r`) or made of flags. It is merged into the kept
//! specification, so that whoever reads that later finds what holds; written to the cgroup are the limits that were named
//! and those bound to them (quota and period, memory and swap). Device rules in a document are left out, as runc does:
//! callers send the whole of what they have.
//!
//! Schemas for Intel RDT are no part of it: flags alone name them ([`rdt`]).
//!
//! In a document, as in a specification, 0 and an empty text stand for "not set".

use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, ensure};
use oci_spec::runtime::{LinuxIntelRdt, LinuxResources};
use serde_json::{Map, Value, json};

use crate::bundle::read_document;
use crate::cgroup::Cgroup;
use crate::error::Error;
use crate::state::{Directory, State, Status};
use crate::{cli, log, rdt};

/// The longest document that is read from standard input, in bytes.
const MAX_DOCUMENT: u64 = 1 << 20;

/// Changes the limits that the flags or their document name.
pub(super) fn update(root: &Path, flags: &cli::Update) -> Result<()> {
    let directory = Directory::open(root, &flags.id)?;
    directory.lock()?;
    let mut state = directory.state()?;
    if matches!(directory.status(&state), Status::Stopped | Status::Creating) {
        return Err(Error::NotRunning.into());
    }
    let mut change = match &flags.resources {
        Some(path) => document(path).with_context(|| format!("--resources {}", path.display()))?,
        None => from_flags(flags),
    };
    let schemas = Schemas::named(flags)?;
    let mut spec: Value = serde_json::from_slice(&directory.spec_text()?).context("the kept specification")?;
    let before = spec["linux"]["resources"].take();
    spec["linux"]["resources"] = merged(&before, &mut change);

    let cgroup = Cgroup::open(state.cgroup.clone()).with_scope(state.scope.clone());
    let set = || {
        schemas.map_or(Ok(()), |schemas| {
            schemas.set(&directory, &mut state, &mut spec, &cgroup)
        })
    };
    if let Err(error) = cgroup.update(&typed(change)?).and_then(|()| set()) {
        // Some of it may have been written.
        let restored = typed(without_devices(before)).and_then(|before| cgroup.update(&before));
        log::best_effort("restore the limits", restored);
        return Err(error);
    }
    directory.replace_spec(spec.to_string().as_bytes())
}

/// The resources of a document, `-` for standard input.
fn document(path: &Path) -> Result<Value> {
    let text = if path == Path::new("-") {
        let mut text = Vec::new();
        let read = std::io::stdin().lock().take(MAX_DOCUMENT + 1).read_to_end(&mut text);
        let length = read.context("read standard input")?;
        ensure!(length as u64 <= MAX_DOCUMENT, "more than {MAX_DOCUMENT} bytes");
        text
    } else {
        read_document(path)?
    };
    let document: Value = serde_json::from_slice(&text).map_err(|error| anyhow!("not valid JSON: {error}"))?;
    ensure!(document.is_object(), "the document: must be an object");
    let mut document = without_devices(document);
    for (section, fields) in document.as_object_mut().into_iter().flatten() {
        // In the lists, and in the fields named here, 0 is a value.
        let unset = |name: &str, value: &Value| {
            value.is_null()
                || value == ""
                || (value.as_f64() == Some(0.0) && !["idle", "burst", "swappiness"].contains(&name))
        };
        if ["cpu", "memory", "pids", "blockIO"].contains(&&**section)
            && let Some(fields) = fields.as_object_mut()
        {
            fields.retain(|name, value| !unset(name, value));
        }
    }
    Ok(document)
}

fn without_devices(mut resources: Value) -> Value {
    if let Some(fields) = resources.as_object_mut() {
        fields.remove("devices");
    }
    resources
}

/// The resources that the flags name.
fn from_flags(flags: &cli::Update) -> Value {
    let sections = [
        ("blockIO", json!({ "weight": flags.blkio_weight })),
        (
            "cpu",
            json!({
                "period": flags.cpu_period, "quota": flags.cpu_quota, "burst": flags.cpu_burst,
                "shares": flags.cpu_share, "realtimePeriod": flags.cpu_rt_period,
                "realtimeRuntime": flags.cpu_rt_runtime, "cpus": flags.cpuset_cpus, "mems": flags.cpuset_mems,
                "idle": flags.cpu_idle,
            }),
        ),
        (
            "memory",
            json!({
                "limit": flags.memory, "reservation": flags.memory_reservation, "swap": flags.memory_swap,
                "kernel": flags.kernel_memory, "kernelTCP": flags.kernel_memory_tcp,
            }),
        ),
        ("pids", json!({ "limit": flags.pids_limit })),
    ];
    let mut all = Map::new();
    for (name, mut section) in sections {
        let fields = section.as_object_mut().into_iter().flat_map(std::mem::take);
        let named: Map<String, Value> = fields.filter(|(_, value)| !value.is_null()).collect();
        if !named.is_empty() {
            all.insert(name.to_owned(), named.into());
        }
    }
    all.into()
}

/// New schemas of the container's resctrl group, and where that filesystem is.
struct Schemas {
    rdt: LinuxIntelRdt,
    root: PathBuf,
}

impl Schemas {
    /// Those that the flags name; they count beside a document too, which has no place for them.
    fn named(flags: &cli::Update) -> Result<Option<Schemas>> {
        let named = |text: &Option<String>| text.clone().filter(|text| !text.is_empty());
        let (cache, bandwidth) = (named(&flags.l3_cache_schema), named(&flags.mem_bw_schema));
        let first = match (&cache, &bandwidth) {
            (Some(schema), _) => format!("--l3-cache-schema {schema}"),
            (None, Some(schema)) => format!("--mem-bw-schema {schema}"),
            (None, None) => return Ok(None),
        };
        let root = rdt::mounted().context(first)?;
        let mut rdt = LinuxIntelRdt::default();
        rdt.set_l3_cache_schema(cache).set_mem_bw_schema(bandwidth);
        Ok(Some(Schemas { rdt, root }))
    }

    /// Sets them in the group that the container has, or in one that is made for it: then all its processes go there, not
    /// init alone as with runc.
    fn set(mut self, directory: &Directory, state: &mut State, spec: &mut Value, cgroup: &Cgroup) -> Result<()> {
        let kept = &mut spec["linux"]["intelRdt"];
        if kept.is_null() {
            self.make_group(directory, state, cgroup)?;
        } else {
            self.rdt.set_clos_id(kept["closID"].as_str().map(str::to_owned));
            rdt::update(&self.rdt, state.id.as_str(), &self.root)?;
        }
        merge(kept, &serde_json::to_value(&self.rdt).context("encode the schemas")?);
        Ok(())
    }

    fn make_group(&self, directory: &Directory, state: &mut State, cgroup: &Cgroup) -> Result<()> {
        let plan = rdt::Plan::new(&self.rdt, state.id.as_str(), &self.root)?;
        // Before the group: delete must know of it.
        state.rdt = Some(plan.groups().clone());
        directory.write(state)?;
        let made = plan.apply(state.pid).and_then(|()| plan.take(|| cgroup.processes()));
        if made.is_err() {
            log::best_effort("remove the resctrl group", rdt::remove(plan.groups()));
        }
        made
    }
}

/// The resources with this change in them. Completes the change by what is bound to the limits in it.
fn merged(before: &Value, change: &mut Value) -> Value {
    let memory = &mut change["memory"];
    // Without a limit of memory there is none with swap either.
    if memory["limit"].as_i64().is_some_and(|limit| limit < 0) && memory["swap"].is_null() {
        memory["swap"] = json!(-1);
    }
    let mut all = before.clone();
    merge(&mut all, change);
    for (section, bound) in [("cpu", ["quota", "period"]), ("memory", ["limit", "swap"])] {
        if bound.iter().any(|name| !change[section][name].is_null()) {
            for name in bound {
                change[section][name] = all[section][name].clone();
            }
        }
    }
    all
}

/// Sets every field of `change`; what is null there, and all it does not name, stays.
fn merge(into: &mut Value, change: &Value) {
    match change {
        Value::Null => {}
        Value::Object(fields) => {
            if !into.is_object() {
                *into = json!({});
            }
            for (name, value) in fields.iter().filter(|(_, value)| !value.is_null()) {
                merge(&mut into[name], value);
            }
        }
        value => *into = value.clone(),
    }
}

fn typed(resources: Value) -> Result<LinuxResources> {
    if resources.is_null() {
        return Ok(LinuxResources::default());
    }
    let parsed = serde_path_to_error::deserialize(resources);
    parsed.map_err(|error| anyhow!("linux.resources.{}: {}", error.path(), error.inner()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_and_what_it_leaves() {
        for (before, change, after, written) in [
            (
                json!({"cpu": {"quota": 5, "period": 9, "shares": 7}, "devices": [1]}),
                json!({"cpu": {"quota": 6}}),
                json!({"cpu": {"quota": 6, "period": 9, "shares": 7}, "devices": [1]}),
                json!({"cpu": {"quota": 6, "period": 9}}),
            ),
            (
                json!({"memory": {"limit": 5, "swap": 9}}),
                json!({"memory": {"limit": 7}, "pids": {"limit": 3}}),
                json!({"memory": {"limit": 7, "swap": 9}, "pids": {"limit": 3}}),
                json!({"memory": {"limit": 7, "swap": 9}, "pids": {"limit": 3}}),
            ),
            (
                json!({"memory": {"limit": 5, "swap": 9}}),
                json!({"memory": {"limit": -1}}),
                json!({"memory": {"limit": -1, "swap": -1}}),
                json!({"memory": {"limit": -1, "swap": -1}}),
            ),
            (
                Value::Null,
                json!({"cpu": {"shares": 3}}),
                json!({"cpu": {"shares": 3}}),
                json!({"cpu": {"shares": 3}}),
            ),
            (
                json!({"hugepageLimits": [1], "unified": {"a.b": "1", "c.d": "2"}}),
                json!({"hugepageLimits": [2, 3], "unified": {"a.b": "5"}}),
                json!({"hugepageLimits": [2, 3], "unified": {"a.b": "5", "c.d": "2"}}),
                json!({"hugepageLimits": [2, 3], "unified": {"a.b": "5"}}),
            ),
        ] {
            let mut completed = change.clone();
            assert_eq!(merged(&before, &mut completed), after, "{change}");
            let written: LinuxResources = serde_json::from_value(written).unwrap_or_else(|_| typed(json!({})).unwrap());
            if let Ok(completed) = typed(completed) {
                assert_eq!(completed, written, "{change}");
            }
        }
    }

    #[test]
    fn what_has_no_type_says_where() {
        let error = typed(json!({"cpu": {"shares": "x"}})).unwrap_err().to_string();
        assert!(error.starts_with("linux.resources.cpu.shares: "), "{error}");
    }
}
