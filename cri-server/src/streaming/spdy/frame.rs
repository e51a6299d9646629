//! Frames of SPDY/3.1 as bytes (draft-mbelshe-httpbis-spdy-00, section 2.2). Pure.
//!
//! ```text
//!   data     |0| stream (31)              |    control  |1| version (15) | type (16) |
//!            | flags (8) | length (24)    |             | flags (8) | length (24)    |
//!            | length bytes               |             | length bytes               |
//! ```
//!
//! The payload of a data frame is never held whole: [`Head`] says how long it is, and whoever reads takes it in pieces.
//! Control frames are bounded by [`MAX_CONTROL`] before a byte of them is stored. Header blocks stay compressed here
//! (`headers`).

use bytes::{BufMut, Bytes, BytesMut};

/// Bytes before every payload.
pub(super) const HEAD_LEN: usize = 8;
/// Longest payload of a control frame: header blocks hold a few short names, settings a few numbers.
pub(super) const MAX_CONTROL: u32 = 16 << 10;
/// Longest payload that a data frame's 24 bits can name.
pub(super) const MAX_DATA: usize = (1 << 24) - 1;

const VERSION: u16 = 3;
const FIN: u8 = 1;
const ID_BITS: u32 = 0x7fff_ffff;

const SYN_STREAM: u16 = 1;
const SYN_REPLY: u16 = 2;
const RST_STREAM: u16 = 3;
const SETTINGS: u16 = 4;
const PING: u16 = 6;
const GOAWAY: u16 = 7;
const HEADERS: u16 = 8;
const WINDOW_UPDATE: u16 = 9;

/// Why a stream is ended by RST_STREAM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub(crate) enum Reset {
    /// It breaks the protocol.
    Protocol = 1,
    /// It is not wanted, or there are too many.
    Refused = 3,
}

/// A frame that cannot be: the connection ends.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Malformed(pub(super) String);

impl std::fmt::Display for Malformed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Malformed {}

/// What the first eight bytes of a frame say.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Head {
    /// `length` bytes of a stream follow.
    Data { stream: u32, fin: bool, length: usize },
    /// A control frame of `length` bytes follows.
    Control { kind: u16, fin: bool, length: usize },
}

impl Head {
    /// Reads a frame's first bytes and checks what they promise.
    pub(super) fn parse(bytes: [u8; HEAD_LEN]) -> Result<Head, Malformed> {
        let [a, b, c, d, flags, rest @ ..] = bytes;
        let first = u32::from_be_bytes([a, b, c, d]);
        let length = u32::from_be_bytes([0, rest[0], rest[1], rest[2]]);
        let fin = flags & FIN != 0;
        if first & !ID_BITS == 0 {
            if first == 0 {
                return Err(Malformed("data frame: stream 0".to_owned()));
            }
            let length = length as usize;
            return Ok(Head::Data {
                stream: first,
                fin,
                length,
            });
        }
        let (version, kind) = (u16::from_be_bytes([a & 0x7f, b]), u16::from_be_bytes([c, d]));
        if version != VERSION {
            return Err(Malformed(format!("control frame: version {version}, not {VERSION}")));
        }
        if length > MAX_CONTROL {
            return Err(Malformed(format!(
                "control frame: {length} bytes, more than {MAX_CONTROL}"
            )));
        }
        let length = length as usize;
        Ok(Head::Control { kind, fin, length })
    }
}

/// A control frame that came in.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Control {
    /// A new stream; `block` is its compressed headers.
    SynStream { stream: u32, fin: bool, block: Bytes },
    /// More headers for a stream; they count for the compression only.
    Headers { stream: u32, fin: bool, block: Bytes },
    /// The stream is over in both directions.
    RstStream { stream: u32 },
    /// Is anybody there?
    Ping { id: u32 },
    /// The peer opens no more streams.
    GoAway,
    /// Well formed, and without meaning here: windows and settings (see the module above), and kinds that a later version
    /// may have.
    Other,
}

impl Control {
    /// Reads the payload of a control frame.
    pub(super) fn parse(kind: u16, fin: bool, payload: &Bytes) -> Result<Control, Malformed> {
        let stream = || id(payload, kind);
        Ok(match kind {
            SYN_STREAM => Control::SynStream {
                stream: stream()?,
                fin,
                block: tail(payload, 10, kind)?,
            },
            SYN_REPLY => Control::Headers {
                stream: stream()?,
                fin,
                block: tail(payload, 4, kind)?,
            },
            HEADERS => Control::Headers {
                stream: stream()?,
                fin,
                block: tail(payload, 4, kind)?,
            },
            RST_STREAM => Control::RstStream { stream: stream()? },
            SETTINGS => settings(payload)?,
            WINDOW_UPDATE => window(payload)?,
            PING => Control::Ping {
                id: word(payload, 0, kind)?,
            },
            GOAWAY => Control::GoAway,
            _ => Control::Other,
        })
    }
}

