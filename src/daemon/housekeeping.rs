//! What is done beside the stream: heartbeats, the source's position for the lag, and a look at the tables' shapes.

mod timetable;

use std::time::{Duration, Instant};

use tokio::sync::mpsc;
use tokio_postgres::Client;
use tokio_util::sync::CancellationToken;

use super::Context;
use super::error::SessionError;
use super::orders::Order;
use super::shapes::Catalog;
use crate::apply::LookUpShape;
use crate::apply::joining::is_joining;
use crate::capture::stream::Progress;
use crate::catalog::Signatures;
use crate::entity::Standing;
use crate::lsn::Lsn;
use crate::source::{SourceError, within};

use timetable::{Due, Periods, Timetable};

/// How often all tables are looked up in full, should there be a change that their signatures do not show.
const FULL_LOOK: Duration = Duration::from_secs(60);

/// How many of them at a time: nothing else is done here meanwhile, and staleness is measured here.
const FULL_LOOK_TABLES: usize = 32;

/// How often it is looked whether entities have joined that are not cached before.
const JOINING_CHECK: Duration = Duration::from_secs(1);

/// Runs until `end`.
///
/// # Errors
/// If the source fails, which ends the session: nothing could be vouched for any more.
pub(super) async fn run(
    context: &Context,
    source: (&Client, &Catalog),
    progress: &Progress,
    orders: mpsc::Sender<Order>,
    end: CancellationToken,
) -> Result<(), SessionError> {
    // A query that is never answered must not keep the session from ending.
    tokio::select! {
        () = end.cancelled() => Ok(()),
        ended = keep(context, source, progress, orders) => ended,
        () = context.followed.moved() => Err(SourceError::Moved.into()),
    }
}

/// While nothing is read because batches wait, the silence of the stream says nothing: then these queries tell.
async fn keep(
    context: &Context,
    (source, shapes): (&Client, &Catalog),
    progress: &Progress,
    orders: mpsc::Sender<Order>,
) -> Result<(), SessionError> {
    let config = &context.config.source;
    let entities = &context.hierarchy.entities;
    // To look at a query locks its tables: only where something has changed.
    let tables: Vec<usize> = entities.iter().filter(|entity| entity.query.is_none()).map(|entity| entity.id).collect();
    let mut parts = tables.chunks(FULL_LOOK_TABLES).cycle();
    let part = FULL_LOOK / tables.len().div_ceil(FULL_LOOK_TABLES).max(1) as u32;
    let mut timetable = Timetable::new(Periods {
        heartbeat: config.heartbeat_interval,
        position: config.status_interval,
        schema: config.schema_check_interval,
        joining: JOINING_CHECK,
        full_look: part,
    });
    let signatures = Signatures::prepare(source, &context.config).await?;
    let failed = |what| move |e| SessionError::Source(SourceError::postgres(what, e));
    loop {
        let due = timetable.next().await;
        match due {
            Due::Heartbeat => {
                // Before it is sent: see `crate::cache::watermark`.
                let at = Instant::now();
                let beat = source.query_one(include_str!("../../sql/heartbeat.sql"), &[]);
                let beat = within("emit a heartbeat", config.dead_after, beat).await?;
                let beat = beat.map_err(failed("emit a heartbeat"))?;
                let lsn = beat.get::<_, Option<&str>>("lsn").and_then(|text| text.parse().ok());
                // Postgres prints LSNs that parse. If not, it is as if the heartbeat had not come back.
                if let Some(lsn) = lsn {
                    context.hierarchy.watermark.mark(lsn, at);
                }
            }
            Due::Position => {
                let row = source.query_one(include_str!("../../sql/log_end.sql"), &[]);
                let row = within("read the position of the log", config.dead_after, row).await?;
                let row = row.map_err(failed("read the position of the log"))?;
                // Postgres prints positions that parse.
                let flushed: Lsn = row.get::<_, &str>(0).parse().unwrap_or_default();
                context.metrics.replication.lag_bytes(flushed, progress.received(), progress.applied());
                context.status.set_source_lsn(flushed);
            }
            // DDL on a table that nobody writes to is not in the stream, nor is that a table is no longer published. If the
            // order finds no room, another one comes first, and the next look finds the same again.
            Due::Schema => {
                if !shapes.differing(entities, &signatures.read(source).await?).is_empty() {
                    let _ = orders.try_send(Order::LookAround);
                }
            }
            Due::Joining => {
                if entities.iter().any(|entity| is_joining(entity)) {
                    let _ = orders.try_send(Order::LookAround);
                }
            }
            Due::FullLook => {
                if let Some(part) = parts.next() {
                    full_look(context, (source, shapes), part, &orders).await?;
                }
            }
        }
        timetable.done(due);
    }
}

/// Looks at some tables in full, and has those looked at again that are not as they were.
async fn full_look(
    context: &Context,
    (source, shapes): (&Client, &Catalog),
    part: &[usize],
    orders: &mpsc::Sender<Order>,
) -> Result<(), SessionError> {
    let looked = match shapes.look_up(source, part).await {
        // Something is in use, or locked: another time.
        Err(error) if error.sqlstate().is_some_and(|code| code.starts_with("55")) => return Ok(()),
        looked => looked?,
    };
    for (id, found) in part.iter().zip(looked) {
        let entity = &context.hierarchy.entities[*id];
        // A look does not tell whether it has joined. What is locked shows another time.
        let stands = found.standing == *entity.standing()
            || (found.standing == Standing::Cached && is_joining(entity))
            || found.standing.is_locked();
        if !stands || found.shape.is_some_and(|shape| shape != *entity.shape()) {
            let _ = orders.try_send(Order::Reshape(entity.id));
        }
    }
    Ok(())
}
