//! Which protocol a client and this server speak. Pure.
//!
//! | upgrade | of | protocols, best first |
//! |---|---|---|
//! | SPDY/3.1, `X-Stream-Protocol-Version` | exec, attach | v4 to v1 (`channel.k8s.io`) |
//! | | port-forward | `portforward.k8s.io` |
//! | WebSocket, `Sec-WebSocket-Protocol` | exec, attach | v5, v4, v1, each but v5 also in base64; none named is v1 |
//! | | port-forward | SPDY tunnelled, v4, v4 in base64 |
//!
//! Of what both know, the client's order counts.

use hyper::header::{self, HeaderMap, HeaderName, HeaderValue};
use hyper::{Response, StatusCode};
use tokio_tungstenite::tungstenite::handshake::server::create_response_with_body;

use super::session::Session;

const VERSION: HeaderName = HeaderName::from_static("x-stream-protocol-version");
const ACCEPTED: HeaderName = HeaderName::from_static("x-accepted-stream-protocol-versions");
const SPDY: &str = "SPDY/3.1";

/// A protocol, by what differs.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Protocol {
    /// As it is negotiated.
    pub(super) name: &'static str,
    /// The end is told as a `metav1.Status`, not as text.
    pub(super) json: bool,
    /// There is a stream for a terminal's size.
    pub(super) resize: bool,
    /// WebSocket: a client can close one channel.
    pub(super) close: bool,
    /// WebSocket: messages are text, the channel a digit, the rest base64.
    pub(super) base64: bool,
    /// WebSocket: messages are pieces of a SPDY connection.
    pub(super) tunnel: bool,
}

const NONE: Protocol = Protocol {
    name: "",
    json: false,
    resize: false,
    close: false,
    base64: false,
    tunnel: false,
};

static SPDY_COMMAND: [Protocol; 4] = [
    Protocol {
        name: "v4.channel.k8s.io",
        json: true,
        resize: true,
        ..NONE
    },
    Protocol {
        name: "v3.channel.k8s.io",
        resize: true,
        ..NONE
    },
    Protocol {
        name: "v2.channel.k8s.io",
        ..NONE
    },
    Protocol {
        name: "channel.k8s.io",
        ..NONE
    },
];
static SPDY_FORWARD: [Protocol; 1] = [Protocol {
    name: "portforward.k8s.io",
    ..NONE
}];
static WEBSOCKET_COMMAND: [Protocol; 6] = [
    Protocol {
        name: "v5.channel.k8s.io",
        json: true,
        resize: true,
        close: true,
        ..NONE
    },
    Protocol {
        name: "v4.channel.k8s.io",
        json: true,
        resize: true,
        ..NONE
    },
    Protocol {
        name: "v4.base64.channel.k8s.io",
        json: true,
        resize: true,
        base64: true,
        ..NONE
    },
    Protocol {
        name: "channel.k8s.io",
        resize: true,
        ..NONE
    },
    Protocol {
        name: "base64.channel.k8s.io",
        resize: true,
        base64: true,
        ..NONE
    },
    Protocol {
        name: "",
        resize: true,
        ..NONE
    },
];
static WEBSOCKET_FORWARD: [Protocol; 3] = [
    Protocol {
        name: "SPDY/3.1+portforward.k8s.io",
        tunnel: true,
        ..NONE
    },
    Protocol {
        name: "v4.channel.k8s.io",
        ..NONE
    },
    Protocol {
        name: "v4.base64.channel.k8s.io",
        base64: true,
        ..NONE
    },
];

/// What a connection becomes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Upgrade {
    /// SPDY/3.1.
    Spdy(&'static Protocol),
    /// A WebSocket.
    WebSocket(&'static Protocol),
}

/// Why a request is not upgraded.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Refusal {
    /// HTTP's code.
    pub(super) status: StatusCode,
    /// For a person.
    pub(super) text: String,
    /// The protocols that would be accepted, where that is what is wrong.
    pub(super) accepted: Vec<&'static str>,
}

