//! Applications' commands in the log: planned, counted, and told of where they are refused.

mod refusals;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Instant;

use tracing::warn;

use self::refusals::{Refusal, Refusals};
use crate::cache::warm::{Waiting, Warmer};
use crate::change::Message;
use crate::entity::Entity;
use crate::lsn::Lsn;
use crate::metrics::{Command, CommandMetrics, Commanded};
use crate::plan::Effect;
use crate::plan::command::{self, CommandPlanner, Kind, Verdict};

/// The commands of one session's stream.
pub(super) struct Commands {
    planner: CommandPlanner,
    warmer: Arc<Warmer>,
    /// To be filled when the transaction that is open is applied.
    warm: Vec<Waiting>,
    /// Entities to be warmed then.
    warm_all: BTreeSet<usize>,
    metrics: CommandMetrics,
    refusals: Refusals,
}

impl Commands {
    pub(super) fn new(entities: Vec<Arc<Entity>>, warmer: Arc<Warmer>, metrics: CommandMetrics) -> Self {
        let planner = CommandPlanner::new(entities);
        let refusals = Refusals::default();
        Commands { planner, warmer, warm: Vec::new(), warm_all: BTreeSet::new(), metrics, refusals }
    }

    /// Whether a message is for us.
    pub(super) fn concerns(prefix: &str) -> bool {
        prefix == command::PREFIX
    }

    /// Appends what a message with commands does.
    pub(super) fn take(&mut self, message: &Message<'_>, effects: &mut Vec<Effect>) {
        if !message.transactional {
            // It was written whatever becomes of the transaction that wrote it, which may still be under way: an entry
            // that is dropped now could be filled again with the state of before.
            return self.refuse(Command::Unknown, Commanded::NotTransactional);
        }
        if message.content.len() > command::MAX_BYTES {
            return self.too_large();
        }
        let mut planned = self.planner.plan(message.content);
        effects.append(&mut planned.effects);
        self.warm.extend(planned.warm.into_iter().filter_map(|(entity, key)| self.warmer.place(entity, key)));
        self.warm_all.extend(planned.warm_all);
        for (kind, verdict) in planned.verdicts {
            let kind = match kind {
                Kind::Invalidate => Command::Invalidate,
                Kind::Warm => Command::Warm,
                Kind::Tag => Command::Tag,
                Kind::Pattern => Command::Pattern,
                Kind::Unknown => Command::Unknown,
            };
            match verdict {
                Verdict::Planned => self.metrics.count(kind, Commanded::Done),
                Verdict::Malformed => self.refuse(kind, Commanded::Malformed),
                Verdict::UnknownEntity => self.refuse(kind, Commanded::UnknownEntity),
                Verdict::BadKey => self.refuse(kind, Commanded::BadKey),
                Verdict::BadPattern => self.refuse(kind, Commanded::BadPattern),
                Verdict::UnknownTag => self.refuse(kind, Commanded::UnknownTag),
            }
        }
    }

    /// A message with commands was too large to be read.
    pub(super) fn too_large(&mut self) {
        self.refuse(Command::Unknown, Commanded::TooLarge);
    }

    /// The transaction that is open ends at `end_lsn`.
    pub(super) fn commit(&mut self, end_lsn: Lsn) {
        if !self.warm.is_empty() {
            self.warmer.release(end_lsn, self.warm.drain(..));
        }
        while let Some(entity) = self.warm_all.pop_first() {
            self.warmer.release_entity(end_lsn, entity);
        }
        self.refusals.end(end_lsn);
    }

    /// Tells of what was refused, if it is time for that.
    pub(super) fn settle(&mut self) {
        tell(self.refusals.due(Instant::now()));
    }

    fn refuse(&mut self, command: Command, result: Commanded) {
        self.metrics.count(command, result);
        self.refusals.add(command, result);
    }
}

impl Drop for Commands {
    fn drop(&mut self) {
        tell(self.refusals.all());
    }
}

/// Never with what the message says: it may hold values.
fn tell(refusals: Vec<Refusal>) {
    for Refusal { command, reason, times, lsn } in refusals {
        let (command, lsn) = (command.as_str(), lsn.map(tracing::field::display));
        let (remedy, reason) = (remedy(reason), reason.as_str());
        warn!(command, reason, times, lsn, "an application's command in the log was refused: {remedy}");
    }
}

fn remedy(result: Commanded) -> &'static str {
    match result {
        Commanded::UnknownEntity => "it names no entity of this configuration",
        Commanded::BadKey => "what it names can be no key of the entity; nothing was invalidated for it",
        Commanded::BadPattern => "a pattern is of the form entity:key, of at most 1024 bytes",
        Commanded::UnknownTag => "no entry of this configuration can bear it: see the entities' tags",
        Commanded::NotTransactional => "pass true as the first argument of pg_logical_emit_message",
        Commanded::TooLarge => "write several messages of up to 1 MiB each",
        _ => "write {\"invalidate\":{\"entity\":...,\"keys\":[...]}} or \"warm\" likewise, or an array of these",
    }
}
