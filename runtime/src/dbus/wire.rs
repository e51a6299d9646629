//! Messages of D-Bus as bytes: of the types those that systemd's unit properties have, in this machine's byte order.
//!
//! Reading never goes past what is there, whatever a message says of its lengths. Follows the D-Bus specification, "Message
//! Protocol".

use anyhow::{Context, Result, bail, ensure};

/// The sign of this machine's byte order in a message.
pub(super) const ENDIAN: u8 = if cfg!(target_endian = "little") { b'l' } else { b'B' };

/// Message types.
const CALL: u8 = 1;
pub(super) const REPLY: u8 = 2;
pub(super) const ERROR: u8 = 3;
pub(super) const SIGNAL: u8 = 4;

/// Header fields.
const PATH: u8 = 1;
const INTERFACE: u8 = 2;
const MEMBER: u8 = 3;
const ERROR_NAME: u8 = 4;
const REPLY_SERIAL: u8 = 5;
const DESTINATION: u8 = 6;
const SIGNATURE: u8 = 8;

/// A value of a property.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// `b`
    Bool(bool),
    /// `i`
    I32(i32),
    /// `u`
    U32(u32),
    /// `x`
    I64(i64),
    /// `t`
    U64(u64),
    /// `d`
    F64(f64),
    /// `s`
    Text(String),
    /// `ay`
    Bytes(Vec<u8>),
    /// `au`
    U32s(Vec<u32>),
    /// `as`
    Texts(Vec<String>),
    /// `a(ss)`
    Pairs(Vec<(String, String)>),
}

impl Value {
    fn signature(&self) -> &'static str {
        match self {
            Value::Bool(_) => "b",
            Value::I32(_) => "i",
            Value::U32(_) => "u",
            Value::I64(_) => "x",
            Value::U64(_) => "t",
            Value::F64(_) => "d",
            Value::Text(_) => "s",
            Value::Bytes(_) => "ay",
            Value::U32s(_) => "au",
            Value::Texts(_) => "as",
            Value::Pairs(_) => "a(ss)",
        }
    }
}

/// What is called: object, interface and method of a service.
#[derive(Clone, Copy, Debug)]
pub struct Method<'a> {
    /// The service's bus name.
    pub destination: &'a str,
    /// The object.
    pub path: &'a str,
    /// The interface.
    pub interface: &'a str,
    /// The method.
    pub member: &'a str,
}

/// The arguments of a call, marshalled one after the other.
#[derive(Debug, Default)]
pub struct Body {
    signature: String,
    bytes: Vec<u8>,
}

impl Body {
    /// `s`
    #[must_use]
    pub fn text(mut self, text: &str) -> Body {
        self.signature.push('s');
        put_text(&mut self.bytes, text);
        self
    }

    /// `b`
    #[must_use]
    pub fn flag(mut self, flag: bool) -> Body {
        self.signature.push('b');
        put_u32(&mut self.bytes, flag.into());
        self
    }

    /// `a(sv)`
    #[must_use]
    pub fn properties(mut self, properties: &[(String, Value)]) -> Body {
        self.signature.push_str("a(sv)");
        put_array(&mut self.bytes, 8, properties, |out, (name, value)| {
            align(out, 8);
            put_text(out, name);
            put_variant(out, value);
        });
        self
    }

    /// `a(sa(sv))`, empty: StartTransientUnit's auxiliary units.
    #[must_use]
    pub fn no_units(mut self) -> Body {
        self.signature.push_str("a(sa(sv))");
        put_array(&mut self.bytes, 8, &[] as &[()], |_, ()| {});
        self
    }
}

/// A message that has arrived.
#[derive(Debug, Default)]
pub struct Message {
    pub(super) kind: u8,
    pub(super) reply_to: u32,
    /// The interface of a signal.
    pub interface: String,
    /// The signal's name.
    pub member: String,
    pub(super) error: String,
    signature: String,
    pub(super) body: Vec<u8>,
}

impl Message {
    /// The arguments that are numbers (`u`) and texts (`s`, `o`), or a variant of those, all as text.
    pub fn arguments(&self) -> Result<Vec<String>> {
        let mut reader = Reader::new(&self.body);
        reader.texts(&self.signature)
    }
}

