//! Durations, sizes and addresses as TOML spells them: always strings with a unit, so that no number is ambiguous.

use std::fmt;
use std::marker::PhantomData;

use serde::Deserializer;
use serde::de::{Error, Visitor};

/// Bytes of a mebibyte.
pub(super) const MIB: u64 = 1 << 20;

/// Reads a string, with an explanation for whoever wrote a bare number.
struct Unit<T> {
    expected: &'static str,
    parse: fn(&str) -> Option<T>,
    kind: PhantomData<T>,
}

impl<T> Visitor<'_> for Unit<T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.expected)
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<T, E> {
        (self.parse)(text).ok_or_else(|| E::custom(format!("{text:?} is not {}", self.expected)))
    }
}

fn read<'de, D: Deserializer<'de>, T>(
    deserializer: D,
    expected: &'static str,
    parse: fn(&str) -> Option<T>,
) -> Result<T, D::Error> {
    deserializer.deserialize_str(Unit { expected, parse, kind: PhantomData })
}

/// `std::time::Duration` as `"1h 30m"`, `"200ms"`.
pub(crate) mod duration {
    use std::time::Duration;

    use serde::{Deserializer, Serializer};

    const EXPECTED: &str = "a duration with a unit, such as \"500ms\", \"10s\", \"5m\" or \"1h\"";

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
        super::read(deserializer, EXPECTED, |text| humantime::parse_duration(text).ok())
    }

    pub(crate) fn serialize<S: Serializer>(value: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&humantime::format_duration(*value))
    }
}

/// A duration that may be left out.
pub(crate) mod optional_duration {
    use std::time::Duration;

    use serde::{Deserializer, Serializer};

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Duration>, D::Error> {
        super::duration::deserialize(deserializer).map(Some)
    }

    pub(crate) fn serialize<S: Serializer>(value: &Option<Duration>, serializer: S) -> Result<S::Ok, S::Error> {
        match value {
            Some(value) => super::duration::serialize(value, serializer),
            None => serializer.serialize_none(),
        }
    }
}

/// A number of bytes as `"256MiB"`, `"64kB"`.
pub(crate) mod size {
    use bytesize::ByteSize;
    use serde::{Deserializer, Serializer};

    const EXPECTED: &str = "a size with a unit, such as \"64KiB\", \"256MiB\" or \"2GiB\"";

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
        super::read(deserializer, EXPECTED, |text| {
            let unit = text.ends_with(|c: char| c.is_ascii_alphabetic());
            unit.then(|| text.parse().ok().map(|ByteSize(bytes)| bytes)).flatten()
        })
    }

    pub(crate) fn serialize<S: Serializer>(value: &u64, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&ByteSize(*value))
    }
}

/// A number of bytes that may be left out.
pub(crate) mod optional_size {
    use serde::{Deserializer, Serializer};

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u64>, D::Error> {
        super::size::deserialize(deserializer).map(Some)
    }

    pub(crate) fn serialize<S: Serializer>(value: &Option<u64>, serializer: S) -> Result<S::Ok, S::Error> {
        match value {
            Some(value) => super::size::serialize(value, serializer),
            None => serializer.serialize_none(),
        }
    }
}

/// An address to listen on.
pub(crate) mod address {
    use std::net::SocketAddr;

    use serde::{Deserializer, Serializer};

    const EXPECTED: &str = "an address and port, such as \"127.0.0.1:8080\", \"[::]:8080\" or \"0.0.0.0:0\"";

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<SocketAddr, D::Error> {
        super::read(deserializer, EXPECTED, |text| text.parse().ok())
    }

    pub(crate) fn serialize<S: Serializer>(value: &SocketAddr, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(value)
    }
}
