//! The publications that are streamed: one name, or a list of names.

use std::collections::HashSet;
use std::fmt;

use serde::de::{SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// One publication or several; what any of them publishes is streamed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Publications(Vec<String>);

impl Publications {
    /// Their names, in the order of the configuration.
    pub fn names(&self) -> &[String] {
        &self.0
    }

    /// What keeps these names from being used, if anything does.
    pub(super) fn violation(&self) -> Option<String> {
        let distinct: HashSet<&String> = self.0.iter().collect();
        if self.0.is_empty() || distinct.len() < self.0.len() {
            return Some("must name at least one publication, and none twice".to_owned());
        }
        let bad = self.0.iter().find(|name| !(1..=63).contains(&name.len()) || name.contains('\0'))?;
        Some(format!("{bad:?} must be 1 to 63 bytes long"))
    }
}

impl<const N: usize> From<[&str; N]> for Publications {
    fn from(names: [&str; N]) -> Self {
        Publications(names.map(str::to_owned).into())
    }
}

impl fmt::Display for Publications {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.join(", "))
    }
}

impl Serialize for Publications {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match &self.0[..] {
            [one] => serializer.serialize_str(one),
            several => several.serialize(serializer),
        }
    }
}

impl<'de> Deserialize<'de> for Publications {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Names;
        impl<'de> Visitor<'de> for Names {
            type Value = Publications;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a publication's name or a list of names")
            }

            fn visit_str<E>(self, name: &str) -> Result<Publications, E> {
                Ok(Publications(vec![name.to_owned()]))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Publications, A::Error> {
                let mut names = Vec::new();
                while let Some(name) = seq.next_element()? {
                    names.push(name);
                }
                Ok(Publications(names))
            }
        }
        deserializer.deserialize_any(Names)
    }
}
