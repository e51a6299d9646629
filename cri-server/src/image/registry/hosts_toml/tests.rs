//! Tables of hosts.toml texts.

use super::*;

fn hosts(text: &str) -> Result<Vec<Host>, String> {
    parse(Path::new("/etc/r/hosts.toml"), text, "r.example").map_err(|problem| problem.to_string())
}

#[test]
fn mirrors_in_the_order_of_the_file_and_the_server_last() {
    let text = "
        server = 'https://upstream.example'
        [host.'https://z.example']
        capabilities = ['pull']
        [host.'http://a.example:5000']
        [host.'https://b.example/proxy/v2']
        capabilities = ['pull', 'resolve', 'push']
        [host.'https://b.example/root']
        override_path = true
        [host.'c.example/sub/']
    ";
    let hosts = hosts(text).unwrap();
    let found: Vec<_> = hosts
        .iter()
        .map(|it| (it.api.as_str(), it.capabilities.resolve, it.is_upstream))
        .collect();
    assert_eq!(
        found,
        [
            ("https://z.example/v2/", false, false),
            ("http://a.example:5000/v2/", true, false),
            ("https://b.example/proxy/v2/", true, false),
            ("https://b.example/root/", true, false),
            ("https://c.example/sub/v2/", true, false),
            ("https://upstream.example/v2/", true, true),
        ]
    );
    assert!(hosts.iter().all(|it| it.namespace.as_deref() == Some("r.example")));
    assert!(hosts[1].transport.plain_http && !hosts[0].transport.plain_http);
}

#[test]
fn an_empty_file_is_the_registry_itself() {
    let hosts = hosts("").unwrap();
    assert_eq!(hosts[0].api.as_str(), "https://r.example/v2/");
    assert_eq!(
        (hosts.len(), hosts[0].is_upstream, &hosts[0].namespace),
        (1, true, &None)
    );
    let hub = parse(Path::new("/h"), "", "docker.io").unwrap();
    assert_eq!(
        (hub[0].api.as_str(), &hub[0].namespace),
        ("https://registry-1.docker.io/v2/", &None)
    );
    let first = parse(
        Path::new("/h"),
        "[host.'https://r.example']\n[host.'https://m']",
        "r.example",
    )
    .unwrap();
    let upstream: Vec<_> = first.iter().map(|it| it.is_upstream).collect();
    assert_eq!(upstream, [true, false, true]);
}

#[test]
fn every_key() {
    let text = "
        ca = '/etc/own.pem'
        dial_timeout = '1m30s'
        [host.'https://m']
        ca = ['a.pem', '/b.pem']
        client = [['own.cert', 'own.key']]
        skip_verify = true
        dial_timeout = '500ms'
        username = 'u'
        password = 'p'
        [host.'https://m'.header]
        x-one = '1'
        X-Many = ['2', '3']
        [host.'https://f']
        client = 'both.pem'
        credentials_file = 'auth.json'
        [host.'https://g']
        client = [['both.pem', '']]
    ";
    let hosts = hosts(text).unwrap();
    let [mirror, file, pair, server] = hosts.as_slice() else {
        panic!("{}", hosts.len());
    };
    assert_eq!(server.transport.ca, [Path::new("/etc/own.pem")]);
    assert_eq!(server.transport.dial_timeout, Duration::from_secs(90));
    assert_eq!(mirror.transport.ca, [Path::new("/etc/r/a.pem"), Path::new("/b.pem")]);
    assert_eq!(mirror.transport.dial_timeout, Duration::from_millis(500));
    assert!(mirror.transport.skip_verify && !server.transport.skip_verify);
    let own = mirror.transport.identity.as_ref().unwrap();
    assert_eq!(own.key.as_deref(), Some(Path::new("/etc/r/own.key")));
    let values: Vec<_> = mirror.headers.get_all("x-many").iter().collect();
    assert_eq!(values, ["2", "3"]);
    assert_eq!(
        mirror.login,
        Some(Login::Given(Credentials::Basic {
            user: "u".into(),
            password: "p".into()
        }))
    );
    for it in [file, pair] {
        let own = it.transport.identity.as_ref().unwrap();
        assert_eq!(
            (own.certificate.as_path(), &own.key),
            (Path::new("/etc/r/both.pem"), &None)
        );
    }
    assert_eq!(file.login, Some(Login::File("/etc/r/auth.json".into())));
}

