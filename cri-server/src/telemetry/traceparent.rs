//! The header `traceparent` (W3C Trace Context): which trace a call belongs to, and whether its caller traces it. Pure.
//!
//! ```text
//! 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01
//! version  trace id, 16 bytes         span id, 8 bytes  flags: 01 is sampled
//! ```

/// What the caller says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Parent {
    /// The trace.
    pub(super) trace_id: [u8; 16],
    /// The caller's span in it.
    pub(super) span_id: [u8; 8],
    /// The caller's span is recorded.
    pub(super) sampled: bool,
}

/// Parses a header; one that is not by the rules is as if it were not there.
pub(super) fn parse(text: &str) -> Option<Parent> {
    let mut parts = text.split('-');
    let version = bytes::<1>(parts.next()?)?[0];
    let trace_id = bytes(parts.next()?)?;
    let span_id = bytes(parts.next()?)?;
    let flags = bytes::<1>(parts.next()?)?[0];
    // A later version may say more; 255 is none.
    let is_whole = match version {
        0 => parts.next().is_none(),
        version => version != 0xff,
    };
    let valid = is_whole && trace_id != [0; 16] && span_id != [0; 8];
    valid.then_some(Parent {
        trace_id,
        span_id,
        sampled: flags & 1 == 1,
    })
}

/// So many bytes in lower-case hexadecimal digits.
fn bytes<const N: usize>(text: &str) -> Option<[u8; N]> {
    let digits = text.as_bytes();
    if digits.len() != 2 * N {
        return None;
    }
    let mut bytes = [0; N];
    for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
        *byte = digit(pair[0])? << 4 | digit(pair[1])?;
    }
    Some(bytes)
}

fn digit(byte: u8) -> Option<u8> {
    match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'a'..=b'f' => Some(byte - b'a' + 10),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
    const SPAN: &str = "b7ad6b7169203331";

    #[test]
    fn what_counts() {
        let table = [
            (format!("00-{TRACE}-{SPAN}-01"), Some(true)),
            (format!("00-{TRACE}-{SPAN}-00"), Some(false)),
            (format!("00-{TRACE}-{SPAN}-03"), Some(true)),
            (format!("01-{TRACE}-{SPAN}-01-more"), Some(true)),
            (format!("00-{TRACE}-{SPAN}-01-more"), None),
            (format!("ff-{TRACE}-{SPAN}-01"), None),
            (format!("00-{}-{SPAN}-01", TRACE.to_uppercase()), None),
            (format!("00-{}-{SPAN}-01", "0".repeat(32)), None),
            (format!("00-{TRACE}-{}-01", "0".repeat(16)), None),
            (format!("00-{TRACE}-{SPAN}"), None),
            (format!("00-{SPAN}-{TRACE}-01"), None),
            ("ä".repeat(20), None),
            (String::new(), None),
        ];
        for (text, sampled) in table {
            assert_eq!(parse(&text).map(|parent| parent.sampled), sampled, "{text}");
        }
        let parent = parse(&format!("00-{TRACE}-{SPAN}-01")).unwrap();
        assert_eq!((parent.trace_id[0], parent.trace_id[15]), (0x0a, 0x9c));
        assert_eq!(parent.span_id, [0xb7, 0xad, 0x6b, 0x71, 0x69, 0x20, 0x33, 0x31]);
    }
}