impl Refusal {
    /// A refusal for another reason than the protocols.
    pub(super) fn new(status: StatusCode, text: impl Into<String>) -> Self {
        Refusal {
            status,
            text: text.into(),
            accepted: Vec::new(),
        }
    }

    /// The response without its body.
    pub(super) fn response(&self) -> Response<()> {
        let mut response = Response::new(());
        *response.status_mut() = self.status;
        // One request a connection: it has spent its token.
        let close = HeaderValue::from_static("close");
        response.headers_mut().insert(header::CONNECTION, close);
        for name in &self.accepted {
            response.headers_mut().append(ACCEPTED, HeaderValue::from_static(name));
        }
        response
    }
}

/// Chooses the protocol for a request with these headers.
pub(super) fn negotiate(headers: &HeaderMap, session: &Session) -> Result<Upgrade, Refusal> {
    let forward = matches!(session, Session::PortForward { .. });
    let upgrading = list(headers, &header::CONNECTION).any(|token| token.eq_ignore_ascii_case("upgrade"));
    let to = |name: &str| list(headers, &header::UPGRADE).any(|token| token.eq_ignore_ascii_case(name));
    if upgrading && to(SPDY) {
        let own: &'static [Protocol] = if forward { &SPDY_FORWARD } else { &SPDY_COMMAND };
        return choose(headers, &VERSION, own).map(Upgrade::Spdy);
    }
    if upgrading && to("websocket") {
        let own: &'static [Protocol] = if forward {
            &WEBSOCKET_FORWARD
        } else {
            &WEBSOCKET_COMMAND
        };
        return choose(headers, &header::SEC_WEBSOCKET_PROTOCOL, own).map(Upgrade::WebSocket);
    }
    let text = "must be a request to upgrade to SPDY/3.1 or websocket";
    Err(Refusal::new(StatusCode::BAD_REQUEST, text))
}

fn choose(headers: &HeaderMap, name: &HeaderName, own: &'static [Protocol]) -> Result<&'static Protocol, Refusal> {
    let mut asked: Vec<&str> = list(headers, name).collect();
    if asked.is_empty() {
        asked.push("");
    }
    let known = |asked: &&str| own.iter().find(|protocol| protocol.name == *asked);
    asked.iter().find_map(known).ok_or_else(|| {
        let accepted: Vec<_> = own
            .iter()
            .map(|protocol| protocol.name)
            .filter(|name| !name.is_empty())
            .collect();
        let text = format!(
            "{name} {:?}: must name one of {}",
            asked.join(", "),
            accepted.join(", ")
        );
        Refusal {
            status: StatusCode::FORBIDDEN,
            text,
            accepted,
        }
    })
}

/// The values of a header that is a list, in one field or several.
fn list<'a>(headers: &'a HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'a str> {
    let fields = headers
        .get_all(name)
        .into_iter()
        .filter_map(|value| value.to_str().ok());
    fields
        .flat_map(|field| field.split(','))
        .map(str::trim)
        .filter(|value| !value.is_empty())
}

