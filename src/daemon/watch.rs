//! Watches the slot from outside the stream, so that its state is known also while there is no stream: while the source is
//! connected to, L2 is waited for, or another instance leads.
//!
//! It does so over a connection of its own, which is replaced now and then. So it is noticed, too, when `source.url` leads
//! to another server than the one that is followed: after a failover the old primary may run on, and keep the
//! connections that it has.

use std::time::{Duration, Instant};

use tokio::time::{MissedTickBehavior, interval};
use tokio_postgres::types::ToSql;
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, info, warn};

use super::Context;
use crate::metrics::SlotStatus;
use crate::source::{self, SourceError, within};

/// The first pause after a failure.
const FIRST_PAUSE: Duration = Duration::from_millis(200);

/// What the server says of the slot.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Health {
    /// What keeps the log: `wal_status`, or that there is no slot.
    pub(super) status: SlotStatus,
    /// Bytes of log that it keeps the server from removing; `None` once it is lost.
    pub(super) retained: Option<i64>,
    /// Bytes that may be written before the server removes what it needs, not positive where that is due; `None`
    /// without a limit, or once it is lost.
    pub(super) safe: Option<i64>,
    /// Why the server has invalidated it; told from Postgres 17 on.
    pub(super) invalidated: Option<String>,
}

/// Watches until stopped. What fails here ends nothing: the stream has its own connections, and finds out by itself.
pub(super) async fn watch(context: &Context, stop: &CancellationToken) {
    let mut backoff = crate::retry::forever(FIRST_PAUSE, context.config.source.reconnect_max);
    let mut last = SlotStatus::Reserved;
    loop {
        let ended = tokio::select! {
            ended = observe(context, &mut last) => ended,
            () = stop.cancelled() => return,
        };
        let pause = match ended {
            Ok(()) => {
                backoff.reset();
                continue;
            }
            Err(error) => {
                // Not known is not the same as well.
                context.status.set_slot(None);
                context.metrics.replication.slot.unknown();
                debug!(%error, "the slot cannot be watched; trying again");
                backoff.next()
            }
        };
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = stop.cancelled() => return,
        }
    }
}

/// Observes the slot over one connection, for as long as the address may lead elsewhere unnoticed.
async fn observe(context: &Context, last: &mut SlotStatus) -> Result<(), SourceError> {
    let config = &context.config.source;
    let client = source::connect(config, Some(super::STATEMENT_TIMEOUT)).await?;
    let until = Instant::now() + config.dead_after;
    let server = source::which_server(&client, config.dead_after).await?;
    if !context.followed.admits(server.as_ref()) {
        // The stream is told by that, unless it is a standby, which is no reason to leave the primary.
        return Err(SourceError::Moved);
    }
    let mut ticks = interval(config.status_interval);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    while Instant::now() < until {
        ticks.tick().await;
        const WHAT: &str = "read the health of the slot";
        let params: [&(dyn ToSql + Sync); 1] = [&config.slot];
        let row = client.query_opt(include_str!("../../sql/slot_health.sql"), &params);
        let row = within(WHAT, config.dead_after, row).await?.map_err(|e| SourceError::postgres(WHAT, e))?;
        let health = match row {
            None => Health { status: SlotStatus::Missing, retained: None, safe: None, invalidated: None },
            Some(row) => Health {
                status: SlotStatus::of_wal_status(row.get("wal_status")),
                retained: row.get("retained"),
                safe: row.get("safe"),
                invalidated: row.get("invalidated"),
            },
        };
        if health.status != *last {
            say(&config.slot, *last, &health);
            *last = health.status;
        }
        context.metrics.replication.slot.set(health.status, health.retained, health.safe);
        context.status.set_slot(Some(health));
    }
    Ok(())
}

/// Once for each change.
fn say(slot: &str, before: SlotStatus, health: &Health) {
    let (retained, safe) = (health.retained.unwrap_or_default(), health.safe);
    match health.status {
        SlotStatus::Extended => {
            warn!(
                slot,
                retained, safe, "the slot keeps more log than max_wal_size: walcache is behind, or does not run"
            );
        }
        SlotStatus::Unreserved => warn!(
            slot,
            retained,
            safe,
            "the slot is about to be lost: it is further behind than max_slot_wal_keep_size, and the next checkpoint \
             removes log that it needs"
        ),
        SlotStatus::Lost => error!(
            slot,
            reason = health.invalidated,
            "the slot is lost: changes are missed, so everything cached becomes unservable when a new slot is made"
        ),
        SlotStatus::Reserved if before != SlotStatus::Missing => {
            info!(slot, retained, safe, "the slot keeps no more log than it may");
        }
        // Whoever makes it, or finds it gone, says so.
        SlotStatus::Reserved | SlotStatus::Missing => {}
    }
}
