//! What is done beside the stream: heartbeats, the source's position for the lag, and a look at the tables' shapes.

use std::time::{Duration, Instant};

use tokio::sync::mpsc;
use tokio::time::{Interval, MissedTickBehavior, interval};
use tokio_postgres::Client;
use tokio_postgres::types::ToSql;
use tokio_util::sync::CancellationToken;

use super::Context;
use super::commands::Command;
use super::error::SessionError;
use super::session::Catalog;
use crate::apply::LookUpShape;
use crate::capture::stream::Progress;
use crate::lsn::Lsn;
use crate::source::SourceError;

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
    let catalog = Catalog(context.config.clone());
    let failed = |what| move |e| SessionError::Source(SourceError::postgres(what, e));
    loop {
        tokio::select! {
            _ = position.tick() => {
                let params: [&(dyn ToSql + Sync); 1] = [&config.slot];
                let row = source.query_one(include_str!("../../sql/position.sql"), &params);
                let row = within(config.dead_after, "read the position of the log", row).await?;
                let row = row.map_err(failed("read the position of the log"))?;
                let lsn = |column| row.get::<_, Option<&str>>(column).and_then(|t| t.parse::<Lsn>().ok());
                let flushed = lsn("flushed").unwrap_or_default();
                let applied = progress.applied();
                let retained = lsn("retained").unwrap_or(flushed);
                context.metrics.replication.lag_bytes(flushed, progress.received(), applied, retained);
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
            // DDL on a table that nobody writes to is not in the stream, nor is that a table is no longer published.
            _ = shapes.tick() => for entity in &context.hierarchy.entities {
                let found = within(config.dead_after, "look up the shape of a table", catalog.look_up(source, entity));
                let found = found.await??;
                let changed = match found {
                    Ok(shape) => !entity.is_servable() || shape != *entity.shape(),
                    Err(_) => entity.is_servable(),
                };
                if changed && commands.send(Command::Reshape(entity.id)).await.is_err() {
                    return Ok(());
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
