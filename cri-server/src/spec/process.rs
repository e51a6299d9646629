//! What a container runs: arguments, environment, working directory. Pure.

use std::collections::HashMap;
use std::path::PathBuf;

use corten_proto::cri::{ContainerConfig, KeyValue};
use oci_spec::image::ImageConfiguration;

use super::SpecError;

/// The PATH of an image that has none; Docker's.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The arguments, by Docker's rule: a command replaces ENTRYPOINT and drops CMD, args replace CMD alone.
pub(super) fn args(config: &ContainerConfig, image: &ImageConfiguration) -> Result<Vec<String>, SpecError> {
    let defaults = image.config().as_ref();
    let entrypoint = defaults.and_then(|it| it.entrypoint().clone()).unwrap_or_default();
    let cmd = defaults.and_then(|it| it.cmd().clone()).unwrap_or_default();
    let (command, args) = match (config.command.is_empty(), config.args.is_empty()) {
        (true, true) => (entrypoint, cmd),
        (true, false) => (entrypoint, config.args.clone()),
        (false, _) => (config.command.clone(), config.args.clone()),
    };
    let all: Vec<String> = command.into_iter().chain(args).collect();
    match all.first() {
        Some(program) if !program.is_empty() => Ok(all),
        _ => {
            let rule = "neither the request nor the image names a program";
            Err(SpecError::invalid("command", "", rule))
        }
    }
}

/// Refuses arguments and variables that no process can be started with.
pub(super) fn check(config: &ContainerConfig) -> Result<(), SpecError> {
    for (field, list) in [("command", &config.command), ("args", &config.args)] {
        for (index, value) in list.iter().enumerate() {
            if value.contains('\0') {
                let field = format!("{field}[{index}]");
                return Err(SpecError::invalid(field, value, "must hold no NUL"));
            }
        }
    }
    if !config.working_dir.is_empty() {
        super::absolute("working_dir", &config.working_dir)?;
    }
    let mut variables = config.envs.iter().enumerate();
    variables.try_for_each(|(index, variable)| self::variable(index, variable).map(|_| ()))
}

/// The environment: PATH, HOSTNAME and TERM, then the image's, then the request's. Of one name the last value counts.
pub(super) fn env(
    config: &ContainerConfig,
    image: &ImageConfiguration,
    hostname: &str,
) -> Result<Vec<String>, SpecError> {
    let mut env = Environment::default();
    env.set(format!("PATH={DEFAULT_PATH}"));
    if !hostname.is_empty() {
        env.set(format!("HOSTNAME={hostname}"));
    }
    if config.tty {
        env.set("TERM=xterm".to_owned());
    }
    let defaults = image
        .config()
        .as_ref()
        .and_then(|it| it.env().clone())
        .unwrap_or_default();
    for variable in defaults {
        if !is_assignment(&variable) {
            let rule = "must be NAME=VALUE without NUL";
            return Err(SpecError::invalid("image config.Env", variable, rule));
        }
        env.set(variable);
    }
    for (index, variable) in config.envs.iter().enumerate() {
        env.set(self::variable(index, variable)?);
    }
    Ok(env.variables)
}

/// Variables in the order in which their names came, and where each is: a request may hold tens of thousands.
#[derive(Default)]
struct Environment {
    variables: Vec<String>,
    places: HashMap<String, usize>,
}

impl Environment {
    /// Replaces the variable of this name where it stands, or appends it.
    fn set(&mut self, variable: String) {
        let name = variable.split_once('=').map_or("", |(name, _)| name);
        match self.places.get(name) {
            Some(&place) => self.variables[place] = variable,
            None => {
                self.places.insert(name.to_owned(), self.variables.len());
                self.variables.push(variable);
            }
        }
    }
}

fn is_assignment(text: &str) -> bool {
    matches!(text.split_once('='), Some((name, _)) if !name.is_empty()) && !text.contains('\0')
}

/// A variable of the request. The CRI's values are bytes; an OCI spec is JSON and holds text alone.
fn variable(index: usize, variable: &KeyValue) -> Result<String, SpecError> {
    let name = &variable.key;
    let Ok(value) = std::str::from_utf8(&variable.value) else {
        let value = String::from_utf8_lossy(&variable.value);
        let rule = "values that are not UTF-8 are not supported yet";
        return Err(SpecError::unimplemented(format!("envs[{index}] {name}"), value, rule));
    };
    if name.is_empty() || name.contains(['=', '\0']) || value.contains('\0') {
        let rule = "needs a name without =, and no NUL anywhere";
        return Err(SpecError::invalid(format!("envs[{index}]"), name, rule));
    }
    Ok(format!("{name}={value}"))
}

