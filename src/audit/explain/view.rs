//! An explanation, as JSON and in words.

use std::fmt;
use std::time::Duration;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::audit::Tier;
use crate::audit::check::Held;
use crate::audit::finding::{Labels, RowLabels};
use crate::lsn::Lsn;

/// How what a tier holds goes together with the row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Case {
    /// It holds nothing.
    Nothing,
    /// Somebody is filling it.
    Lease,
    /// Something stands there that walcache did not write.
    Foreign,
    /// It holds an entry that is not served.
    Unservable,
    /// It holds what Postgres holds.
    Agrees,
    /// It holds an older image, and replication has not come to the change yet.
    OnItsWay,
    /// It changed while it was looked at.
    Changed,
    /// It differs, and nothing is on its way that would explain it.
    Differs,
    /// It could not be compared.
    Unknown,
}

/// The fence of L2 at the moment when the entry was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct FenceView {
    /// Who may write.
    pub epoch: Option<u64>,
    /// The high-water mark.
    pub hw: Option<Lsn>,
    /// Up to where everything has been written.
    pub done: Option<Lsn>,
    /// The generation of all entities.
    pub generation: Option<u64>,
    /// The entity's own generation.
    pub entity_generation: Option<u64>,
}

/// What one tier holds.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct TierView {
    /// The verdict.
    pub case: Case,
    /// Why an entry is not served, or could not be compared.
    pub why: Option<String>,
    /// The entry's labels.
    pub labels: Option<Labels>,
    /// Whether a large transaction wrote it in pieces.
    pub split: bool,
    /// The value; `null` says that the row is absent.
    pub value: Option<Box<RawValue>>,
    /// How long what stands there still lives, in seconds.
    pub life_seconds: Option<f64>,
    /// For how long the entry is past its ttl, in seconds; it may still be served, marked as stale.
    #[serde(default)]
    pub overdue_seconds: Option<f64>,
    /// L2: whether the value is stored compressed.
    #[serde(default)]
    pub compressed: bool,
    /// L1: the last event on the entry's cell of the fence.
    pub cell: Option<Lsn>,
    /// L2: the fence.
    pub fence: Option<FenceView>,
    /// L2: whether it is read at all.
    pub trusted: Option<bool>,
    /// The tags that the entry bears.
    #[serde(default)]
    pub tags: Vec<String>,
}

/// What Postgres holds.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct RowView {
    /// The row's labels; `None` if it could not be read.
    pub labels: Option<RowLabels>,
    /// The value; `null` says that there is no row.
    pub value: Option<Box<RawValue>>,
    /// Why it could not be read.
    pub error: Option<String>,
}

/// One entry explained.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Explanation {
    /// The entity's name.
    pub entity: String,
    /// The key within the entity, as it stands in Redis.
    pub key: String,
    /// The whole key in Redis.
    pub redis_key: String,
    /// The table.
    pub table: String,
    /// The value's columns.
    pub columns: Vec<String>,
    /// Whether the entity is cached at all.
    pub servable: bool,
    /// The entity's generation.
    pub generation: u64,
    /// The watermark, before anything was looked at.
    pub applied_lsn: Lsn,
    /// How long ago the watermark was certainly current, in seconds; `None` before replication has caught up.
    pub staleness_seconds: Option<f64>,
    /// What L1 holds; `None` if there is none.
    pub l1: Option<TierView>,
    /// What L2 holds; `None` if there is none.
    pub l2: Option<TierView>,
    /// What Postgres holds.
    pub row: RowView,
    /// All of it in words.
    pub verdict: String,
}

impl TierView {
    pub(super) fn new(case: Case) -> Self {
        TierView {
            case,
            why: None,
            labels: None,
            split: false,
            value: None,
            life_seconds: None,
            overdue_seconds: None,
            compressed: false,
            cell: None,
            fence: None,
            trusted: None,
            tags: Vec::new(),
        }
    }

    pub(super) fn hold(&mut self, held: &Held, why_not: Option<String>) {
        self.labels = Some(held.labels());
        self.value = raw(held.value());
        // Until it is compared.
        self.case = if why_not.is_some() { Case::Unservable } else { Case::Unknown };
        self.why = why_not;
    }
}

pub(super) fn raw(value: Option<&Bytes>) -> Option<Box<RawValue>> {
    let text = value.map_or("null", |value| std::str::from_utf8(value).unwrap_or("null"));
    RawValue::from_string(text.to_owned()).ok()
}

/// Why nothing is served from the tiers.
pub(super) const UNFOLLOWED: &str = "the table's changes are not followed: its reads go to Postgres";

impl Explanation {
    fn tiers(&self) -> impl Iterator<Item = (Tier, &TierView)> {
        [(Tier::L1, &self.l1), (Tier::L2, &self.l2)].into_iter().filter_map(|(tier, view)| Some((tier, view.as_ref()?)))
    }

    /// Whether a tier differs from Postgres, and nothing is on its way that would explain it.
    pub fn is_wrong(&self) -> bool {
        self.tiers().any(|(_, view)| view.case == Case::Differs)
    }

    /// Whether Postgres and each tier could be looked at.
    pub fn is_settled(&self) -> bool {
        self.row.error.is_none() && self.tiers().all(|(_, view)| view.case != Case::Unknown)
    }