/// Each text is refused like this, in words that hold no secret.
fn all_refused(table: &[(&str, &str)]) {
    for (text, says) in table {
        let error = hosts(text).map(|hosts| hosts.len()).unwrap_err();
        assert!(
            error.starts_with("/etc/r/hosts.toml:") && error.contains(says),
            "{text:?}: {error}"
        );
        assert!(!error.contains("secret") && !error.contains("424242"), "{error}");
    }
}

#[test]
fn what_is_wrong_is_named_by_file_line_key_and_rule() {
    all_refused(&[
        ("server = 'ftp://x'", ":1: server: \"ftp://x\" must be http"),
        ("server = 'https://'", ":1: server:"),
        (
            "\nserver = 'https://u:secret@x'",
            ":2: server: must not hold credentials",
        ),
        ("serverr = 'x'", ":1: serverr: is not a key"),
        ("skip_verify = 'yes'", ":1: skip_verify: invalid type"),
        ("server = 'a'\nserver = 'b'", ":2:"),
        (
            "[host.'https://m']\nskip_verfy = true",
            ":2: host.https://m.skip_verfy: is not a key",
        ),
        (
            "[host.'https://m']\ncapabilities = ['push', 'fly']",
            ":2: host.https://m.capabilities: \"fly\" is none of",
        ),
        (
            "[host.'https://m']\ncapabilities = 'pull'",
            ":2: host.https://m.capabilities: invalid type",
        ),
        ("[host.'gopher://m']", ":1: host.gopher://m: "),
        ("[host.'https://m?q=1']", ":1: host.https://m?q=1: "),
    ]);
}

#[test]
fn values_are_checked_and_secrets_not_repeated() {
    let many: String = (0..=MAX_HOSTS)
        .map(|number| format!("[host.'https://m{number}']\n"))
        .collect();
    all_refused(&[
        (
            "[host.'https://m']\ndial_timeout = 'soon'",
            ":2: host.https://m.dial_timeout: \"soon\" must be a time",
        ),
        (
            "[host.'https://m']\ndial_timeout = '10h'",
            ":2: host.https://m.dial_timeout:",
        ),
        (
            "[host.'https://m']\nca = 5",
            ":2: host.https://m.ca: must be a string or a list",
        ),
        (
            "[host.'https://m']\nclient = ['a', 'b']",
            ":2: host.https://m.client: must be one certificate",
        ),
        (
            "[host.'https://m']\nclient = [['a','b'],['c','d']]",
            ":2: host.https://m.client: must be one pair",
        ),
        (
            "[host.'https://m']\nusername = 'secret'",
            ":2: host.https://m.username: needs a password",
        ),
        (
            "[host.'https://m']\npassword = 'secret'",
            ":2: host.https://m.password: needs a username",
        ),
        (
            "[host.'https://m']\npassword = 424242",
            "host.https://m.password: must be a string",
        ),
        (
            "[host.'https://m']\nusername='u'\npassword='secret'\ncredentials_file='f'",
            ":4: host.https://m.credentials_file: must not stand beside",
        ),
        (
            "[host.'https://m'.header]\n'a b' = 'secret'",
            ":2: host.https://m.header.a b: is not the name",
        ),
        (
            "[host.'https://m'.header]\na = \"secret\\n\"",
            ":2: host.https://m.header.a: must not hold control",
        ),
        ("[host.'https://m'.header]\na = 424242", "header"),
        (&many, "host: at most 32 mirrors"),
    ]);
}
