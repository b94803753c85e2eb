//! Recording what comes through the stream, while somebody watches.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use serde::Serialize;
use serde_json::value::RawValue;
use serde_json::{Value, json};

use super::{Concerns, Recorded, Tap};
use crate::apply::lookup::Witness;
use crate::change::{Change, Relation};
use crate::entity::Entity;
use crate::lsn::Lsn;
use crate::plan::{Cause, Effect};
use crate::void::Void;

/// Events of one transaction that are recorded, and their bytes; of the rest only how many they were.
const MAX_OF_TRANSACTION: usize = 1000;
pub(super) const MAX_BYTES_OF_TRANSACTION: usize = 1 << 20;
/// Effects of one event that are told; of the rest only how many they are.
const MAX_EFFECTS: usize = 100;

/// Records one session's stream.
pub(in crate::daemon) struct Recorder {
    tap: Arc<Tap>,
    entities: Vec<Arc<Entity>>,
    /// Where the session began: what ended before it comes again, and is applied.
    begun: Lsn,
    xid: u32,
    commit_micros: i64,
    /// Of the transaction that is open: as JSON without what is known at its end only.
    events: Vec<(Concerns, String)>,
    pub(super) bytes: usize,
    left_out: u64,
}

/// A recorded event, but for its transaction.
#[derive(Serialize)]
struct Told<'a> {
    op: &'a str,
    tables: Vec<String>,
    effects: Vec<Value>,
    /// Effects that are left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    more: Option<usize>,
    /// Events of the transaction that are left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    left_out: Option<u64>,
}

impl Recorder {
    /// For a session that begins when everything up to `applied` is applied.
    pub(in crate::daemon) fn new(tap: Arc<Tap>, entities: Vec<Arc<Entity>>, applied: Lsn) -> Self {
        tap.rewind(applied);
        let (begun, events) = (applied, Vec::new());
        Recorder { tap, entities, begun, xid: 0, commit_micros: 0, events, bytes: 0, left_out: 0 }
    }

    /// A transaction begins.
    pub(in crate::daemon) fn begin(&mut self, xid: u32, commit_micros: i64) {
        (self.xid, self.commit_micros) = (xid, commit_micros);
        self.events.clear();
        (self.bytes, self.left_out) = (0, 0);
    }

    /// A row change of the transaction that is open, and what it does.
    pub(in crate::daemon) fn change(&mut self, change: &Change<'_>, effects: &[Effect]) {
        let (op, tables) = match change {
            Change::Insert { relation, .. } => ("insert", std::slice::from_ref(relation)),
            Change::Update { relation, .. } => ("update", std::slice::from_ref(relation)),
            Change::Delete { relation, .. } => ("delete", std::slice::from_ref(relation)),
            Change::Truncate { relations } => ("truncate", &relations[..]),
            Change::Untold { relation } => ("untold", std::slice::from_ref(relation)),
        };
        self.record(op, tables, effects);
    }

    /// An event of the transaction that is open, and what it does.
    pub(in crate::daemon) fn record(&mut self, op: &str, tables: &[Arc<Relation>], effects: &[Effect]) {
        if !self.tap.is_watched() || effects.is_empty() {
            return;
        }
        // Of what is left out nothing is kept, how much ever it is.
        if self.events.len() == MAX_OF_TRANSACTION || self.bytes >= MAX_BYTES_OF_TRANSACTION {
            self.left_out += 1;
            return;
        }
        let told = told(op, tables, effects, &self.entities);
        self.keep(concerns(effects), &told);
    }

    fn keep(&mut self, concerns: Concerns, told: &Told<'_>) {
        let json = json_of(told);
        self.bytes += json.len() + concerns.bytes();
        self.events.push((concerns, json));
    }

    /// The transaction that is open ends.
    pub(in crate::daemon) fn commit(&mut self, end_lsn: Lsn) {
        if self.events.is_empty() || end_lsn <= self.begun {
            return;
        }
        let micros = u64::try_from(self.commit_micros).unwrap_or_default();
        let time = SystemTime::UNIX_EPOCH + Duration::from_micros(micros);
        let time = humantime::format_rfc3339_micros(time).to_string();
        if self.left_out > 0 {
            let left_out = Some(self.left_out);
            let told = Told { op: "more", tables: Vec::new(), effects: Vec::new(), more: None, left_out };
            self.keep(Concerns::All, &told);
        }
        let head = format!("{{\"lsn\":\"{end_lsn}\",\"xid\":{},\"commit_time\":\"{time}\",", self.xid);
        let recorded = self.events.drain(..).filter_map(|(concerns, told)| {
            let json = RawValue::from_string(head.clone() + told.strip_prefix('{')?).ok()?;
            Some(Recorded { lsn: end_lsn, concerns, json })
        });
        self.tap.push(recorded);
    }
}

