//! A pod's interfaces, as its infra container sees them in /proc: no thread has to enter the network namespace.

use super::process::Process;

/// The interfaces of a network namespace, without loopback.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Network {
    /// The one through which the pod talks to the world: `eth0`, else that of the default route.
    pub(super) default: Option<Interface>,
    /// All others.
    pub(super) others: Vec<Interface>,
}

/// One interface.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Interface {
    /// Its name.
    pub(super) name: String,
    /// Received and sent since it exists.
    pub(super) received: Counters,
    pub(super) sent: Counters,
}

/// Of one direction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Counters {
    pub(super) bytes: u64,
    pub(super) packets: u64,
    pub(super) errors: u64,
    pub(super) dropped: u64,
}

/// The name that CNI gives a pod's interface, which counts before any route.
const USUAL_NAME: &str = "eth0";

/// The network that a process is in; none once it has ended.
pub(super) fn network(process: &Process) -> Option<Network> {
    let mut all = parse_interfaces(&process.text("net/dev")?);
    let default = default_interface(&all, || {
        // Either is missing where the kernel has no such protocol.
        let (v4, v6) = (process.text("net/route"), process.text("net/ipv6_route"));
        default_route(&v4.unwrap_or_default(), &v6.unwrap_or_default())
    });
    let default = default.map(|index| all.remove(index));
    Some(Network { default, others: all })
}

/// The position of the default interface; the routes are read if they count.
fn default_interface(all: &[Interface], route: impl FnOnce() -> Option<String>) -> Option<usize> {
    let position = |name: &str| all.iter().position(|interface| interface.name == name);
    position(USUAL_NAME).or_else(|| position(&route()?))
}

/// The text of /proc/PID/net/dev, without loopback.
fn parse_interfaces(text: &str) -> Vec<Interface> {
    text.lines()
        .filter_map(parse_interface)
        .filter(|it| it.name != "lo")
        .collect()
}

/// `NAME: bytes packets errs drop fifo frame compressed multicast  bytes packets errs drop ...`, received and sent. A large
/// number may follow the colon at once.
fn parse_interface(line: &str) -> Option<Interface> {
    let (name, numbers) = line.split_once(':')?;
    let numbers: Vec<u64> = numbers
        .split_ascii_whitespace()
        .map_while(|number| number.parse().ok())
        .collect();
    let counters = |first: usize| {
        let &[bytes, packets, errors, dropped] = numbers.get(first..first + 4)? else {
            return None;
        };
        Some(Counters {
            bytes,
            packets,
            errors,
            dropped,
        })
    };
    Some(Interface {
        name: name.trim().to_owned(),
        received: counters(0)?,
        sent: counters(8)?,
    })
}

/// The interface of the default route, by the texts of /proc/PID/net/route and ipv6_route.
fn default_route(v4: &str, v6: &str) -> Option<String> {
    // Of several the one with the smallest metric; the kernel lists IPv4's in the order of their use.
    let of_v4 = v4.lines().skip(1).find_map(|line| {
        let fields: Vec<&str> = line.split_ascii_whitespace().collect();
        let is_default = fields.get(1) == Some(&"00000000") && fields.get(7) == Some(&"00000000");
        is_default.then(|| fields[0].to_owned())
    });
    let of_v6 = || {
        let routes = v6.lines().filter_map(|line| {
            let fields: Vec<&str> = line.split_ascii_whitespace().collect();
            let (metric, interface) = (*fields.get(5)?, *fields.get(9)?);
            // The kernel's own entry for what has no route leads to loopback.
            let is_default = fields.get(1) == Some(&"00") && interface != "lo";
            is_default.then(|| (metric.to_owned(), interface.to_owned()))
        });
        routes.min().map(|(_, interface)| interface)
    };
    of_v4.or_else(of_v6)
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEV: &str = "\
Inter-|   Receive                                                |  Transmit
 face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed
    lo: 9 9 0 0 0 0 0 0 9 9 0 0 0 0 0 0
  net1:1234567890     10    1    2    0     0          0         0      200      20    3    4    0     0       0          0
  eth0:     100       5    0    0    0     0          0         0       50       6    0    0    0     0       0          0
";
    const ROUTE: &str = "\
Iface	Destination	Gateway 	Flags	RefCnt	Use	Metric	Mask		MTU	Window	IRTT
net1	0000580A	00000000	0001	0	0	0	0000FFFF	0	0	0
net1	00000000	0100580A	0003	0	0	0	00000000	0	0	0
";
    const ROUTE_V6: &str = "\
fd000000000000000000000000000000 40 00000000000000000000000000000000 00 00000000000000000000000000000000 00000100 00000001 00000000 00000001     net2
00000000000000000000000000000000 00 00000000000000000000000000000000 00 fd000000000000000000000000000001 00000400 00000002 00000000 00000003     net1
00000000000000000000000000000000 00 00000000000000000000000000000000 00 00000000000000000000000000000000 ffffffff 00000001 00000000 00200200       lo
";

    #[test]
    fn interfaces() {
        let all = parse_interfaces(DEV);
        let counters = |bytes, packets, errors, dropped| Counters {
            bytes,
            packets,
            errors,
            dropped,
        };
        let expected = Interface {
            name: "net1".to_owned(),
            received: counters(1_234_567_890, 10, 1, 2),
            sent: counters(200, 20, 3, 4),
        };
        assert_eq!(all.len(), 2, "no loopback: {all:?}");
        assert_eq!(all[0], expected);
        assert_eq!(parse_interfaces(""), []);
        assert_eq!(parse_interfaces("eth0: 1 2 3"), [], "cut off");
    }

    #[test]
    fn default_routes() {
        let table = [
            (ROUTE, "", Some("net1")),
            ("", ROUTE_V6, Some("net1")),
            (ROUTE, ROUTE_V6, Some("net1")),
            ("", "", None),
            // What is not quite the default: half of the addresses.
            ("Iface\nnet1 00000000 0 3 0 0 0 00000080 0 0 0\n", "", None),
        ];
        for (v4, v6, expected) in table {
            assert_eq!(default_route(v4, v6).as_deref(), expected, "{v4:?} {v6:?}");
        }
    }

    #[test]
    fn the_default_interface() {
        let named = |names: &[&str]| -> Vec<Interface> {
            let interface = |name: &&str| Interface {
                name: (*name).to_owned(),
                ..Interface::default()
            };
            names.iter().map(interface).collect()
        };
        let table: [(&[&str], Option<&str>, Option<usize>); 5] = [
            (&["net1", "eth0"], Some("net1"), Some(1)),
            (&["net1", "net2"], Some("net2"), Some(1)),
            (&["net1"], None, None),
            (&["net1"], Some("gone"), None),
            (&[], None, None),
        ];
        for (names, route, expected) in table {
            let found = default_interface(&named(names), || route.map(str::to_owned));
            assert_eq!(found, expected, "{names:?} {route:?}");
        }
    }

    #[test]
    fn the_network_of_a_process() {
        let own = Process::open(std::process::id().try_into().unwrap()).unwrap();
        let network = network(&own).unwrap();
        assert!(
            network
                .default
                .iter()
                .chain(&network.others)
                .all(|interface| interface.name != "lo")
        );
    }
}
