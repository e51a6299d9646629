//! `exec --cgroup`: a cgroup below the container's that a process goes to.
//!
//! ```text
//!   PATH                  below the container's cgroup of every hierarchy; given once
//!   CONTROLLER,...:PATH   below that of these v1 controllers alone; may be given again for others
//! ```
//! A path never leads out of the container's cgroup: `/` and a leading slash mean that cgroup, as with runc, and `..` is
//! refused. The cgroup must exist; nothing is made.

use std::collections::BTreeMap;
use std::path::{Component, Path, PathBuf};

use anyhow::{Result, bail, ensure};

use super::{Cgroup, CgroupPaths, layout};

impl Cgroup {
    /// The cgroups that these values of the option name, those of hierarchies that none of them names being the
    /// container's own.
    pub fn below(&self, asked: &[String]) -> Result<Cgroup> {
        let mut paths = self.paths.clone();
        for (controllers, below) in parse(asked)? {
            match &mut paths {
                CgroupPaths::V1(all) if controllers.is_empty() => all.values_mut().for_each(|path| path.push(&below)),
                CgroupPaths::V1(all) => descend(all, &controllers, &below)?,
                CgroupPaths::V2(path) => {
                    ensure!(
                        controllers.is_empty(),
                        "--cgroup {}:{}: cgroup v2 has one hierarchy for all controllers",
                        controllers.join(","),
                        below.display()
                    );
                    path.push(&below);
                }
            }
        }
        for (_, path) in paths.iter() {
            ensure!(path.is_dir(), "--cgroup: {} does not exist", path.display());
        }
        Ok(Cgroup::open(paths))
    }
}

fn descend(all: &mut BTreeMap<String, PathBuf>, controllers: &[&str], below: &Path) -> Result<()> {
    let has = |hierarchy: &str, controller: &str| {
        layout::has_controller(hierarchy, controller) || hierarchy.strip_prefix("name=") == Some(controller)
    };
    for controller in controllers {
        ensure!(
            all.keys().any(|hierarchy| has(hierarchy, controller)),
            "--cgroup {controller}: the container has no cgroup of this controller"
        );
    }
    for (hierarchy, path) in all {
        if controllers.iter().any(|controller| has(hierarchy, controller)) {
            path.push(below);
        }
    }
    Ok(())
}

/// Controllers, none for all, and a path that is relative and goes down.
type Asked<'a> = (Vec<&'a str>, PathBuf);

fn parse(asked: &[String]) -> Result<Vec<Asked<'_>>> {
    let mut parsed: Vec<Asked<'_>> = Vec::new();
    for text in asked {
        let (controllers, path) = text.split_once(':').unwrap_or(("", text));
        let names: Vec<&str> = controllers.split(',').filter(|name| !name.is_empty()).collect();
        ensure!(
            !path.contains(':') && names.is_empty() != text.contains(':'),
            "--cgroup {text:?}: must be PATH or CONTROLLER,...:PATH"
        );
        ensure!(
            !names.is_empty() || asked.len() == 1,
            "--cgroup {text:?}: given more than once, each must name its controllers"
        );
        for name in &names {
            let twice = parsed.iter().any(|(others, _)| others.contains(name));
            ensure!(!twice, "--cgroup {text:?}: {name} is named twice");
        }
        let mut below = PathBuf::new();
        for component in Path::new(path).components() {
            match component {
                Component::Normal(name) => below.push(name),
                Component::RootDir | Component::CurDir => {}
                _ => bail!("--cgroup {text:?}: must not lead out of the container's cgroup"),
            }
        }
        parsed.push((names, below));
    }
    Ok(parsed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values() {
        for (asked, expected) in [
            (&["a/b"][..], vec![(vec![], "a/b")]),
            (&["/"], vec![(vec![], "")]),
            (&["/a//./b/"], vec![(vec![], "a/b")]),
            (&["cpu,memory:a"], vec![(vec!["cpu", "memory"], "a")]),
            (&["cpu:a", "pids:/b"], vec![(vec!["cpu"], "a"), (vec!["pids"], "b")]),
        ] {
            let asked: Vec<String> = asked.iter().map(|&text| text.to_owned()).collect();
            let expected: Vec<(Vec<&str>, PathBuf)> =
                expected.into_iter().map(|(names, path)| (names, path.into())).collect();
            assert_eq!(parse(&asked).unwrap(), expected, "{asked:?}");
        }
        for asked in [
            &["../x"][..],
            &["a/../../b"],
            &["/.."],
            &["cpu:../x"],
            &[":a"],
            &["cpu:a:b"],
            &["a", "b"],
            &["cpu:a", "cpu:b"],
            &["cpu:a", "b"],
        ] {
            let asked: Vec<String> = asked.iter().map(|&text| text.to_owned()).collect();
            assert!(parse(&asked).is_err(), "{asked:?}");
        }
    }

    #[test]
    fn only_the_hierarchies_that_are_named_change() {
        let mut all: BTreeMap<String, PathBuf> = ["cpu,cpuacct", "pids", "name=systemd"]
            .map(|name| (name.to_owned(), Path::new("/m").join(name).join("c")))
            .into();
        descend(&mut all, &["cpu", "cpuacct", "systemd"], Path::new("x/y")).unwrap();
        assert_eq!(all["cpu,cpuacct"], Path::new("/m/cpu,cpuacct/c/x/y"));
        assert_eq!(all["pids"], Path::new("/m/pids/c"));
        assert_eq!(all["name=systemd"], Path::new("/m/name=systemd/c/x/y"));
        assert!(descend(&mut all, &["nonsense"], Path::new("x")).is_err());
    }
}