/// What tells of the entries that lookups find, while somebody watches, in a session as [`Recorder::new`] has it.
pub(in crate::daemon) fn witness(tap: Arc<Tap>, entities: Vec<Arc<Entity>>, begun: Lsn) -> Witness {
    Box::new(move |found| {
        if !tap.is_watched() {
            return;
        }
        let mut by_lsn: BTreeMap<Lsn, Vec<Effect>> = BTreeMap::new();
        for (entity, lsn, key) in found.iter().filter(|(_, lsn, _)| *lsn > begun) {
            let key = key.redis().as_bytes().to_vec();
            by_lsn.entry(*lsn).or_default().push(Effect::Delete { entity: *entity, key, cause: Cause::Lookup });
        }
        let recorded = by_lsn.into_iter().filter_map(|(lsn, effects)| {
            let json = json_of(&told("found", &[], &effects, &entities));
            let json = RawValue::from_string(format!("{{\"lsn\":\"{lsn}\",{}", json.strip_prefix('{')?)).ok()?;
            Some(Recorded { lsn, concerns: concerns(&effects), json })
        });
        tap.push(recorded);
    })
}

/// An event in words.
fn told<'a>(op: &'a str, tables: &[Arc<Relation>], effects: &[Effect], entities: &[Arc<Entity>]) -> Told<'a> {
    let more = effects.len().saturating_sub(MAX_EFFECTS);
    Told {
        op,
        tables: tables.iter().map(|table| format!("{}.{}", table.schema, table.name)).collect(),
        effects: effects.iter().take(MAX_EFFECTS).map(|effect| tell(effect, entities)).collect(),
        more: (more > 0).then_some(more),
        left_out: None,
    }
}

fn json_of(told: &Told<'_>) -> String {
    // A struct of strings, numbers and JSON always serializes.
    serde_json::to_string(told).unwrap_or_default()
}

/// What an effect is.
fn tell(effect: &Effect, entities: &[Arc<Entity>]) -> Value {
    let (entity, kind, key, cause) = match effect {
        Effect::Put { entity, key, .. } => (*entity, "put", Some(key), None),
        Effect::Merge { entity, key, .. } => (*entity, "merge", Some(key), None),
        Effect::Delete { entity, key, cause } => {
            let requeried = entities[*entity].is_requeried();
            (*entity, if requeried { "requery" } else { "void" }, Some(key), Some(*cause))
        }
        Effect::Lookup { entity, .. } => (*entity, "lookup", None, None),
        Effect::Raise { entity } => (*entity, "void-all", None, None),
        Effect::Discard { entity, cause } => (*entity, "void-all", None, Some(*cause)),
        Effect::Reshape { entity } => (*entity, "look-up-shape", None, None),
        Effect::Moved { entity } => (*entity, "void-all", None, Some(Cause::Shape)),
        Effect::Void(Void::Entity { entity }) => (*entity, "void-all", None, Some(Cause::Command)),
        Effect::Void(Void::Pattern { entity, glob }) => {
            let name = &entities[*entity].name;
            return json!({ "entity": name, "key": glob.text(), "effect": "void-pattern" });
        }
        Effect::Void(Void::Tag(_)) => return json!({ "effect": "void-tag" }),
        Effect::LookAround => return json!({ "effect": "look-up-shape" }),
    };
    let of = &entities[entity];
    let key = key.map(|key| {
        let key = String::from_utf8_lossy(key);
        key.strip_prefix(of.redis_prefix.as_str()).unwrap_or(&key).to_owned()
    });
    let cause = cause.map(|cause| format!("{cause:?}").to_lowercase());
    json!({ "entity": of.name, "key": key, "effect": kind, "cause": cause })
}

/// Which entities effects concern, those that are left out among them.
fn concerns(effects: &[Effect]) -> Concerns {
    let entity = |effect: &Effect| match effect {
        Effect::Put { entity, .. }
        | Effect::Merge { entity, .. }
        | Effect::Delete { entity, .. }
        | Effect::Lookup { entity, .. }
        | Effect::Raise { entity }
        | Effect::Discard { entity, .. }
        | Effect::Reshape { entity }
        | Effect::Moved { entity }
        | Effect::Void(Void::Entity { entity } | Void::Pattern { entity, .. }) => Some(*entity),
        // Of whichever entity bears it; of whichever table has changed.
        Effect::Void(Void::Tag(_)) | Effect::LookAround => None,
    };
    let entities: Option<BTreeSet<usize>> = effects.iter().map(entity).collect();
    entities.map_or(Concerns::All, |entities| Concerns::Some(entities.into_iter().collect()))
}