fn align(out: &mut Vec<u8>, to: usize) {
    out.resize(out.len().next_multiple_of(to), 0);
}

fn length(length: usize) -> u32 {
    u32::try_from(length).expect("what we send is short")
}

fn put_u32(out: &mut Vec<u8>, number: u32) {
    align(out, 4);
    out.extend(number.to_ne_bytes());
}

fn put_text(out: &mut Vec<u8>, text: &str) {
    put_u32(out, length(text.len()));
    out.extend(text.as_bytes());
    out.push(0);
}

fn put_signature(out: &mut Vec<u8>, signature: &str) {
    out.push(u8::try_from(signature.len()).expect("our signatures are short"));
    out.extend(signature.as_bytes());
    out.push(0);
}

/// An array: its length in bytes, from the first element on, stands before the padding that aligns that.
fn put_array<T>(out: &mut Vec<u8>, alignment: usize, elements: &[T], put: impl Fn(&mut Vec<u8>, &T)) {
    put_u32(out, 0);
    let at = out.len();
    align(out, alignment);
    let start = out.len();
    elements.iter().for_each(|element| put(out, element));
    let bytes = length(out.len() - start).to_ne_bytes();
    out[at - 4..at].copy_from_slice(&bytes);
}

fn put_variant(out: &mut Vec<u8>, value: &Value) {
    put_signature(out, value.signature());
    let put_eight = |out: &mut Vec<u8>, bytes: [u8; 8]| {
        align(out, 8);
        out.extend(bytes);
    };
    match value {
        Value::Bool(flag) => put_u32(out, (*flag).into()),
        Value::I32(number) => put_u32(out, number.cast_unsigned()),
        Value::U32(number) => put_u32(out, *number),
        Value::I64(number) => put_eight(out, number.to_ne_bytes()),
        Value::U64(number) => put_eight(out, number.to_ne_bytes()),
        Value::F64(number) => put_eight(out, number.to_ne_bytes()),
        Value::Text(text) => put_text(out, text),
        Value::Bytes(bytes) => put_array(out, 1, bytes, |out, byte| out.push(*byte)),
        Value::U32s(numbers) => put_array(out, 4, numbers, |out, number| put_u32(out, *number)),
        Value::Texts(texts) => put_array(out, 4, texts, |out, text| put_text(out, text)),
        Value::Pairs(pairs) => put_array(out, 8, pairs, |out, (a, b)| {
            align(out, 8);
            put_text(out, a);
            put_text(out, b);
        }),
    }
}

/// A method call as bytes.
pub(super) fn marshal(serial: u32, method: Method<'_>, body: &Body) -> Vec<u8> {
    // Flags: none; version of the protocol: 1.
    let mut out = vec![ENDIAN, CALL, 0, 1];
    put_u32(&mut out, length(body.bytes.len()));
    put_u32(&mut out, serial);
    let fields = [
        (PATH, "o", method.path),
        (DESTINATION, "s", method.destination),
        (INTERFACE, "s", method.interface),
        (MEMBER, "s", method.member),
        (SIGNATURE, "g", &body.signature),
    ];
    // A signature that is empty is left out.
    let fields = &fields[..if body.signature.is_empty() { 4 } else { 5 }];
    put_array(&mut out, 8, fields, |out, (code, kind, value)| {
        align(out, 8);
        out.push(*code);
        put_signature(out, kind);
        if *code == SIGNATURE {
            put_signature(out, value);
        } else {
            put_text(out, value);
        }
    });
    align(&mut out, 8);
    out.extend(&body.bytes);
    out
}

