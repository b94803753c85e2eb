//! Which entries are filled before anybody reads them.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::units;
pub use crate::entity::warming::{MAX_RATE, WarmOrder};

/// How an entity is warmed.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct WarmConfig {
    /// When it begins by itself.
    pub on: Vec<WarmOn>,
    /// How long after its end it begins again; `None`: never.
    #[serde(skip_serializing_if = "Option::is_none", with = "units::optional_duration")]
    pub every: Option<Duration>,
    /// Which of the table's rows: a condition in SQL over its columns. All of them without one.
    #[serde(rename = "where", skip_serializing_if = "Option::is_none")]
    pub condition: Option<String>,
    /// Which keys, instead: a SELECT that gives them, in the order of the key's columns.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub keys: Option<String>,
    /// In which order of the keys.
    pub order: WarmOrder,
    /// Keys at most.
    pub limit: u64,
    /// Keys in a second at most.
    pub rate: u32,
}

impl Default for WarmConfig {
    fn default() -> Self {
        WarmConfig {
            on: Vec::new(),
            every: None,
            condition: None,
            keys: None,
            order: WarmOrder::Asc,
            limit: 10_000,
            rate: 1000,
        }
    }
}

/// When an entity is warmed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum WarmOn {
    /// When this instance begins to apply changes.
    Start,
    /// After a new generation of the entity.
    Generation,
}

impl WarmConfig {
    /// What is wrong with it, as that of an entity of a query or of a table: the field and why.
    pub(super) fn violations(&self, of_query: bool) -> Vec<(&'static str, String)> {
        let mut found = Vec::new();
        if of_query && self.condition.is_some() {
            found.push(("warm.where", "is of a table's rows, and this is a query: name the keys by warm.keys".into()));
        } else if of_query && self.keys.is_none() {
            found.push(("warm.keys", "is required with a query: a SELECT that gives the keys to warm".into()));
        }
        if self.condition.is_some() && self.keys.is_some() {
            found.push(("warm.keys", "does not go together with warm.where: put the condition into the query".into()));
        }
        for (field, text) in [("warm.where", &self.condition), ("warm.keys", &self.keys)] {
            if text.as_ref().is_some_and(|text| text.trim().is_empty()) {
                found.push((field, "is empty: leave it out".into()));
            }
            if text.as_ref().is_some_and(|text| text.contains('\0')) {
                found.push((field, "has a NUL character, which SQL has not".into()));
            }
        }
        if self.every.is_some_and(|every| every < Duration::from_secs(1)) {
            found.push(("warm.every", "must be at least 1s".into()));
        }
        if self.limit == 0 {
            found.push(("warm.limit", "must be at least 1".into()));
        }
        if !(1..=MAX_RATE).contains(&self.rate) {
            found.push(("warm.rate", format!("must be from 1 to {MAX_RATE}")));
        }
        found
    }
}
