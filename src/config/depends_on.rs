//! The tables that the results of a query depend on.

use std::fmt;

use serde::de::{MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::table_name::TableName;

/// Names with a text each, in the order of the file: the first of `params` is `$1`.
///
/// The order is that of the file because toml is built with `preserve_order`, and because what it hands on is kept as it
/// comes.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Pairs(pub Vec<(String, String)>);

impl Pairs {
    /// The names.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(|(name, _)| name.as_str())
    }

    pub(super) fn get(&self, wanted: &str) -> Option<&str> {
        self.0.iter().find(|(name, _)| name == wanted).map(|(_, text)| text.as_str())
    }
}

impl Serialize for Pairs {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|(name, text)| (name, text)))
    }
}

impl<'de> Deserialize<'de> for Pairs {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Reader;
        impl<'de> Visitor<'de> for Reader {
            type Value = Pairs;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a table of names with a text each, such as { customer_id = \"bigint\" }")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut pairs = Vec::new();
                while let Some(pair) = map.next_entry()? {
                    pairs.push(pair);
                }
                Ok(Pairs(pairs))
            }
        }
        deserializer.deserialize_map(Reader)
    }
}

/// A table that a query's results depend on, and which of them a change of its rows voids: exactly one of `key`, `lookup`
/// and `all` is set.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(
    deny_unknown_fields,
    expecting = "a table with what a change there voids, such as { table = \"public.orders\", key = { customer_id = \"customer_id\" } }"
)]
pub struct DependsOn {
    /// The table.
    pub table: TableName,
    /// For each parameter the row's column that holds its value.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<Pairs>,
    /// A SELECT that gives the keys, one a row, its columns in the order of the parameters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lookup: Option<String>,
    /// The row's columns that the lookup is given as `$1` and so on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<Vec<String>>,
    /// Whether all entries are voided.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub all: Option<bool>,
}
