//! `[[entity]]`: the kinds of cached things.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::depends_on::{DependsOn, Pairs};
use super::table_name::TableName;
use super::units;
use super::warm::WarmConfig;
use crate::entity::lifetime::Lifetime;
use crate::entity::query::{Query, ResultShape, Rule, Via};
use crate::entity::{DEFAULT_TTL, Definition, OnChange, PastBound};
use crate::void::tag::Template;

/// A kind of cached thing: the rows of one table, or the results of a query.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct EntityConfig {
    /// The name in URLs, keys and metrics: `[a-z][a-z0-9_-]*`, unique.
    pub name: String,
    /// The table; empty where there is a query.
    #[serde(default, skip_serializing_if = "TableName::is_empty")]
    pub table: TableName,
    /// What a change does to an entry; `None`: see [`EntityConfig::on_change()`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub on_change: Option<OnChange>,
    /// How long an entry may live, in both tiers together; changes of the row do not prolong its stay in L2.
    #[serde(default = "default_ttl", with = "units::duration")]
    pub ttl: Duration,
    /// The largest part by which lives are shortened by chance, 0 to 0.5.
    #[serde(default = "default_jitter")]
    pub ttl_jitter: f64,
    /// A column of the value that says when an entry is due, if that is sooner than its ttl: a time, or a number of seconds
    /// or an interval from when the entry was written.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttl_column: Option<String>,
    /// How long the entry of an absent row may live; `None`: as long as others.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "units::optional_duration")]
    pub negative_ttl: Option<Duration>,
    /// For how long past its ttl an entry is still served, marked as stale, while it is filled anew; `None`: not at all.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "units::optional_duration")]
    pub stale_while_revalidate: Option<Duration>,
    /// An entry that is read in this last part of its life is filled anew before it is due; `None`: none is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refresh_ahead: Option<f64>,
    /// Values larger than this are compressed in L2; `None`: none are.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "units::optional_size")]
    pub compress_above: Option<u64>,
    /// A part of L1 of its own, of this size, beside [`super::L1Config::max_size`]; `None`: it shares that with others.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "units::optional_size")]
    pub l1_size: Option<u64>,
    /// The columns of the value, by their exact names; `None`: all of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub columns: Option<Vec<String>>,
    /// The columns of the key, by their exact names; `None`: the primary key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<Vec<String>>,
    /// Whether changes also write entries that nobody has read.
    #[serde(default)]
    pub populate: bool,
    /// Tags that its entries bear, with columns in braces: `tenant:{tenant_id}`. See [`crate::void::tag`].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tags: Vec<String>,
    /// Whether every reader may see every row of a table with row-level security: neither the stream nor fills obey its
    /// policies. Else such a table is refused.
    #[serde(default)]
    pub bypass_rls: bool,
    /// As [`super::FreshnessConfig::max_staleness`]; `None`: as it is there.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "units::optional_duration")]
    pub max_staleness: Option<Duration>,
    /// As [`super::FreshnessConfig::past_max_staleness`]; `None`: as it is there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub past_max_staleness: Option<PastBound>,
    /// The SELECT whose results are cached, with `$1` and so on for `params`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub query: Option<String>,
    /// What a query's value is; `None`: an array.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shape: Option<ResultShape>,
    /// The query's parameters with their types, `$1` first: they are the key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub params: Option<Pairs>,
    /// The tables that the query's results depend on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub depends_on: Option<Vec<DependsOn>>,
    /// How it is warmed; `None`: only on demand.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub warm: Option<WarmConfig>,
    /// How many of the keys that are read most are remembered, and warmed first; 0: none.
    #[serde(default = "default_hot_set")]
    pub hot_set: usize,
}

impl EntityConfig {
    /// What an entity is made of that is configured so.
    pub fn definition(&self) -> Definition {
        Definition {
            on_change: self.on_change(),
            query: self.query(),
            ttl: self.ttl,
            lifetime: self.lifetime(),
            compress_above: self.compress_above.map(|size| usize::try_from(size).unwrap_or(usize::MAX)),
            populate: self.populate,
            tags: self.templates(),
            ..Definition::rows(&self.name, &self.table.schema, &self.table.name)
        }
    }

    /// What its tags are made of; those that are malformed, which validation refuses, are left out.
    pub fn templates(&self) -> Vec<Template> {
        self.tags.iter().filter_map(|tag| tag.parse().ok()).collect()
    }

    /// What a change does: as configured, or `refresh` for rows and `invalidate` for queries.
    pub fn on_change(&self) -> OnChange {
        let silent = if self.query.is_some() { OnChange::Invalidate } else { OnChange::Refresh };
        self.on_change.unwrap_or(silent)
    }

    /// What its entries are the results of; `None` where they are rows. It has been validated.
    pub fn query(&self) -> Option<Query> {
        let sql = statement(self.query.as_ref()?).to_owned();
        let params = self.params.clone().unwrap_or_default();
        let rule = |depends: &DependsOn| {
            let via = match (&depends.key, &depends.lookup) {
                (Some(key), _) => {
                    Via::Key(params.names().filter_map(|param| key.get(param)).map(str::to_owned).collect())
                }
                (None, Some(lookup)) => {
                    Via::Lookup { sql: statement(lookup).to_owned(), from: depends.from.clone().unwrap_or_default() }
                }
                (None, None) => Via::All,
            };
            Rule { schema: depends.table.schema.clone(), table: depends.table.name.clone(), via }
        };
        let rules = self.depends_on.iter().flatten().map(rule).collect();
        Some(Query { sql, shape: self.shape.unwrap_or_default(), rules })
    }

    /// The tables that it is made of.
    pub fn tables(&self) -> impl Iterator<Item = &TableName> {
        let own = self.query.is_none().then_some(&self.table);
        own.into_iter().chain(self.depends_on.iter().flatten().map(|depends| &depends.table))
    }

    /// What it says of entries' lives beside the ttl.
    pub fn lifetime(&self) -> Lifetime {
        Lifetime {
            negative_ttl: self.negative_ttl,
            jitter: self.ttl_jitter,
            column: self.ttl_column.clone(),
            stale: self.stale_while_revalidate.unwrap_or_default(),
            refresh_ahead: self.refresh_ahead.unwrap_or_default(),
        }
    }
}

fn default_jitter() -> f64 {
    Lifetime::default().jitter
}

fn default_hot_set() -> usize {
    1000
}

fn default_ttl() -> Duration {
    DEFAULT_TTL
}

/// A statement without the semicolon at its end: it becomes part of a larger one.
pub(super) fn statement(sql: &str) -> &str {
    sql.trim().trim_end_matches(|c: char| c == ';' || c.is_whitespace())
}
