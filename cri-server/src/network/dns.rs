//! `resolv.conf` and `hostname` of a sandbox, as text. Whoever makes the sandbox's directory writes them.

use corten_proto::cri::DnsConfig;

use crate::spec::SpecError;

/// The resolver file of the node, copied where a request brings no DNS configuration.
pub const HOST_RESOLV_CONF: &str = "/etc/resolv.conf";

/// Refuses what would break out of its line of `resolv.conf`.
pub fn check(config: Option<&DnsConfig>) -> Result<(), SpecError> {
    resolv_conf(config, "").map(|_| ())
}

/// The text of `resolv.conf`: the request's entries, or all of `host`, the node's own file; never a mix of both.
pub fn resolv_conf(config: Option<&DnsConfig>, host: &str) -> Result<String, SpecError> {
    let Some(config) = config.filter(|config| **config != DnsConfig::default()) else {
        return Ok(host.to_owned());
    };
    let mut text = String::new();
    for server in words("servers", &config.servers)? {
        text += &format!("nameserver {server}\n");
    }
    // One line each: of several `search` or `options` lines the last would count (resolv.conf(5)).
    for (keyword, name, list) in [
        ("search", "searches", &config.searches),
        ("options", "options", &config.options),
    ] {
        let words = words(name, list)?;
        if !words.is_empty() {
            text += &format!("{keyword} {}\n", words.join(" "));
        }
    }
    Ok(text)
}

fn words<'a>(name: &str, list: &'a [String]) -> Result<&'a [String], SpecError> {
    let bad = |word: &&String| word.is_empty() || word.contains(|c: char| c.is_whitespace() || c.is_control());
    match list.iter().find(bad) {
        None => Ok(list),
        Some(word) => {
            let rule = "must be one word";
            Err(SpecError::invalid(format!("dns_config.{name}"), word, rule))
        }
    }
}

/// The text of `hostname`, one line.
pub fn hostname_file(hostname: &str) -> String {
    format!("{hostname}\n")
}

/// The node's hostname, for sandboxes with the node's network.
pub fn node_hostname() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn strings(list: &[&str]) -> Vec<String> {
        list.iter().map(|&text| text.to_owned()).collect()
    }

    #[test]
    fn the_request_or_the_node_never_both() {
        let config = DnsConfig {
            servers: strings(&["10.0.0.2", "fd00::2"]),
            searches: strings(&["default.svc.cluster.local", "cluster.local"]),
            options: strings(&["ndots:5"]),
        };
        let expected = "nameserver 10.0.0.2\nnameserver fd00::2\n\
                        search default.svc.cluster.local cluster.local\noptions ndots:5\n";
        assert_eq!(resolv_conf(Some(&config), "nameserver 1.1.1.1\n").unwrap(), expected);
        for none in [None, Some(&DnsConfig::default())] {
            assert_eq!(
                resolv_conf(none, "nameserver 1.1.1.1\n").unwrap(),
                "nameserver 1.1.1.1\n"
            );
        }
    }

    #[test]
    fn nothing_breaks_out_of_its_line() {
        for bad in ["", "1.1.1.1\nnameserver 6.6.6.6", "a b", "a\0"] {
            let config = DnsConfig {
                searches: strings(&[bad]),
                ..Default::default()
            };
            assert_eq!(
                check(Some(&config)).unwrap_err().field,
                "dns_config.searches",
                "{bad:?}"
            );
        }
    }
}
