//! Values that may hold a password.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A URL that may hold a password. It prints and serializes with the password masked.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct Secret(String);

impl Secret {
    /// The value with its password: for the call that connects, and nothing else.
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// Whether nothing is set.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl From<&str> for Secret {
    fn from(value: &str) -> Self {
        Secret(value.to_owned())
    }
}

impl fmt::Display for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&redact(&self.0))
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", redact(&self.0))
    }
}

impl Serialize for Secret {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Secret {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer).map(Secret)
    }
}

const MASK: &str = "***";

/// `text` with the passwords of URLs in it masked.
///
/// It rather masks too much: a password may hold unescaped `/`, `@` or blanks, so everything from the colon of the
/// user part to the last `@` goes.
pub fn redact(text: &str) -> String {
    let mut out = text.to_owned();
    if let Some(scheme) = out.find("://") {
        let start = scheme + 3;
        let at = out.rfind('@').filter(|at| *at >= start);
        let end = at.unwrap_or(out.len());
        match out[start..end].find(':') {
            Some(colon) if at.is_some() => out.replace_range(start + colon + 1..end, MASK),
            // `redis://:password` with the host forgotten; `host:port` stays readable.
            Some(0) => out.replace_range(start + 1..end, MASK),
            _ => {}
        }
    }
    let mut from = 0;
    while let Some(found) = out[from..].find("password=") {
        let start = from + found + "password=".len();
        let end = out[start..].find(['&', ' ', '"']).map_or(out.len(), |end| start + end);
        out.replace_range(start..end, MASK);
        from = start + MASK.len();
    }
    out
}
