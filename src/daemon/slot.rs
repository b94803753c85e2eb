//! The replication slot: where the stream continues, and whether it can.

use tokio_postgres::types::ToSql;
use tokio_postgres::{Client, Row};
use tracing::{info, warn};

use crate::catalog;
use crate::config::SourceConfig;
use crate::lsn::Lsn;
use crate::source::{SourceError, within};

/// Where the slot stands.
pub struct Slot {
    /// What was confirmed: the stream continues after it.
    pub confirmed: Lsn,
    /// Why that is not where the last session ended, if it is not: changes may have been missed in between.
    pub broken: Option<&'static str>,
    /// Whether standbys keep it in step; `None` before Postgres 17.
    pub failover: Option<bool>,
    /// Whether somebody streams from it.
    pub active: bool,
}

/// Reads the slot; makes it where there is none, and makes it anew where the server has removed log that it needed.
/// Neither is a continuation of what was applied before.
///
/// # Errors
/// If the source refuses, or the slot is somebody else's.
pub async fn ensure(source: &Client, config: &SourceConfig) -> Result<Slot, SourceError> {
    let row = read(source, config).await?;
    let Some(row) = row else {
        info!(slot = config.slot, "creating the replication slot; this waits for transactions that run now");
        return create(source, config, "the replication slot is new").await;
    };
    // It was checked at the start, but somebody may have put another in its place. Not ours to read, and not to drop.
    if let Some(what) = row.get("foreign_to_us") {
        return Err(SourceError::ForeignSlot { slot: config.slot.clone(), what });
    }
    let lost: bool = row.get("lost");
    if lost {
        // From Postgres 17 on; before, there is but one: the log that it needed is gone.
        let reason: Option<&str> = row.get("invalidated");
        warn!(slot = config.slot, reason, "the server has invalidated the slot; dropping it for a new one");
        drop_slot(source, config, "drop the lost slot").await?;
        return create(source, config, "the replication slot was lost, and changes with it").await;
    }
    let (failover, active) = (row.get("failover"), row.get("active"));
    Ok(Slot { confirmed: lsn(row.get("confirmed"))?, broken: None, failover, active })
}

/// Makes the slot anew if its stream cannot go on: `stuck_at` is where it ended because a publication was missing. The
/// server decodes changes with the catalog of their time, so a slot never gets past a time without its publication, though
/// the publication is there again. `None` while it is not, or where the slot has got further since.
///
/// # Errors
/// If the source refuses, as it does while somebody else holds the slot.
pub async fn renew(
    source: &Client,
    config: &SourceConfig,
    slot: &Slot,
    stuck_at: Lsn,
) -> Result<Option<Slot>, SourceError> {
    let names = config.publication.names();
    let present = source.query_one(include_str!("../../sql/publications_present.sql"), &[&names]).await;
    let present: i64 = present.map_err(|e| SourceError::postgres("look for the publications", e))?.get(0);
    if slot.broken.is_some() || slot.confirmed > stuck_at || present < names.len() as i64 {
        return Ok(None);
    }
    warn!(
        slot = config.slot,
        publication = %config.publication,
        "the slot cannot get past a time without its publication; dropping it for a new one"
    );
    drop_slot(source, config, "drop the stuck slot").await?;
    create(source, config, "the publication was gone for a time, and changes with it").await.map(Some)
}

async fn drop_slot(source: &Client, config: &SourceConfig, what: &'static str) -> Result<(), SourceError> {
    let dropped = source.execute("SELECT pg_drop_replication_slot($1)", &[&config.slot]).await;
    dropped.map(drop).map_err(|e| SourceError::postgres(what, e))
}

/// What was confirmed, once the slot is held. Before, its holder may confirm more, and be gone.
///
/// # Errors
/// If the source refuses, or the slot is gone.
pub async fn confirmed(source: &Client, config: &SourceConfig) -> Result<Lsn, SourceError> {
    match read(source, config).await? {
        Some(row) => lsn(row.get("confirmed")),
        None => Err(SourceError::SlotGone(config.slot.clone())),
    }
}

async fn read(source: &Client, config: &SourceConfig) -> Result<Option<Row>, SourceError> {
    const READ: &str = "read the slot";
    let params: [&(dyn ToSql + Sync); 2] = [&config.slot, &config.plugin.as_str()];
    let row = source.query_opt(include_str!("../../sql/slot_position.sql"), &params);
    within(READ, config.dead_after, row).await?.map_err(|e| SourceError::postgres(READ, e))
}

/// Tells the server's lives apart: it differs after a crash, and not after a restart in order. A crash takes back commits
/// that were visible but not flushed (`synchronous_commit = off`), and no event ever tells of that; what was filled
/// from them must go. Resetting the statistics looks the same, and costs a new generation.
///
/// # Errors
/// If the source refuses.
pub async fn incarnation(source: &Client) -> Result<i64, SourceError> {
    let row = source.query_one(include_str!("../../sql/incarnation.sql"), &[]).await;
    Ok(row.map_err(|e| SourceError::postgres("read when statistics began", e))?.get(0))
}

async fn create(source: &Client, config: &SourceConfig, why: &'static str) -> Result<Slot, SourceError> {
    // It waits for every transaction that runs, which may take longer than any other statement of ours.
    let version = source.query_one(include_str!("../../sql/server_version.sql"), &[]).await;
    let version: i32 = version.map_err(|e| SourceError::postgres("read the server's version", e))?.get(0);
    let failover = (version >= catalog::FAILOVER_SLOTS).then_some(config.failover_slot);
    let sql = match failover {
        Some(true) => include_str!("../../sql/create_failover_slot.sql"),
        _ => include_str!("../../sql/create_slot.sql"),
    };
    let limit = async |sql| source.batch_execute(sql).await.map_err(|e| SourceError::postgres("create the slot", e));
    limit("SET statement_timeout = 0").await?;
    let created = source
        .query_one(sql, &[&config.slot, &config.plugin.as_str()])
        .await
        .map_err(|e| SourceError::postgres("create the slot", e))?;
    limit("RESET statement_timeout").await?;
    Ok(Slot { confirmed: lsn(created.get(0))?, broken: Some(why), failover, active: false })
}

fn lsn(text: Option<&str>) -> Result<Lsn, SourceError> {
    // A slot that decodes has a position, and a position prints as one.
    Ok(text.and_then(|t| t.parse().ok()).unwrap_or_default())
}
