//! Lines and what they are understood as.

use super::definition::Kind;
use super::*;

fn parse(line: &str) -> Result<(Globals, Command)> {
    parse_args(line.split_whitespace())
}

#[test]
fn globals_come_before_the_command() {
    let line =
        "--root /r --log /l --log-format json --debug --systemd-cgroup --rootless=false --criu /c delete --force a";
    let (globals, command) = parse(line).unwrap();
    let expected = Globals {
        root: "/r".into(),
        log: Some("/l".into()),
        log_format: Format::Json,
        debug: true,
        systemd_cgroup: true,
        rootless: Rootless::False,
        criu: Some("/c".into()),
    };
    assert_eq!(globals, expected);
    let id: ContainerId = "a".parse().unwrap();
    assert_eq!(command, Command::Delete(Delete { id, force: true }));
    let (globals, _) = parse("state a").unwrap();
    let root = crate::rootless::default_root();
    assert_eq!((globals.root, globals.rootless), (root, Rootless::Auto));
}

#[test]
fn what_follows_the_id_of_an_exec_is_the_programs() {
    for line in [
        "exec -u 1:2 -e A=B c ls -l --root /x",
        "exec -u 1:2 -e A=B -- c ls -l --root /x",
    ] {
        let Command::Exec(exec) = parse(line).unwrap().1 else {
            panic!("{line}")
        };
        assert_eq!(exec.args, ["ls", "-l", "--root", "/x"]);
        assert_eq!((exec.user, exec.env), (Some((1, Some(2))), vec!["A=B".to_owned()]));
    }
    let Command::Exec(exec) = parse("exec c -- ls -l").unwrap().1 else {
        panic!()
    };
    assert_eq!(exec.args, ["ls", "-l"]);
    let Command::Ps(ps) = parse("ps -f json c -o pid --help").unwrap().1 else {
        panic!()
    };
    assert_eq!((ps.json, ps.options.join(" ").as_str()), (true, "-o pid --help"));
}

#[test]
fn signals() {
    for (line, signal, all) in [
        ("kill a", 15, false),
        ("kill -a a KILL", 9, true),
        ("kill --all a 10", 10, true),
    ] {
        let Command::Kill(kill) = parse(line).unwrap().1 else {
            panic!("{line}")
        };
        assert_eq!((kill.signal, kill.all), (signal, all), "{line}");
    }
}

#[test]
fn the_last_of_an_option_counts_and_a_switch_may_be_off() {
    for (line, detach, bundle) in [
        ("run -d -b x --bundle y a", true, "y"),
        ("run -d --detach=false --bundle=z a", false, "z"),
        ("run --detach=T -bz a", true, "z"),
    ] {
        let Command::Run(run) = parse(line).unwrap().1 else {
            panic!("{line}")
        };
        assert_eq!((run.detach, run.create.bundle), (detach, bundle.into()), "{line}");
    }
}

#[test]
fn help_is_the_commands_own() {
    assert_eq!(parse("--help").unwrap().1, Command::Help(&PROGRAM));
    assert_eq!(parse("help").unwrap().1, Command::Help(&PROGRAM));
    for definition in &COMMANDS {
        for line in [
            format!("{} --help", definition.name),
            format!("help {}", definition.name),
            format!("{} a -h", definition.name),
        ] {
            // What follows the id of these two is not theirs.
            if line.ends_with("-h") && definition.ends_options {
                continue;
            }
            assert_eq!(parse(&line).unwrap().1, Command::Help(definition), "{line}");
        }
        let text = help(definition);
        let flags = definition.flags().map(|flag| format!("--{}", flag.long));
        for word in flags.chain([definition.about.to_owned()]) {
            assert!(text.contains(&word), "{word}: {text}");
        }
        assert!(text.lines().all(|line| line.chars().count() <= 160), "{text}");
        assert!(help(&PROGRAM).contains(&format!("\n  {} ", definition.name)));
    }
}

#[test]
fn what_is_wrong_is_named() {
    for (line, text) in [
        ("run --frobnicate a", "--frobnicate"),
        ("run -x a", "-x"),
        ("frobnicate", "frobnicate: no such command"),
        ("help frobnicate", "frobnicate: no such command"),
        ("create a b", "\"b\""),
        ("create", "missing the container's id"),
        ("create ../a", "container id"),
        ("create --bundle", "--bundle"),
        ("delete --force=maybe a", "--force=maybe"),
        ("exec a", "missing a program"),
        ("exec -p f a ls", "both"),
        ("exec -u root a ls", "--user \"root\""),
        ("exec -g wheel a ls", "wheel"),
        ("kill a NOPE", "NOPE"),
        ("create --preserve-fds 900 a", "not open"),
        ("list --format xml", "table or json"),
        ("--rootless never state a", "auto or true or false"),
        ("--log-format xml state a", "text or json"),
        ("update --memory 1z a", "--memory \"1z\": the unit"),
        ("update --pids-limit many a", "--pids-limit \"many\""),
        ("events --interval 0s a", "--interval \"0s\": must be greater than zero"),
        ("checkpoint --empty-ns pid a", "--empty-ns"),
        ("", "no command"),
    ] {
        let error = format!("{:#}", parse(line).unwrap_err());
        assert!(error.contains(text), "{line}: {error}");
    }
}

/// What a command says to a value of each kind.
fn sample(flag: &Flag) -> &'static str {
    match flag.value.map(|value| (value.kind, value.name)) {
        None => "",
        Some((Kind::Words(words), _)) => words[words.len() - 1],
        Some((_, "DURATION")) => "7s",
        Some((_, "NAME=VALUE")) => "A=B",
        Some((_, "PATH" | "FILE" | "DIR" | "SOCKET")) => "/x",
        Some(_) => "1",
    }
}

/// An option that is defined and never looked at would be ignored without a word.
#[test]
fn every_option_changes_what_is_asked_for() {
    for definition in &COMMANDS {
        let name = definition.name;
        let operands = match name {
            "exec" => "c p",
            _ if definition
                .operands
                .first()
                .is_some_and(|first| first.count == Count::One) =>
            {
                "c"
            }
            _ => "",
        };
        let plain = format!("{:?}", parse(&format!("{name} {operands}")).unwrap().1);
        for flag in definition.flags() {
            let mut names = vec![format!("--{}", flag.long)];
            names.extend(flag.short.map(|short| format!("-{short}")));
            for given in names {
                // Excludes the program of the line without it.
                let operands = if flag.long == "process" { "c" } else { operands };
                let line = format!("{name} {given} {} {operands}", sample(flag));
                let with = parse(&line).map(|(_, command)| format!("{command:?}"));
                match flag.long {
                    "no-subreaper" => assert_eq!(with.unwrap(), plain, "{line}"),
                    // Descriptor 3 may be open here or not.
                    "preserve-fds" => assert!(with.is_err() || with.unwrap() != plain, "{line}"),
                    _ => assert_ne!(with.unwrap(), plain, "{line}"),
                }
            }
        }
    }
}

#[test]
fn names_of_options_are_used_once() {
    for definition in COMMANDS.iter().chain([&PROGRAM]) {
        let flags: Vec<_> = definition.flags().collect();
        for (index, flag) in flags.iter().enumerate() {
            let twice = flags[..index]
                .iter()
                .any(|other| other.long == flag.long || (other.short.is_some() && other.short == flag.short));
            assert!(!twice && flag.short != Some('h'), "{} --{}", definition.name, flag.long);
        }
    }
}