impl Upgrade {
    /// The 101 that answers `request`, without its body.
    pub(super) fn response<B>(&self, request: &hyper::Request<B>) -> Result<Response<()>, Refusal> {
        match self {
            Upgrade::Spdy(protocol) => {
                let mut response = Response::new(());
                *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
                let headers = response.headers_mut();
                headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
                headers.insert(header::UPGRADE, HeaderValue::from_static(SPDY));
                headers.insert(VERSION, HeaderValue::from_static(protocol.name));
                Ok(response)
            }
            Upgrade::WebSocket(protocol) => {
                let mut response = create_response_with_body(request, || ())
                    .map_err(|error| Refusal::new(StatusCode::BAD_REQUEST, error.to_string()))?;
                if !protocol.name.is_empty() {
                    let name = HeaderValue::from_static(protocol.name);
                    response.headers_mut().insert(header::SEC_WEBSOCKET_PROTOCOL, name);
                }
                Ok(response)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::session::Wanted;
    use super::*;

    fn headers(lines: &[(&'static str, &'static str)]) -> HeaderMap {
        let pairs = lines.iter();
        pairs
            .map(|&(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value)))
            .collect()
    }

    fn exec() -> Session {
        Session::Exec {
            container: String::new(),
            cmd: Vec::new(),
            wanted: Wanted::default(),
        }
    }

    fn forward() -> Session {
        Session::PortForward {
            sandbox: String::new(),
            ports: Vec::new(),
        }
    }

    const TO_SPDY: [(&str, &str); 2] = [("connection", "Upgrade"), ("upgrade", "SPDY/3.1")];
    const TO_WEBSOCKET: [(&str, &str); 2] = [("connection", "keep-alive, upgrade"), ("upgrade", "WebSocket")];

    const OFFERED: &str = "x-stream-protocol-version";
    const SUBPROTOCOL: &str = "sec-websocket-protocol";

    /// How it upgrades, a header and its value; the protocol that is chosen, or HTTP's code.
    type Case = (
        [(&'static str, &'static str); 2],
        &'static str,
        &'static str,
        Result<&'static str, u16>,
    );

    fn check(session: &Session, cases: &[Case]) {
        for (upgrade, name, value, expected) in cases {
            let lines = [upgrade[0], upgrade[1], (*name, *value)];
            let found = match negotiate(&headers(&lines), session) {
                Ok(Upgrade::Spdy(protocol) | Upgrade::WebSocket(protocol)) => Ok(protocol.name),
                Err(refusal) => Err(refusal.status.as_u16()),
            };
            assert_eq!(found, *expected, "{lines:?}");
        }
    }

    #[test]
    fn versions_of_commands() {
        let many = "v5.channel.k8s.io, v4.channel.k8s.io,channel.k8s.io";
        let old_first = "v2.channel.k8s.io,v4.channel.k8s.io";
        let (v5, base64) = ("v5.channel.k8s.io", "v4.base64.channel.k8s.io");
        let table = [
            (TO_SPDY, OFFERED, many, Ok("v4.channel.k8s.io")),
            (TO_SPDY, OFFERED, old_first, Ok("v2.channel.k8s.io")),
            (TO_SPDY, OFFERED, "channel.k8s.io", Ok("channel.k8s.io")),
            (TO_SPDY, OFFERED, "v9", Err(403)),
            (TO_SPDY, "x-other", "", Err(403)),
            (TO_WEBSOCKET, SUBPROTOCOL, v5, Ok(v5)),
            (TO_WEBSOCKET, SUBPROTOCOL, base64, Ok(base64)),
            (TO_WEBSOCKET, "x-other", "", Ok("")),
            (TO_WEBSOCKET, SUBPROTOCOL, "SPDY/3.1+portforward.k8s.io", Err(403)),
        ];
        check(&exec(), &table);
    }

    #[test]
    fn versions_of_forwards() {
        let (own, tunnel) = ("portforward.k8s.io", "SPDY/3.1+portforward.k8s.io");
        let several = "v5.channel.k8s.io,v4.channel.k8s.io";
        let no_upgrade = [("connection", "close"), ("upgrade", "SPDY/3.1")];
        let table = [
            (TO_SPDY, OFFERED, own, Ok(own)),
            (TO_SPDY, OFFERED, "v4.channel.k8s.io", Err(403)),
            (TO_WEBSOCKET, SUBPROTOCOL, tunnel, Ok(tunnel)),
            (TO_WEBSOCKET, SUBPROTOCOL, several, Ok("v4.channel.k8s.io")),
            (no_upgrade, OFFERED, own, Err(400)),
        ];
        check(&forward(), &table);
    }

    #[test]
    fn a_refusal_lists_what_would_do() {
        let refusal = negotiate(&headers(&TO_SPDY), &forward()).unwrap_err();
        assert_eq!(refusal.accepted, ["portforward.k8s.io"]);
        assert_eq!(refusal.response().headers()[ACCEPTED], "portforward.k8s.io");
        assert_eq!(
            refusal.text,
            r#"x-stream-protocol-version "": must name one of portforward.k8s.io"#
        );
    }
}
