//! From chunks of the stream to batches: decode, plan, assemble.

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::error::SessionError;
use crate::apply::batch::{Assembler, Batch};
use crate::capture::frames::{Chunk, Frame};
use crate::change::{Change, Event, Relation};
use crate::decode::pgoutput::Decoder;
use crate::metrics::{Op, ReplicationMetrics};
use crate::plan::{Effect, Planner};

/// Decodes, plans and assembles one session's stream.
pub struct Pipeline<'a> {
    decoder: Decoder,
    planner: Planner,
    assembler: Assembler,
    effects: Vec<Effect>,
    metrics: &'a ReplicationMetrics,
}

impl<'a> Pipeline<'a> {
    /// At the beginning of a session.
    pub fn new(planner: Planner, assembler: Assembler, metrics: &'a ReplicationMetrics) -> Self {
        Pipeline { decoder: Decoder::new(), planner, assembler, effects: Vec::new(), metrics }
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
                    Some(chunk) => self.take(&chunk)?,
                    None => return Ok(()),
                },
            }
        }
    }

    fn take(&mut self, chunk: &Chunk) -> Result<(), SessionError> {
        for frame in chunk.frames() {
            let message = match frame {
                Frame::Keepalive(lsn) => {
                    self.assembler.keepalive(lsn);
                    continue;
                }
                Frame::Data(message) => message,
            };
            match self.decoder.decode(message)? {
                Event::Begin { xid, commit_lsn, commit_micros } => self.assembler.begin(xid, commit_lsn, commit_micros),
                Event::Relation(relation) => {
                    self.planner.announce(&relation, &mut self.effects);
                    self.assembler.effects(&mut self.effects);
                }
                Event::Change(change) => {
                    self.planner.plan(&change, &mut self.effects);
                    self.count(&change);
                    self.assembler.effects(&mut self.effects);
                }
                Event::Commit { end_lsn } => self.assembler.commit(end_lsn),
                Event::Message(_) | Event::Nothing => {}
            }
        }
        Ok(())
    }

    fn count(&self, change: &Change<'_>) {
        let count = |relation: &Relation, op| {
            for entity in self.planner.entities_of(relation) {
                self.metrics.events(entity, op, 1);
            }
        };
        match change {
            Change::Insert { relation, .. } => count(relation, Op::Insert),
            Change::Update { relation, .. } => count(relation, Op::Update),
            Change::Delete { relation, .. } => count(relation, Op::Delete),
            Change::Truncate { relations } => relations.iter().for_each(|r| count(r, Op::Truncate)),
        }
    }
}
