//! What is done beside the stream: heartbeats, the source's position for the lag, and a look at the tables' shapes.

use std::time::{Duration, Instant};

use tokio::sync::mpsc;
use tokio::time::{Interval, MissedTickBehavior, interval};
use tokio_postgres::Client;
use tokio_util::sync::CancellationToken;

use super::Context;
use super::commands::Command;
use super::error::SessionError;
use super::session::{Catalog, differing};
use crate::apply::LookUpShape;
use crate::capture::stream::Progress;
use crate::catalog::{self, Signatures};
use crate::lsn::Lsn;
use crate::source::SourceError;

/// How often all tables are looked up in full, should there be a change that their signatures do not show.
const FULL_LOOK: Duration = Duration::from_secs(60);

/// How often a query is looked at whose tables are locked.
const LOCKED_PAUSE: Duration = Duration::from_secs(5);

/// Runs until `end`.
///
/// # Errors
/// If the source fails, which ends the session: nothing could be vouched for any more.
pub(super) async fn run(
    context: &Context,
    source: &Client,
    progress: &Progress,
    commands: mpsc::Sender<Command>,
    end: CancellationToken,
) -> Result<(), SessionError> {
    // A query that is never answered must not keep the session from ending.
    tokio::select! {
        () = end.cancelled() => Ok(()),
        ended = keep(context, source, progress, commands) => ended,
        () = context.followed.moved() => Err(SourceError::Moved.into()),
    }
}

async fn keep(
    context: &Context,
    source: &Client,
    progress: &Progress,
    commands: mpsc::Sender<Command>,
) -> Result<(), SessionError> {
    let config = &context.config.source;
    let mut position = ticks(config.status_interval);
    let mut heartbeat = ticks(config.heartbeat_interval);
    let mut shapes = ticks(config.schema_check_interval);
    let mut full_look = ticks(FULL_LOOK);
    let mut looked_at_locked = Instant::now();
    let tables = Catalog(context.config.clone());
    let entities = &context.hierarchy.entities;
    let signatures = Signatures::prepare(source, &context.config);
    let signatures = within(config.dead_after, "prepare to look at tables", signatures).await??;
    let failed = |what| move |e| SessionError::Source(SourceError::postgres(what, e));
    loop {
        tokio::select! {
            _ = position.tick() => {
                let row = source.query_one(include_str!("../../sql/log_end.sql"), &[]);
                let row = within(config.dead_after, "read the position of the log", row).await?;
                let row = row.map_err(failed("read the position of the log"))?;
                // Postgres prints positions that parse.
                let flushed: Lsn = row.get::<_, &str>(0).parse().unwrap_or_default();
                context.metrics.replication.lag_bytes(flushed, progress.received(), progress.applied());
                context.status.set_source_lsn(flushed);
            }
            _ = heartbeat.tick() => {
                // Before it is sent: see `crate::cache::watermark`.
                let at = Instant::now();
                let beat = source.query_one(include_str!("../../sql/heartbeat.sql"), &[]);
                let beat = within(config.dead_after, "emit a heartbeat", beat).await?;
                let beat = beat.map_err(failed("emit a heartbeat"))?;
                let lsn = beat.get::<_, Option<&str>>("lsn").and_then(|text| text.parse().ok());
                // Postgres prints LSNs that parse. If not, it is as if the heartbeat had not come back.
                if let Some(lsn) = lsn {
                    context.hierarchy.watermark.mark(lsn, at);
                }
            }
            // DDL on a table that nobody writes to is not in the stream, nor is that a table is no longer published. If the
            // command finds no room, another one comes first, and the next look finds the same again.
            _ = shapes.tick() => {
                let now = within(config.dead_after, "look at tables", signatures.read(source)).await??;
                let is_locked = |id: usize| {
                    entities[id].standing().cause().is_some_and(|why| why.contains(catalog::LOCKED))
                };
                // Each look at a query whose tables are locked holds applying up for a moment: with one after the other,
                // nothing would be applied.
                let due = |id: usize| !is_locked(id) || looked_at_locked.elapsed() >= LOCKED_PAUSE;
                let differing = differing(entities, &now);
                if differing.iter().any(|id| due(*id)) {
                    looked_at_locked = Instant::now();
                    let _ = commands.try_send(Command::LookAround);
                }
            }
            // To look at a query locks its tables: only where something has changed.
            _ = full_look.tick() => for entity in entities.iter().filter(|entity| entity.query.is_none()) {
                let found = within(config.dead_after, "look up the shape of a table", tables.look_up(source, entity));
                let found = found.await??;
                let same = found.standing == *entity.standing()
                    && found.shape.is_none_or(|shape| shape == *entity.shape());
                if !same {
                    let _ = commands.try_send(Command::Reshape(entity.id));
                }
            },
        }
    }
}

/// While nothing is read because batches wait, the silence of the stream says nothing: then these queries tell.
async fn within<T>(after: Duration, what: &'static str, work: impl Future<Output = T>) -> Result<T, SessionError> {
    tokio::time::timeout(after, work).await.map_err(|_| SourceError::Timeout { what, after }.into())
}

fn ticks(period: Duration) -> Interval {
    let mut interval = interval(period);
    interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
    interval
}
