//! The replication slot.

use super::finding::{Finding, Findings, Phase};
use super::query_opt;
use super::reader::Reader;
use crate::config::{Plugin, SourceConfig};
use crate::source::SourceError;
use crate::sql::quote_literal;

/// A row of `pg_replication_slots`.
pub(super) struct Slot {
    slot_type: String,
    plugin: Option<String>,
    database: Option<String>,
    temporary: bool,
    wal_status: Option<String>,
    /// Why the server has invalidated it; told from Postgres 17 on.
    invalidated: Option<String>,
    /// Whether standbys keep it in step; `None` before Postgres 17.
    failover: Option<bool>,
    /// The consumer's process, where there is one.
    pub(super) active_pid: Option<i32>,
}

pub(super) async fn read(client: &Reader<'_>, name: &str) -> Result<Option<Slot>, SourceError> {
    let row = query_opt(client, "read slot", include_str!("../../sql/slot.sql"), &[&name]).await?;
    Ok(row.map(|row| Slot {
        slot_type: row.get("slot_type"),
        plugin: row.get("plugin"),
        database: row.get("database"),
        temporary: row.get("temporary"),
        wal_status: row.get("wal_status"),
        invalidated: row.get("invalidated"),
        failover: row.get("failover"),
        active_pid: row.get("active_pid"),
    }))
}

/// The first version that has failover slots, as `server_version_num`.
pub const FAILOVER_SLOTS: i32 = 170_000;

/// `database` is the one of the configuration, `version` the server's.
pub(super) fn check(
    slot: Option<&Slot>,
    config: &SourceConfig,
    (database, version): (&str, i32),
    findings: &mut Findings,
) {
    let subject = format!("slot {}", config.slot);
    let (name, plugin) = (quote_literal(&config.slot), quote_literal(config.plugin.as_str()));
    let failover = if config.failover_slot && version >= FAILOVER_SLOTS { ", failover => true" } else { "" };
    let create = format!("SELECT pg_create_logical_replication_slot({name}, {plugin}{failover})");
    let recreate = format!("SELECT pg_drop_replication_slot({name});\n{create}");
    let Some(slot) = slot else {
        let remedy = match config.plugin {
            Plugin::Pgoutput => "`walcache run` creates it, once it has the publication",
            Plugin::Wal2json => "`walcache run` creates it",
        };
        let finding = Finding::warning("slot_missing", subject, "does not exist yet", remedy);
        findings.add(finding.mended_in(Phase::Slot, create));
        return;
    };
    if slot.slot_type != "logical" {
        let remedy = "choose another source.slot: this one belongs to a standby or an archiver";
        findings.add(Finding::error("slot_physical", subject, "is a physical slot", remedy));
        return;
    }
    if slot.database.as_deref() != Some(database) {
        let what = format!("belongs to database {:?}", slot.database.as_deref().unwrap_or_default());
        findings.add(Finding::error("slot_database", subject, what, "choose another source.slot"));
        return;
    }
    if slot.plugin.as_deref() != Some(config.plugin.as_str()) {
        let what =
            format!("decodes with {:?}, not {:?}", slot.plugin.as_deref().unwrap_or_default(), config.plugin.as_str());
        let remedy = "choose another source.slot, or drop this one if nobody else reads it";
        findings.add(Finding::error("slot_plugin", &subject, what, remedy).sql(&recreate));
    }
    if slot.temporary {
        let remedy = "choose another source.slot: this one ends with the session that made it";
        findings.add(Finding::error("slot_temporary", &subject, "is temporary", remedy));
    }
    match slot.wal_status.as_deref() {
        Some("lost") => {
            let what = match slot.invalidated.as_deref() {
                Some("idle_timeout") => "is lost: nobody has read it for longer than idle_replication_slot_timeout",
                Some("wal_level_insufficient") => "is lost: wal_level was not logical for a time",
                // Before Postgres 17 it is not told, and this is the only one on a primary.
                _ => "is lost: the server has removed log that it needed (max_slot_wal_keep_size)",
            };
            let remedy =
                "`walcache run` drops it, makes a new one and starts a new generation, since changes were missed";
            findings.add(Finding::warning("slot_lost", &subject, what, remedy).sql(recreate));
        }
        Some("unreserved") => {
            let what = "is about to be lost: it is further behind than max_slot_wal_keep_size";
            let remedy = "run walcache, so that it catches up, or raise max_slot_wal_keep_size";
            findings.add(Finding::warning("slot_unreserved", &subject, what, remedy));
        }
        _ => {}
    }
    if config.failover_slot && slot.failover == Some(false) {
        let what = "is no failover slot: standbys do not keep it in step, so that it is gone after a promotion";
        // There is no SQL for it.
        let remedy = format!(
            "`walcache run` alters it when it connects next; else, over a replication connection, ALTER_REPLICATION_SLOT \"{}\" \
             (FAILOVER true); or set source.failover_slot = false",
            config.slot
        );
        findings.add(Finding::warning("slot_failover", &subject, what, remedy));
    }
    if let Some(pid) = slot.active_pid {
        let what = format!("is in use by process {pid} of the server");
        let remedy = "nothing, if that is walcache; else stop that consumer, or choose another source.slot";
        findings.add(Finding::warning("slot_active", subject, what, remedy));
    }
}
