//! JSON from strangers: read into memory only after it was counted.
//!
//! Three bytes, `{},`, can become a structure of a hundred: the 4 MiB that a config may have became 145 MB as its history,
//! and stayed in memory with the image. The number of values bounds what any document can become.

use std::fmt;

use serde::de::{DeserializeSeed, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};

/// Most values of a document, those within others included. An index of 1024 entries with all that is usual has 30,000.
const MAX_VALUES: u32 = 100_000;

/// Reads a document.
pub(super) fn parse<'a, T: Deserialize<'a>>(content: &'a [u8]) -> serde_json::Result<T> {
    let mut values = 0;
    let mut document = serde_json::Deserializer::from_slice(content);
    Count(&mut values).deserialize(&mut document)?;
    serde_json::from_slice(content)
}

/// Counts a value and those in it, and keeps none.
struct Count<'a>(&'a mut u32);

impl<'de> DeserializeSeed<'de> for Count<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        *self.0 += 1;
        if *self.0 > MAX_VALUES {
            return Err(D::Error::custom(format_args!("more than {MAX_VALUES} values")));
        }
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Count<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<(), A::Error> {
        while list.next_element_seed(Count(self.0))?.is_some() {}
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<(), A::Error> {
        while members.next_key::<IgnoredAny>()?.is_some() {
            members.next_value_seed(Count(self.0))?;
        }
        Ok(())
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_bool<E>(self, _: bool) -> Result<(), E> {
        Ok(())
    }

    fn visit_i64<E>(self, _: i64) -> Result<(), E> {
        Ok(())
    }

    fn visit_u64<E>(self, _: u64) -> Result<(), E> {
        Ok(())
    }

    fn visit_f64<E>(self, _: f64) -> Result<(), E> {
        Ok(())
    }

    fn visit_str<E>(self, _: &str) -> Result<(), E> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    #[test]
    fn values_are_counted_wherever_they_are() {
        let list = |count: usize, value: &str| format!("[{}{value}]", format!("{value},").repeat(count - 1));
        let most = 99_999;
        for (text, is_read) in [
            (r#"{"a":[1,-1,0.5,null,true,"b",{"c":{}}]}"#.to_owned(), true),
            (list(most, "1"), true),
            (list(most + 1, "1"), false),
            (list(most + 1, "{}"), false),
            (list(most / 2, "[0]"), true),
            (list(most / 2 + 1, "[0]"), false),
            (format!(r#"{{"a":{}}}"#, list(most, r#""""#)), false),
        ] {
            let read = parse::<Value>(text.as_bytes()).map_err(|error| error.to_string());
            assert_eq!(read.is_ok(), is_read, "{text:.40}");
            assert!(read.err().is_none_or(|error| error.contains("more than 100000 values")));
        }
        assert!(parse::<Value>(b"[1").is_err());
        assert!(parse::<Value>(&b"[".repeat(100_000)).is_err(), "deep");
    }
}
