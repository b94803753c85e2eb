//! The tap: what comes through the stream and what it does to entries, for whoever watches.
//!
//! Nothing is recorded while nobody watches. What is recorded waits in a ring of bounded size: whoever watches too slowly
//! is told how much was missed. A transaction is shown once it is applied.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime};

use parking_lot::Mutex;
use serde::Serialize;
use serde_json::value::RawValue;
use serde_json::{Value, json};
use tokio::sync::Notify;

use crate::cache::watermark::Watermark;
use crate::change::{Change, Relation};
use crate::entity::Entity;
use crate::lsn::Lsn;
use crate::plan::{Cause, Effect};
use crate::void::Void;

/// Events that wait, at most, and their bytes.
const MAX_EVENTS: usize = 10_000;
const MAX_BYTES: usize = 8 << 20;
/// Events of one transaction that are recorded; of the rest only how many they were.
const MAX_OF_TRANSACTION: usize = 1000;
/// Events of one answer.
const MAX_OF_ANSWER: usize = 1000;
/// How long a question without an answer waits.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long after a question more is recorded.
const WATCHED: Duration = Duration::from_secs(30);

/// What was recorded, and who watches.
pub(super) struct Tap {
    origin: Instant,
    /// Milliseconds from `origin` until which somebody watches.
    watched_until: AtomicU64,
    ring: Mutex<Ring>,
    arrived: Notify,
}

/// The newest events.
#[derive(Default)]
struct Ring {
    /// The number of the first that is kept.
    first: u64,
    events: VecDeque<Recorded>,
    bytes: usize,
}

/// An event of a transaction that has ended at `lsn`.
struct Recorded {
    lsn: Lsn,
    entities: Vec<usize>,
    json: Box<RawValue>,
}

/// What a question is answered with.
#[derive(Debug, Serialize)]
pub(super) struct Answer {
    /// The number of the event to ask for next.
    next: u64,
    /// Events that were recorded and are not kept any more.
    missed: u64,
    events: Vec<Box<RawValue>>,
}

impl Default for Tap {
    fn default() -> Self {
        Tap { origin: Instant::now(), watched_until: AtomicU64::new(0), ring: Mutex::default(), arrived: Notify::new() }
    }
}

impl Tap {
    fn is_watched(&self) -> bool {
        let until = self.watched_until.load(Ordering::Relaxed);
        until > 0 && (self.origin.elapsed().as_millis() as u64) < until
    }

    fn push(&self, events: impl Iterator<Item = Recorded>) {
        let mut ring = self.ring.lock();
        for event in events {
            ring.bytes += event.json.get().len();
            ring.events.push_back(event);
            while ring.events.len() > MAX_EVENTS || ring.bytes > MAX_BYTES {
                let Some(oldest) = ring.events.pop_front() else { break };
                ring.bytes -= oldest.json.get().len();
                ring.first += 1;
            }
        }
        drop(ring);
        self.arrived.notify_waiters();
    }

    /// What is not applied yet comes again, in another session.
    fn clear(&self) {
        let mut ring = self.ring.lock();
        ring.first += ring.events.len() as u64;
        ring.events.clear();
        ring.bytes = 0;
    }

    /// Events from number `from` on, or from now on, that are applied; of one entity or of all. Waits for some.
    pub(super) async fn ask(&self, from: Option<u64>, entity: Option<usize>, watermark: &Watermark) -> Answer {
        let watched = self.origin.elapsed() + PATIENCE + WATCHED;
        self.watched_until.fetch_max(watched.as_millis() as u64, Ordering::Relaxed);
        let end = Instant::now() + PATIENCE;
        let from = from.unwrap_or_else(|| {
            let ring = self.ring.lock();
            ring.first + ring.events.len() as u64
        });
        loop {
            // Before looking: what arrives in between is not missed.
            let arrived = self.arrived.notified();
            let (answer, unapplied) = self.look(from, entity, watermark.load());
            let left = end.saturating_duration_since(Instant::now());
            if !answer.events.is_empty() || answer.missed > 0 || left.is_zero() {
                return answer;
            }
            match unapplied {
                Some(lsn) => drop(watermark.reached(lsn, left).await),
                None => drop(tokio::time::timeout(left, arrived).await),
            }
        }
    }

    /// What there is now, and where the first transaction ends that is not applied yet.
    fn look(&self, from: u64, entity: Option<usize>, applied: Lsn) -> (Answer, Option<Lsn>) {
        let ring = self.ring.lock();
        // A number that was not given yet is of before a restart.
        let from = from.min(ring.first + ring.events.len() as u64);
        let missed = ring.first.saturating_sub(from);
        let mut answer = Answer { next: from.max(ring.first), missed, events: Vec::new() };
        for event in ring.events.iter().skip((answer.next - ring.first) as usize) {
            if event.lsn > applied {
                return (answer, Some(event.lsn));
            }
            if answer.events.len() == MAX_OF_ANSWER {
                break;
            }
            answer.next += 1;
            if entity.is_none_or(|id| event.entities.contains(&id)) {
                answer.events.push(event.json.clone());
            }
        }
        (answer, None)
    }
}