fn settings(payload: &Bytes) -> Result<Control, Malformed> {
    let (count, room) = (word(payload, 0, SETTINGS)? as usize, (payload.len() - 4) / 8);
    match count > room {
        true => Err(Malformed(format!("SETTINGS: {count} entries, room for {room}"))),
        false => Ok(Control::Other),
    }
}

fn window(payload: &Bytes) -> Result<Control, Malformed> {
    id(payload, WINDOW_UPDATE)?;
    word(payload, 4, WINDOW_UPDATE)?;
    Ok(Control::Other)
}

fn word(payload: &Bytes, at: usize, kind: u16) -> Result<u32, Malformed> {
    let bytes = payload.get(at..at + 4).and_then(|bytes| bytes.try_into().ok());
    let bytes = bytes.ok_or_else(|| short(payload, kind))?;
    Ok(u32::from_be_bytes(bytes))
}

fn id(payload: &Bytes, kind: u16) -> Result<u32, Malformed> {
    match word(payload, 0, kind)? & ID_BITS {
        0 => Err(Malformed(format!("control frame of type {kind}: stream 0"))),
        stream => Ok(stream),
    }
}

fn tail(payload: &Bytes, from: usize, kind: u16) -> Result<Bytes, Malformed> {
    if payload.len() < from {
        return Err(short(payload, kind));
    }
    Ok(payload.slice(from..))
}

fn short(payload: &Bytes, kind: u16) -> Malformed {
    Malformed(format!("control frame of type {kind}: only {} bytes", payload.len()))
}

/// The head of a data frame; the payload of `length` bytes, [`MAX_DATA`] at most, is to follow.
pub(super) fn data_head(stream: u32, fin: bool, length: usize) -> [u8; HEAD_LEN] {
    debug_assert!(length <= MAX_DATA, "whoever writes cuts its pieces");
    let length = u32::try_from(length).unwrap_or(0);
    let (id, [_, a, b, c]) = (stream.to_be_bytes(), length.to_be_bytes());
    [id[0], id[1], id[2], id[3], u8::from(fin), a, b, c]
}

/// SYN_REPLY with a compressed header block.
pub(super) fn syn_reply(stream: u32, block: &[u8]) -> Bytes {
    control(SYN_REPLY, &[&stream.to_be_bytes(), block])
}

/// RST_STREAM.
pub(super) fn rst_stream(stream: u32, reason: Reset) -> Bytes {
    control(RST_STREAM, &[&stream.to_be_bytes(), &(reason as u32).to_be_bytes()])
}

/// SETTINGS that sets nothing, to which there is no answer.
pub(super) fn no_settings() -> Bytes {
    control(SETTINGS, &[&0u32.to_be_bytes()])
}

/// PING.
pub(super) fn ping(id: u32) -> Bytes {
    control(PING, &[&id.to_be_bytes()])
}

/// GOAWAY because of a protocol error; `last` is the newest stream that was seen.
pub(super) fn goaway(last: u32) -> Bytes {
    control(GOAWAY, &[&last.to_be_bytes(), &(Reset::Protocol as u32).to_be_bytes()])
}

/// WINDOW_UPDATE.
pub(super) fn window_update(stream: u32, delta: u32) -> Bytes {
    control(WINDOW_UPDATE, &[&stream.to_be_bytes(), &delta.to_be_bytes()])
}