/// Reads what [`put_u32`] and its like have written, on the other side; never past the end.
pub(super) struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Reader { bytes, at: 0 }
    }

    fn take(&mut self, length: usize) -> Result<&'a [u8]> {
        let end = self.at.checked_add(length).context("a message that ends too early")?;
        let taken = self.bytes.get(self.at..end).context("a message that ends too early")?;
        self.at = end;
        Ok(taken)
    }

    fn align(&mut self, to: usize) {
        self.at = self.at.next_multiple_of(to);
    }

    fn u32(&mut self) -> Result<u32> {
        self.align(4);
        let bytes = self.take(4)?.try_into().expect("four bytes were taken");
        Ok(u32::from_ne_bytes(bytes))
    }

    fn string(&mut self, length: usize) -> Result<String> {
        let bytes = self.take(length)?;
        self.take(1)?;
        String::from_utf8(bytes.to_vec()).context("a text that is none")
    }

    fn text(&mut self) -> Result<String> {
        let length = self.u32()? as usize;
        self.string(length)
    }

    fn signature(&mut self) -> Result<String> {
        let length = self.take(1)?[0];
        self.string(length.into())
    }

    /// Values of these types as text, up to the first type that is not known here.
    fn texts(&mut self, signature: &str) -> Result<Vec<String>> {
        let mut texts = Vec::new();
        for kind in signature.chars() {
            match kind {
                's' | 'o' => texts.push(self.text()?),
                'u' => texts.push(self.u32()?.to_string()),
                'v' => {
                    let inner = self.signature()?;
                    ensure!(!inner.contains('v'), "a variant of type {inner:?}");
                    texts.extend(self.texts(&inner)?);
                }
                _ => break,
            }
        }
        Ok(texts)
    }

    /// The header's fields: an array of (number, variant).
    pub(super) fn fields(&mut self, message: &mut Message) -> Result<()> {
        while self.at < self.bytes.len() {
            self.align(8);
            let code = self.take(1)?[0];
            match &*self.signature()? {
                "u" => {
                    let number = self.u32()?;
                    if code == REPLY_SERIAL {
                        message.reply_to = number;
                    }
                }
                "g" => message.signature = self.signature()?,
                "s" | "o" => {
                    let text = self.text()?;
                    match code {
                        INTERFACE => message.interface = text,
                        MEMBER => message.member = text,
                        ERROR_NAME => message.error = text,
                        _ => {}
                    }
                }
                other => bail!("a header field of type {other:?}"),
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The bytes that the specification's rules give, worked out by hand.
    #[test]
    #[cfg(target_endian = "little")]
    fn marshalling() {
        let properties = [("P".to_owned(), Value::U64(1)), ("Q".to_owned(), Value::Bool(true))];
        let body = Body::default().text("ab").flag(true).properties(&properties);
        assert_eq!(body.signature, "sba(sv)");
        #[rustfmt::skip]
        let expected = [
            2, 0, 0, 0, b'a', b'b', 0, 0,
            1, 0, 0, 0, 32, 0, 0, 0,
            1, 0, 0, 0, b'P', 0, 1, b't', 0, 0, 0, 0, 0, 0, 0, 0,
        ];
        assert_eq!(body.bytes[..12], expected[..12]);
        assert_eq!(body.bytes[16..28], expected[16..28]);
        let array = u32::from_ne_bytes(body.bytes[12..16].try_into().unwrap()) as usize;
        assert_eq!(array, body.bytes.len() - 16);
    }

    #[test]
    fn an_empty_array_is_aligned_all_the_same() {
        let body = Body::default().text("a").no_units();
        assert_eq!(body.bytes.len(), 16);
        assert_eq!(body.bytes[8..12], [0; 4]);
    }

    #[test]
    fn what_is_cut_off_is_an_error() {
        let whole = Body::default().text("unit").text("done");
        assert_eq!(Reader::new(&whole.bytes).texts("ss").unwrap(), ["unit", "done"]);
        for end in 0..whole.bytes.len() {
            assert!(Reader::new(&whole.bytes[..end]).texts("ss").is_err(), "{end}");
        }
        let long = [0xff; 8];
        assert!(Reader::new(&long).texts("s").is_err());
    }

    #[test]
    fn a_call_reads_back_as_what_it_is() {
        let method = Method {
            destination: "a.b",
            path: "/c",
            interface: "d.e",
            member: "F",
        };
        let bytes = marshal(7, method, &Body::default().text("x"));
        let fields = u32::from_ne_bytes(bytes[12..16].try_into().unwrap()) as usize;
        let mut message = Message::default();
        Reader::new(&bytes[16..16 + fields]).fields(&mut message).unwrap();
        assert_eq!(
            (&*message.interface, &*message.member, &*message.signature),
            ("d.e", "F", "s")
        );
        message.body = bytes[(16 + fields).next_multiple_of(8)..].to_vec();
        assert_eq!(message.arguments().unwrap(), ["x"]);
    }
}