/// Records one session's stream.
pub(super) struct Recorder {
    tap: Arc<Tap>,
    entities: Vec<Arc<Entity>>,
    xid: u32,
    commit_micros: i64,
    /// Of the transaction that is open.
    events: Vec<(Vec<usize>, Value)>,
    left_out: u64,
}

impl Recorder {
    pub(super) fn new(tap: Arc<Tap>, entities: Vec<Arc<Entity>>) -> Self {
        tap.clear();
        Recorder { tap, entities, xid: 0, commit_micros: 0, events: Vec::new(), left_out: 0 }
    }

    /// A transaction begins.
    pub(super) fn begin(&mut self, xid: u32, commit_micros: i64) {
        (self.xid, self.commit_micros) = (xid, commit_micros);
        self.events.clear();
        self.left_out = 0;
    }

    /// A row change of the transaction that is open, and what it does.
    pub(super) fn change(&mut self, change: &Change<'_>, effects: &[Effect]) {
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
    pub(super) fn record(&mut self, op: &str, tables: &[Arc<Relation>], effects: &[Effect]) {
        if !self.tap.is_watched() || effects.is_empty() {
            return;
        }
        if self.events.len() == MAX_OF_TRANSACTION {
            self.left_out += 1;
            return;
        }
        let told: Vec<(usize, Value)> = effects.iter().map(|effect| self.tell(effect)).collect();
        let (ids, told): (Vec<usize>, Vec<Value>) = told.into_iter().unzip();
        let tables: Vec<String> = tables.iter().map(|table| format!("{}.{}", table.schema, table.name)).collect();
        self.events.push((ids, json!({ "op": op, "tables": tables, "effects": told })));
    }

    /// The transaction that is open ends.
    pub(super) fn commit(&mut self, end_lsn: Lsn) {
        if self.events.is_empty() {
            return;
        }
        let micros = u64::try_from(self.commit_micros).unwrap_or_default();
        let time = SystemTime::UNIX_EPOCH + Duration::from_micros(micros);
        let time = humantime::format_rfc3339_micros(time).to_string();
        if self.left_out > 0 {
            let all = (0..self.entities.len()).collect();
            self.events.push((all, json!({ "op": "more", "tables": [], "effects": [], "left_out": self.left_out })));
        }
        let (xid, lsn) = (self.xid, end_lsn.to_string());
        let recorded = self.events.drain(..).filter_map(|(entities, mut event)| {
            event["lsn"] = lsn.as_str().into();
            event["xid"] = xid.into();
            event["commit_time"] = time.as_str().into();
            let json = RawValue::from_string(event.to_string()).ok()?;
            Some(Recorded { lsn: end_lsn, entities, json })
        });
        self.tap.push(recorded);
    }

    /// The entity that an effect is on, and what it is.
    fn tell(&self, effect: &Effect) -> (usize, Value) {
        let (entity, kind, key, cause) = match effect {
            Effect::Put { entity, key, .. } => (*entity, "put", Some(key), None),
            Effect::Merge { entity, key, .. } => (*entity, "merge", Some(key), None),
            Effect::Delete { entity, key, cause } => (*entity, "drop", Some(key), Some(*cause)),
            Effect::Lookup { entity, .. } => (*entity, "lookup", None, None),
            Effect::Raise { entity } => (*entity, "drop-all", None, None),
            Effect::Discard { entity, cause } => (*entity, "drop-all", None, Some(*cause)),
            Effect::Reshape { entity } => (*entity, "look-up-shape", None, None),
            Effect::Moved { entity } => (*entity, "drop-all", None, Some(Cause::Shape)),
            Effect::Void(Void::Entity { entity }) => (*entity, "drop-all", None, Some(Cause::Command)),
            Effect::Void(Void::Pattern { entity, glob }) => {
                let name = &self.entities[*entity].name;
                return (*entity, json!({ "entity": name, "key": glob.text(), "effect": "void-pattern" }));
            }
            // Of whichever entity bears it.
            Effect::Void(Void::Tag(_)) => return (usize::MAX, json!({ "effect": "void-tag" })),
            Effect::LookAround => return (usize::MAX, json!({ "effect": "look-up-shape" })),
        };
        let of = &self.entities[entity];
        let key = key.map(|key| {
            let key = String::from_utf8_lossy(key);
            key.strip_prefix(of.redis_prefix.as_str()).unwrap_or(&key).to_owned()
        });
        let cause = cause.map(|cause| format!("{cause:?}").to_lowercase());
        (entity, json!({ "entity": of.name, "key": key, "effect": kind, "cause": cause }))
    }
}
