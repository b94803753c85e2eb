//! From chunks of the stream to batches: decode, plan, assemble.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio_postgres::Client;
use tokio_postgres::types::ToSql;
use tokio_util::sync::CancellationToken;

use super::commands::Commands;
use super::error::SessionError;
use super::tap::Recorder;
use crate::apply::batch::{Assembler, Batch};
use crate::capture::frames::{Chunk, Frame};
use crate::change::{Change, Event, Relation};
use crate::decode::Decoder;
use crate::metrics::{Op, ReplicationMetrics};
use crate::plan::{Effect, Planner};
use crate::source::{SourceError, within};

/// The prefix of the messages that announce schema changes.
const DDL: &str = "walcache.ddl";

/// Decodes, plans and assembles one session's stream.
pub struct Pipeline<'a> {
    decoder: Decoder,
    planner: Planner,
    assembler: Assembler,
    places: Places,
    commands: Commands,
    recorder: Recorder,
    effects: Vec<Effect>,
    metrics: &'a ReplicationMetrics,
}

impl<'a> Pipeline<'a> {
    /// At the beginning of a session.
    pub fn new(
        decoder: Decoder,
        planner: Planner,
        assembler: Assembler,
        (places, commands, recorder): (Places, Commands, Recorder),
        metrics: &'a ReplicationMetrics,
    ) -> Self {
        Pipeline { decoder, planner, assembler, places, commands, recorder, effects: Vec::new(), metrics }
    }

    /// Turns chunks into batches until the stream ends or `stop` is cancelled. A batch goes out as soon as it can be
    /// taken: while one is applied, the next grows, up to its bounds.
    ///
    /// # Errors
    /// If the stream's bytes are not what they should be.
    pub async fn run(
        mut self,
        mut chunks: mpsc::Receiver<Chunk>,
        batches: mpsc::Sender<Batch>,
        stop: CancellationToken,
    ) -> Result<(), SessionError> {
        loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => return Ok(()),
                permit = batches.reserve(), if !self.assembler.is_empty() => match permit {
                    Ok(permit) => permit.send(self.assembler.take()),
                    // Whoever applies has stopped; it says why.
                    Err(_) => return Ok(()),
                },
                chunk = chunks.recv(), if !self.assembler.is_full() => match chunk {
                    // The catalog may be asked meanwhile, and not answer.
                    Some(chunk) => tokio::select! {
                        taken = self.take(&chunk) => taken?,
                        () = stop.cancelled() => return Ok(()),
                    },
                    None => return Ok(()),
                },
            }
        }
    }

    async fn take(&mut self, chunk: &Chunk) -> Result<(), SessionError> {
        for frame in chunk.frames() {
            // A table of which the catalog must be asked.
            let mut unplaced = None;
            let Pipeline { decoder, planner, assembler, commands, recorder, effects, metrics, .. } = &mut *self;
            let each = |event: Event<'_>| match event {
                Event::Begin { xid, commit_lsn, commit_micros } => {
                    recorder.begin(xid, commit_micros);
                    assembler.begin(xid, commit_lsn, commit_micros);
                }
                Event::Relation(relation) => {
                    planner.announce(&relation, effects);
                    recorder.record("relation", std::slice::from_ref(&relation), effects);
                    assembler.effects(effects);
                }
                Event::Change(change) => {
                    planner.plan(&change, effects);
                    count(planner, metrics, &change);
                    recorder.change(&change, effects);
                    assembler.effects(effects);
                }
                Event::Commit { end_lsn } => {
                    assembler.commit(end_lsn);
                    commands.commit(end_lsn);
                    recorder.commit(end_lsn);
                }
                Event::Elsewhere => assembler.await_visible(),
                Event::Unplaced { schema, name } => {
                    assembler.await_visible();
                    unplaced = Some((schema.to_owned(), name.to_owned()));
                }
                Event::Message(message) if Commands::concerns(message.prefix) => {
                    commands.take(&message, effects);
                    recorder.record("command", &[], effects);
                    assembler.effects(effects);
                }
                // In the transaction that makes the change: see sql/announce_ddl.sql.
                Event::Message(message) if message.transactional && message.prefix == DDL => {
                    effects.push(Effect::LookAround);
                    recorder.record("ddl", &[], effects);
                    assembler.effects(effects);
                }
                Event::LargeChange(relation) => {
                    planner.plan_unknown(&relation, effects);
                    recorder.record("too-large", std::slice::from_ref(&relation), effects);
                    assembler.effects(effects);
                }
                Event::LargeMessage(prefix) if Commands::concerns(prefix) => commands.too_large(),
                Event::Message(_) | Event::LargeMessage(_) | Event::Nothing => {}
            };
            match frame {
                Frame::Keepalive(lsn) => assembler.keepalive(lsn),
                Frame::Notice(fields) => decoder.notice(fields, each),
                Frame::Data(message) => decoder.decode(message, each)?,
                Frame::Cut(head) => decoder.cut(head, each)?,
            }
            if let Some((schema, name)) = unplaced {
                self.place(&schema, &name).await?;
            }
        }
        self.places.gone.clear();
        self.commands.settle();
        Ok(())
    }

    /// A table that the stream has not named before: it may be a new partition of an entity's table.
    async fn place(&mut self, schema: &str, name: &str) -> Result<(), SessionError> {
        let of = self.places.look_up(schema, name).await?;
        let concerns_us = self.planner.place(&of, &mut self.effects);
        self.assembler.effects(&mut self.effects);
        if let (Decoder::Wal2json(decoder), false, false) = (&mut self.decoder, concerns_us, of.is_empty()) {
            decoder.set_elsewhere(schema, name);
        }
        Ok(())
    }
}

fn count(planner: &Planner, metrics: &ReplicationMetrics, change: &Change<'_>) {
    let count = |relation: &Relation, op| {
        for entity in planner.entities_of(relation) {
            metrics.events(entity, op, 1);
        }
    };
    match change {
        Change::Insert { relation, .. } => count(relation, Op::Insert),
        Change::Update { relation, .. } => count(relation, Op::Update),
        Change::Delete { relation, .. } => count(relation, Op::Delete),
        Change::Truncate { relations } => relations.iter().for_each(|r| count(r, Op::Truncate)),
        // Which of the two it was is not told.
        Change::Untold { .. } => {}
    }
}

/// Asks the catalog which tables are partitions of which, for streams that do not say.
pub struct Places {
    source: Arc<Client>,
    /// How long the source may take to answer.
    patience: Duration,
    /// Tables that were not there any more when this chunk was decoded.
    gone: HashSet<(String, String)>,
}

impl Places {
    /// Over a connection to the source, which counts as dead when it is silent for longer than `patience`.
    pub fn new(source: Arc<Client>, patience: Duration) -> Self {
        Places { source, patience, gone: HashSet::new() }
    }

    /// The names of the table and of those that it is a partition of; none, if there is no such table.
    async fn look_up(&mut self, schema: &str, name: &str) -> Result<Vec<(String, String)>, SourceError> {
        const WHAT: &str = "look up a table of the stream";
        let table = (schema.to_owned(), name.to_owned());
        if self.gone.contains(&table) {
            return Ok(Vec::new());
        }
        let params: [&(dyn ToSql + Sync); 2] = [&schema, &name];
        let rows = self.source.query(include_str!("../../sql/table_place.sql"), &params);
        let rows = within(WHAT, self.patience, rows).await?.map_err(|e| SourceError::postgres(WHAT, e))?;
        if rows.is_empty() {
            self.gone.insert(table);
        }
        Ok(rows.iter().map(|row| (row.get("schema"), row.get("name"))).collect())
    }
}