    pub(super) fn in_words(&self) -> String {
        let agreeing: Vec<&str> =
            self.tiers().filter(|(_, view)| view.case == Case::Agrees).map(|(tier, _)| name(tier)).collect();
        let mut sentences = Vec::new();
        match agreeing[..] {
            [] => {}
            [one] => sentences.push(format!("{one} and Postgres agree")),
            _ => sentences.push("L1, L2 and Postgres agree".to_owned()),
        }
        sentences.extend(self.tiers().filter_map(|(tier, view)| self.sentence(tier, view)));
        if let Some(error) = &self.row.error {
            sentences.push(format!("Postgres was not read: {error}"));
        }
        if !self.servable {
            sentences.push(UNFOLLOWED.to_owned());
        } else if self.staleness_seconds.is_none() {
            sentences.push("replication has not caught up since the start, so every read goes to Postgres".to_owned());
        } else if self.tiers().all(|(_, view)| matches!(view.case, Case::Nothing | Case::Foreign | Case::Unservable)) {
            sentences.push("the next read fills it from Postgres".to_owned());
        }
        sentences.join("; ")
    }

    fn sentence(&self, tier: Tier, view: &TierView) -> Option<String> {
        let tier = name(tier);
        let why = view.why.as_deref().unwrap_or("the reason is not known");
        Some(match view.case {
            Case::Agrees => return None,
            Case::Nothing => format!("{tier} holds nothing"),
            Case::Lease => {
                let life = Duration::from_secs_f64(view.life_seconds.unwrap_or_default());
                format!("a lease stands in {tier}: somebody is filling the entry, within {life:.1?} or not at all")
            }
            Case::Foreign => {
                format!("{tier} holds something at this key that walcache did not write; it counts as absent")
            }
            Case::Unservable => format!("{tier} holds an entry that is not served: {why}"),
            Case::OnItsWay if view.why.is_some() => {
                format!("{tier} holds an older image: {why}, and the entry becomes unservable when that is noticed")
            }
            Case::OnItsWay => {
                let hi = self.row.labels.map(|row| row.hi).unwrap_or_default();
                format!(
                    "{tier} holds an older image, and an event at or before {hi} is on its way: W has not reached it"
                )
            }
            Case::Changed => format!("{tier} changed each time while it was looked at: ask again"),
            Case::Differs => format!(
                "{tier} differs from Postgres and no change is on its way: this should not be; `walcache verify` repairs it"
            ),
            Case::Unknown => format!("{tier} could not be compared: {why}"),
        })
    }
}

fn name(tier: Tier) -> &'static str {
    match tier {
        Tier::L1 => "L1",
        Tier::L2 => "L2",
    }
}

impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let age = self.staleness_seconds.map_or("never current yet".into(), |s| format!("current {s:.1} s ago"));
        writeln!(f, "{}:{} (in Redis: {})", self.entity, self.key, self.redis_key)?;
        writeln!(f, "  table      {} ({})", self.table, self.columns.join(", "))?;
        writeln!(f, "  watermark  {} ({age}); generation {}", self.applied_lsn, self.generation)?;
        for (tier, view) in self.tiers() {
            view.write(f, name(tier))?;
        }
        write!(f, "  Postgres   ")?;
        match (&self.row.labels, &self.row.error) {
            (Some(row), _) => {
                writeln!(f, "hi {} etag {:016x} {}", row.hi, row.etag, shown(self.row.value.as_deref()))?;
            }
            (None, error) => writeln!(f, "not read: {}", error.as_deref().unwrap_or_default())?,
        }
        write!(f, "verdict: {}", self.verdict)
    }
}

impl TierView {
    fn write(&self, f: &mut fmt::Formatter<'_>, tier: &str) -> fmt::Result {
        let mut life = self.life_seconds.map_or(String::new(), |life| format!(" for {life:.1} s more"));
        if let Some(past) = self.overdue_seconds {
            life += &format!(", {past:.1} s past its ttl");
        }
        if self.compressed {
            life += ", compressed";
        }
        write!(f, "  {tier}         ")?;
        match (self.case, &self.labels) {
            (_, Some(l)) => {
                let (lo, split) = (if tier == "L1" { "as of" } else { "lo" }, if self.split { " split" } else { "" });
                writeln!(
                    f,
                    "{lo} {} hi {} generation {}{split} etag {:016x}{life} {}",
                    l.lo,
                    l.hi,
                    l.generation,
                    l.etag,
                    shown(self.value.as_deref())
                )?;
            }
            (Case::Lease, None) => writeln!(f, "a lease{life}")?,
            (Case::Foreign, None) => writeln!(f, "something that walcache did not write")?,
            (Case::Unknown, None) => writeln!(f, "unknown: {}", self.why.as_deref().unwrap_or_default())?,
            (_, None) => writeln!(f, "nothing")?,
        }
        if let Some(cell) = self.cell {
            writeln!(f, "             last event on its cell of the fence: {cell}")?;
        }
        if let Some(fence) = &self.fence {
            let lsn = |lsn: Option<Lsn>| lsn.map_or("none".to_owned(), |lsn| lsn.to_string());
            let number = |n: Option<u64>| n.map_or("none".to_owned(), |n| n.to_string());
            writeln!(
                f,
                "             fence: epoch {} hw {} done {} generation {} of the entity {}{}",
                number(fence.epoch),
                lsn(fence.hw),
                lsn(fence.done),
                number(fence.generation),
                number(fence.entity_generation),
                if self.trusted == Some(true) { "" } else { "; not trusted" }
            )?;
        }
        Ok(())
    }
}

/// A value for a terminal.
fn shown(value: Option<&RawValue>) -> String {
    const MOST: usize = 500;
    let text = value.map_or("null", RawValue::get);
    match text.char_indices().nth(MOST) {
        Some((end, _)) => format!("{}... ({} bytes)", &text[..end], text.len()),
        None => text.to_owned(),
    }
}