/// The working directory: the request's, the image's, or the root. An image's relative one counts from the root, as
/// Docker has it.
pub(super) fn cwd(config: &ContainerConfig, image: &ImageConfiguration) -> Result<PathBuf, SpecError> {
    if !config.working_dir.is_empty() {
        return super::absolute("working_dir", &config.working_dir);
    }
    let image = image
        .config()
        .as_ref()
        .and_then(|it| it.working_dir().clone())
        .unwrap_or_default();
    if image.contains('\0') {
        return Err(SpecError::invalid("image config.WorkingDir", image, "must hold no NUL"));
    }
    Ok(super::clean(&image))
}

#[cfg(test)]
pub(super) mod tests {
    use std::path::Path;

    use super::*;

    /// An image with these defaults; the JSON form is the one that registries hold.
    pub(in crate::spec) fn image(config: &serde_json::Value) -> ImageConfiguration {
        serde_json::from_value(serde_json::json!({
            "architecture": "amd64",
            "os": "linux",
            "config": config,
            "rootfs": { "type": "layers", "diff_ids": [] },
        }))
        .unwrap()
    }

    fn strings(list: &[&str]) -> Vec<String> {
        list.iter().map(|&text| text.to_owned()).collect()
    }

    #[test]
    fn arguments_follow_dockers_rule() {
        let image = image(&serde_json::json!({ "Entrypoint": ["e", "1"], "Cmd": ["c"] }));
        for (command, list, expected) in [
            (&[][..], &[][..], &["e", "1", "c"][..]),
            (&[], &["a"], &["e", "1", "a"]),
            (&["x"], &[], &["x"]),
            (&["x"], &["a"], &["x", "a"]),
        ] {
            let config = ContainerConfig {
                command: strings(command),
                args: strings(list),
                ..Default::default()
            };
            assert_eq!(args(&config, &image).unwrap(), expected, "{command:?} {list:?}");
        }
        let nothing = super::tests::image(&serde_json::json!({}));
        assert!(args(&ContainerConfig::default(), &nothing).is_err());
    }

    #[test]
    fn the_last_value_of_a_variable_counts() {
        let image = image(&serde_json::json!({ "Env": ["PATH=/bin", "A=1", "EMPTY="] }));
        let envs = [("A", "2"), ("B", "x=y"), ("B", "z")];
        let config = ContainerConfig {
            envs: envs
                .iter()
                .map(|(key, value)| KeyValue {
                    key: (*key).into(),
                    value: (*value).into(),
                })
                .collect(),
            tty: true,
            ..Default::default()
        };
        let env = env(&config, &image, "pod-1").unwrap();
        assert_eq!(
            env,
            ["PATH=/bin", "HOSTNAME=pod-1", "TERM=xterm", "A=2", "EMPTY=", "B=z"]
        );
    }

    #[test]
    fn what_no_process_can_have_is_refused() {
        let with = |key: &str, value: &[u8]| ContainerConfig {
            envs: vec![KeyValue {
                key: key.into(),
                value: value.to_vec(),
            }],
            ..Default::default()
        };
        for config in [
            with("", b"x"),
            with("A=B", b"x"),
            with("A", b"\0"),
            with("A", b"\xff"),
            ContainerConfig {
                args: strings(&["a\0"]),
                ..Default::default()
            },
            ContainerConfig {
                working_dir: "rel".into(),
                ..Default::default()
            },
        ] {
            assert!(check(&config).is_err(), "{config:?}");
        }
        let image = image(&serde_json::json!({ "Env": ["NOVALUE"] }));
        assert!(env(&ContainerConfig::default(), &image, "").is_err());
    }

    #[test]
    fn working_directories() {
        let cwd = |request: &str, of_image: &str| {
            let config = ContainerConfig {
                working_dir: request.into(),
                ..Default::default()
            };
            super::cwd(&config, &image(&serde_json::json!({ "WorkingDir": of_image }))).unwrap()
        };
        assert_eq!(cwd("", ""), Path::new("/"));
        assert_eq!(cwd("", "app"), Path::new("/app"));
        assert_eq!(cwd("/w/../x", "/app"), Path::new("/x"));
    }
}