fn control(kind: u16, parts: &[&[u8]]) -> Bytes {
    let length: usize = parts.iter().map(|part| part.len()).sum();
    let mut frame = BytesMut::with_capacity(HEAD_LEN + length);
    frame.put_u16(0x8000 | VERSION);
    frame.put_u16(kind);
    frame.put_u32(u32::try_from(length).expect("our control frames are a few bytes long"));
    for part in parts {
        frame.put_slice(part);
    }
    frame.freeze()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(text: &[u8]) -> Result<Head, Malformed> {
        Head::parse(text.try_into().unwrap())
    }

    #[test]
    fn heads() {
        let data = |stream, fin, length| Ok(Head::Data { stream, fin, length });
        let control = |kind, fin, length| Ok(Head::Control { kind, fin, length });
        let table: [(&[u8], Result<Head, Malformed>); 5] = [
            (&[0, 0, 0, 1, 0, 0, 0, 5], data(1, false, 5)),
            (&[0x7f, 0xff, 0xff, 0xff, 1, 0, 0, 0], data(ID_BITS, true, 0)),
            (&[0, 0, 0, 7, 0, 0xff, 0xff, 0xff], data(7, false, MAX_DATA)),
            (&[0x80, 3, 0, 1, 1, 0, 0, 10], control(SYN_STREAM, true, 10)),
            (&[0x80, 3, 0, 99, 0, 0, 0x40, 0], control(99, false, 16 << 10)),
        ];
        for (bytes, expected) in table {
            assert_eq!(head(bytes), expected, "{bytes:?}");
        }
    }

    #[test]
    fn heads_that_cannot_be() {
        let table: [(&[u8], &str); 4] = [
            (&[0, 0, 0, 0, 0, 0, 0, 5], "data frame: stream 0"),
            (&[0x80, 2, 0, 1, 0, 0, 0, 0], "control frame: version 2, not 3"),
            (
                &[0x80, 3, 0, 1, 0, 0, 0x40, 1],
                "control frame: 16385 bytes, more than 16384",
            ),
            (
                &[0x80, 3, 0, 8, 0, 0xff, 0xff, 0xff],
                "control frame: 16777215 bytes, more than 16384",
            ),
        ];
        for (bytes, text) in table {
            assert_eq!(head(bytes).unwrap_err().to_string(), text);
        }
    }

    #[test]
    fn controls() {
        let stream = 5;
        let block = Bytes::from_static(b"xy");
        let table: [(u16, &'static [u8], Control); 9] = [
            (
                SYN_STREAM,
                b"\x80\0\0\x05\0\0\0\0\0\0xy",
                Control::SynStream {
                    stream,
                    fin: false,
                    block: block.clone(),
                },
            ),
            (
                HEADERS,
                b"\0\0\0\x05xy",
                Control::Headers {
                    stream,
                    fin: false,
                    block: block.clone(),
                },
            ),
            (
                SYN_REPLY,
                b"\0\0\0\x05xy",
                Control::Headers {
                    stream,
                    fin: false,
                    block,
                },
            ),
            (RST_STREAM, b"\0\0\0\x05\0\0\0\x05", Control::RstStream { stream }),
            (PING, b"\0\0\0\x07", Control::Ping { id: 7 }),
            (GOAWAY, b"\0\0\0\0\0\0\0\0", Control::GoAway),
            (WINDOW_UPDATE, b"\0\0\0\x05\0\0\x10\0", Control::Other),
            (SETTINGS, b"\0\0\0\x01\x01\0\0\x07\0\x01\0\0", Control::Other),
            (12, b"anything", Control::Other),
        ];
        for (kind, payload, expected) in table {
            assert_eq!(
                Control::parse(kind, false, &Bytes::from_static(payload)).unwrap(),
                expected
            );
        }
    }

    #[test]
    fn controls_that_are_cut_or_lie() {
        let table: [(u16, &'static [u8]); 9] = [
            (SYN_STREAM, b"\0\0\0\x05\0\0\0\0\0"),
            (SYN_STREAM, b""),
            (SYN_STREAM, b"\0\0\0\0\0\0\0\0\0\0"),
            (HEADERS, b"\0\0\0"),
            (RST_STREAM, b"\0\0\0\0\0\0\0\x05"),
            (PING, b"\0"),
            (WINDOW_UPDATE, b"\0\0\0\x05\0\0"),
            (SETTINGS, b"\0\0\0\x02\0\0\0\x07\0\x01\0\0"),
            (SETTINGS, b"\xff\xff\xff\xff"),
        ];
        for (kind, payload) in table {
            assert!(
                Control::parse(kind, false, &Bytes::from_static(payload)).is_err(),
                "{kind} {payload:?}"
            );
        }
    }

    #[test]
    fn what_is_written_can_be_read() {
        let frames = [
            (ping(7), Control::Ping { id: 7 }),
            (rst_stream(3, Reset::Refused), Control::RstStream { stream: 3 }),
            (goaway(3), Control::GoAway),
            (window_update(3, 9), Control::Other),
            (no_settings(), Control::Other),
            (
                syn_reply(3, b"ab"),
                Control::Headers {
                    stream: 3,
                    fin: false,
                    block: Bytes::from_static(b"ab"),
                },
            ),
        ];
        for (frame, expected) in frames {
            let Head::Control { kind, fin, length } = head(&frame[..HEAD_LEN]).unwrap() else {
                panic!("{frame:?}");
            };
            assert_eq!(length, frame.len() - HEAD_LEN);
            assert_eq!(Control::parse(kind, fin, &frame.slice(HEAD_LEN..)).unwrap(), expected);
        }
        let data = data_head(9, true, 300);
        assert_eq!(
            head(&data),
            Ok(Head::Data {
                stream: 9,
                fin: true,
                length: 300
            })
        );
    }
}
