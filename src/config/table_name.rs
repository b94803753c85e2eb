//! Names of tables, as SQL spells them.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::sql::quote_ident;

/// A schema-qualified table name.
///
/// It reads as SQL does: `shop.orders`, `orders` (in `public`), `"My Schema"."T"`. What is not quoted is folded to
/// lower case.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct TableName {
    /// The schema, unquoted.
    pub schema: String,
    /// The table, unquoted.
    pub name: String,
}

impl TableName {
    /// Whether it is the default, which no text reads as.
    pub fn is_empty(&self) -> bool {
        self.name.is_empty()
    }

    /// The name for use in SQL, always quoted.
    pub fn sql(&self) -> String {
        format!("{}.{}", quote_ident(&self.schema), quote_ident(&self.name))
    }
}

/// The text is no table name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not a table name of the form schema.table, table or \"Schema\".\"Table\": {0}")]
pub struct ParseTableNameError(String);

impl FromStr for TableName {
    type Err = ParseTableNameError;

    fn from_str(text: &str) -> Result<Self, ParseTableNameError> {
        let parse = || {
            let (first, rest) = identifier(text)?;
            if rest.is_empty() {
                return Some(TableName { schema: "public".to_owned(), name: first });
            }
            let (name, rest) = identifier(rest.strip_prefix('.')?)?;
            rest.is_empty().then_some(TableName { schema: first, name })
        };
        parse().ok_or_else(|| ParseTableNameError(text.to_owned()))
    }
}

/// One identifier from the beginning of `text`, and what follows it.
fn identifier(text: &str) -> Option<(String, &str)> {
    if let Some(quoted) = text.strip_prefix('"') {
        let mut name = String::new();
        let mut rest = quoted;
        loop {
            let (part, after) = rest.split_once('"')?;
            name.push_str(part);
            match after.strip_prefix('"') {
                Some(more) => {
                    name.push('"');
                    rest = more;
                }
                None => return (!name.is_empty() && !name.contains('\0')).then_some((name, after)),
            }
        }
    }
    let end = text.find(|c: char| !is_plain(c) && !c.is_ascii_digit() && c != '$').unwrap_or(text.len());
    let (name, rest) = text.split_at(end);
    name.starts_with(is_plain).then(|| (name.to_ascii_lowercase(), rest))
}

fn is_plain(c: char) -> bool {
    c.is_ascii_alphabetic() || c == '_' || !c.is_ascii()
}

impl fmt::Display for TableName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, part) in [&self.schema, &self.name].into_iter().enumerate() {
            let dot = if i == 0 { "" } else { "." };
            let bare = part.starts_with(|c: char| c.is_ascii_lowercase() || c == '_')
                && part.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_');
            if bare { write!(f, "{dot}{part}")? } else { write!(f, "{dot}{}", quote_ident(part))? }
        }
        Ok(())
    }
}

impl Serialize for TableName {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for TableName {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}
