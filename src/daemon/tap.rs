//! The tap: what comes through the stream and what it does to entries, for whoever watches.
//!
//! Nothing is recorded while nobody watches. What is recorded waits in a ring of bounded size: whoever watches too slowly
//! is told how much was missed. A transaction is shown once it is applied, and once only: what comes again in another
//! session of the stream is not recorded again.

mod recorder;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::fmt;
use std::str::FromStr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use serde::{Serialize, Serializer};
use serde_json::value::RawValue;
use tokio::sync::Notify;

pub(super) use self::recorder::{Recorder, witness};
use crate::cache::watermark::Watermark;
use crate::lsn::Lsn;

/// Events that wait, at most, and their bytes.
const MAX_EVENTS: usize = 10_000;
const MAX_BYTES: usize = 8 << 20;
/// Events of one answer.
const MAX_OF_ANSWER: usize = 1000;
/// Events that are looked at without letting go of the ring, which the stream waits for.
const MAX_LOOKED_AT: usize = 1000;
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
    /// Tells it from those of other processes, and from that of before if its numbers begin anew.
    id: u32,
    /// The number of the first that is kept.
    first: u64,
    events: VecDeque<Recorded>,
    bytes: usize,
    /// Events up to here may have been shown.
    shown: Lsn,
}

/// An event of a transaction that has ended at `lsn`.
struct Recorded {
    lsn: Lsn,
    concerns: Concerns,
    json: Box<RawValue>,
}

/// Which entities an event concerns.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Concerns {
    /// Any, maybe: a tag is of whichever entity bears it.
    All,
    /// These, in order.
    Some(Box<[usize]>),
}

/// The place of an event: in which ring, and its number there. For clients it is a text without meaning.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Place {
    ring: u32,
    number: u64,
}

/// What a question is answered with.
#[derive(Debug, Serialize)]
pub(super) struct Answer {
    /// The event to ask for next.
    next: Place,
    /// Events that were recorded and are not kept any more.
    missed: u64,
    /// Whether the place that was asked for is none of this ring, so that nobody knows how much was missed.
    restarted: bool,
    events: Vec<Box<RawValue>>,
}

/// What is to be waited for before looking again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Then {
    /// Nothing: there is more to look at.
    Look,
    /// More events.
    Arrival,
    /// That everything up to here is applied.
    Applied(Lsn),
}

impl Concerns {
    fn concerns(&self, entity: usize) -> bool {
        match self {
            Concerns::All => true,
            Concerns::Some(entities) => entities.binary_search(&entity).is_ok(),
        }
    }

    fn bytes(&self) -> usize {
        match self {
            Concerns::All => 0,
            Concerns::Some(entities) => size_of_val(&**entities),
        }
    }
}

impl Recorded {
    fn bytes(&self) -> usize {
        self.json.get().len() + self.concerns.bytes()
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:08x}-{}", self.ring, self.number)
    }
}

impl FromStr for Place {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let (ring, number) = text.split_once('-').ok_or(())?;
        Ok(Place { ring: u32::from_str_radix(ring, 16).map_err(drop)?, number: number.parse().map_err(drop)? })
    }
}

impl Serialize for Place {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl Ring {
    /// The place of the next event that arrives.
    fn end(&self) -> Place {
        Place { ring: self.id, number: self.first + self.events.len() as u64 }
    }
}

impl Default for Tap {
    fn default() -> Self {
        let ring = Mutex::new(Ring { id: rand::random(), ..Ring::default() });
        Tap { origin: Instant::now(), watched_until: AtomicU64::new(0), ring, arrived: Notify::new() }
    }
}

impl Tap {
    fn is_watched(&self) -> bool {
        let until = self.watched_until.load(Ordering::Relaxed);
        until > 0 && (self.origin.elapsed().as_millis() as u64) < until
    }

    /// Keeps events, in the order of their transactions' ends. What lookups find comes after later transactions; but W stays
    /// before it, so nobody was shown anything behind its place.
    fn push(&self, events: impl Iterator<Item = Recorded>) {
        let mut ring = self.ring.lock();
        for event in events {
            ring.bytes += event.bytes();
            let place = ring.events.partition_point(|before| before.lsn <= event.lsn);
            ring.events.insert(place, event);
            while ring.events.len() > MAX_EVENTS || ring.bytes > MAX_BYTES {
                let Some(oldest) = ring.events.pop_front() else { break };
                ring.bytes -= oldest.bytes();
                ring.first += 1;
            }
        }
        drop(ring);
        self.arrived.notify_waiters();
    }

    /// Forgets what is not applied: it comes again, in another session. Nobody has seen it, so its numbers are given again.
    fn rewind(&self, applied: Lsn) {
        let mut ring = self.ring.lock();
        if applied < ring.shown {
            // LSNs start over.
            *ring = Ring { id: rand::random(), ..Ring::default() };
            return;
        }
        // They are in the order of their transactions' ends.
        let kept = ring.events.partition_point(|event| event.lsn <= applied);
        let forgotten: usize = ring.events.drain(kept..).map(|event| event.bytes()).sum();
        ring.bytes -= forgotten;
    }

    /// Events from a place on, or from now on, that are applied; of one entity or of all. Waits for some.
    pub(super) async fn ask(&self, from: Option<Place>, entity: Option<usize>, watermark: &Watermark) -> Answer {
        let watched = self.origin.elapsed() + PATIENCE + WATCHED;
        self.watched_until.fetch_max(watched.as_millis() as u64, Ordering::Relaxed);
        let end = Instant::now() + PATIENCE;
        let mut from = from.unwrap_or_else(|| self.ring.lock().end());
        loop {
            // Before looking: what arrives in between is not missed.
            let arrived = self.arrived.notified();
            let (answer, then) = self.look(from, entity, watermark.load());
            let left = end.saturating_duration_since(Instant::now());
            if !answer.events.is_empty() || answer.missed > 0 || answer.restarted || left.is_zero() {
                return answer;
            }
            // What does not concern the entity is not looked at again, and may go.
            from = answer.next;
            match then {
                Then::Look => {}
                Then::Applied(lsn) => drop(watermark.reached(lsn, left).await),
                Then::Arrival => drop(tokio::time::timeout(left, arrived).await),
            }
        }
    }

    /// What there is now, as far as it is looked at, and what to wait for.
    fn look(&self, from: Place, entity: Option<usize>, applied: Lsn) -> (Answer, Then) {
        let mut ring = self.ring.lock();
        ring.shown = ring.shown.max(applied);
        let restarted = from.ring != ring.id;
        // A number that was not given yet is made up.
        let from = if restarted { ring.first } else { from.number.min(ring.end().number) };
        let mut next = from.max(ring.first);
        let mut answer = Answer { next: ring.end(), missed: next - from, restarted, events: Vec::new() };
        let mut then = Then::Arrival;
        let waiting = ring.events.iter().skip((next - ring.first) as usize);
        for (i, event) in waiting.enumerate() {
            if event.lsn > applied {
                then = Then::Applied(event.lsn);
                break;
            }
            if i == MAX_LOOKED_AT || answer.events.len() == MAX_OF_ANSWER {
                then = Then::Look;
                break;
            }
            next += 1;
            if entity.is_none_or(|id| event.concerns.concerns(id)) {
                answer.events.push(event.json.clone());
            }
        }
        answer.next.number = next;
        (answer, then)
    }
}
