//! What is done beside the stream: marks of the source's position, heartbeats, and a look at the tables' shapes.

use std::time::{Duration, Instant};

use tokio::sync::mpsc;
use tokio::time::{Interval, MissedTickBehavior, interval};
use tokio_postgres::Client;
use tokio_postgres::types::ToSql;
use tokio_util::sync::CancellationToken;

use super::Context;
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
    reshapes: mpsc::Sender<usize>,
    end: CancellationToken,
) -> Result<(), SessionError> {
    // A query that is never answered must not keep the session from ending.
    tokio::select! {
        () = end.cancelled() => Ok(()),
        ended = keep(context, source, progress, reshapes) => ended,
    }
}

async fn keep(
    context: &Context,
    source: &Client,
    progress: &Progress,
    reshapes: mpsc::Sender<usize>,
) -> Result<(), SessionError> {
    let config = &context.config.source;
    let mut mark = ticks(config.status_interval);
    let mut heartbeat = ticks(config.heartbeat_interval);
    let mut shapes = ticks(config.schema_check_interval);
    let catalog = Catalog(context.config.clone());
    let failed = |what| move |e| SessionError::Source(SourceError::postgres(what, e));
    loop {
        tokio::select! {
            _ = mark.tick() => {
                let at = Instant::now();
                let params: [&(dyn ToSql + Sync); 1] = [&config.slot];
                let row = source.query_one(include_str!("../../sql/position.sql"), &params);
                let row = within(config.dead_after, "read the position of the log", row).await?;
                let row = row.map_err(failed("read the position of the log"))?;
                let lsn = |column| row.get::<_, Option<&str>>(column).and_then(|t| t.parse::<Lsn>().ok());
                let flushed = lsn("flushed").unwrap_or_default();
                context.hierarchy.watermark.mark(flushed, at);
                let applied = progress.applied();
                let retained = lsn("retained").unwrap_or(flushed);
                context.metrics.replication.lag_bytes(flushed, progress.received(), applied, retained);
                context.status.set_source_lsn(flushed);
            }
            _ = heartbeat.tick() => {
                let beat = source.execute(include_str!("../../sql/heartbeat.sql"), &[]);
                let beat = within(config.dead_after, "emit a heartbeat", beat).await?;
                beat.map_err(failed("emit a heartbeat"))?;
            }
            // DDL on a table that nobody writes to is not in the stream, nor is that a table is no longer published.
            _ = shapes.tick() => for entity in &context.hierarchy.entities {
                let found = catalog.look_up(source, entity).await?;
                let changed = match found {
                    Ok(shape) => !entity.is_servable() || shape != *entity.shape(),
                    Err(_) => entity.is_servable(),
                };
                if changed && reshapes.send(entity.id).await.is_err() {
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
