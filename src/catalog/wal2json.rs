//! What the plugin wal2json needs, and what it tells less of than a publication does.

use std::time::Duration;

use tokio_postgres::error::SqlState;

use super::finding::{Finding, Findings};
use super::query;
use super::reader::Reader;
use super::server::Server;
use super::types::Oid;
use crate::config::Plugin;
use crate::entity::{StreamedColumn, StreamedTable};
use crate::source::SourceError;

/// How long making a slot may take before the plugin counts as loaded: the rest is waiting for transactions that run.
const PROBE: Duration = Duration::from_millis(300);

/// Whether the server has the plugin, and values that it writes are UTF-8.
pub(super) async fn check(client: &Reader<'_>, server: &Server, findings: &mut Findings) -> Result<(), SourceError> {
    // What pgoutput sends is converted to the client's encoding.
    if server.encoding() != "UTF8" {
        let what = format!("the database's encoding is {}, and wal2json does not convert it", server.encoding());
        let remedy = "use plugin \"pgoutput\", or move the data to a database with encoding UTF8";
        findings.add(Finding::error("encoding", "server", what, remedy));
    }
    if let Some(why) = client.within("look for the plugin wal2json", lacks_plugin(client)).await? {
        let remedy = "install it (Debian and Ubuntu: apt install postgresql-NN-wal2json; PGDG on Red Hat: wal2json_NN; \
                      on Amazon RDS it is there), or use plugin \"pgoutput\"";
        findings.add(Finding::error("plugin_missing", "plugin wal2json", format!("is not installed: {why}"), remedy));
    }
    Ok(())
}

/// Why the server cannot load the plugin, if it cannot. No catalog tells: a temporary slot is made, which loads it.
async fn lacks_plugin(client: &Reader<'_>) -> Result<Option<String>, SourceError> {
    let failed = |error| SourceError::postgres("look for the plugin wal2json", error);
    let name = format!("walcache_probe_{:08x}", rand::random::<u32>());
    let limit = format!("SET statement_timeout = {}", PROBE.as_millis());
    client.batch_execute(&limit).await.map_err(failed)?;
    let plugin = Plugin::Wal2json.as_str();
    let made = client.execute(include_str!("../../sql/probe_slot.sql"), &[&name, &plugin]).await;
    client.batch_execute("RESET statement_timeout").await.map_err(failed)?;
    match made {
        Ok(_) => {
            client.execute("SELECT pg_drop_replication_slot($1)", &[&name]).await.map_err(failed)?;
            Ok(None)
        }
        Err(error) => match error.as_db_error() {
            Some(said) if *said.code() == SqlState::UNDEFINED_FILE => Ok(Some(said.message().to_owned())),
            // Rights, slots used up, or a transaction that runs for long: whatever matters is a finding of its own.
            Some(_) => Ok(None),
            None => Err(failed(error)),
        },
    }
}

/// The tables under whose names an entity's rows come, itself first.
pub(super) async fn streamed_tables(client: &Reader<'_>, oid: Oid) -> Result<Vec<StreamedTable>, SourceError> {
    let rows = query(client, "read partitions", include_str!("../../sql/streamed_tables.sql"), &[&oid]).await?;
    let table = |row: &tokio_postgres::Row| {
        let names: Vec<String> = row.get("column_names");
        let (type_oids, positions): (Vec<Oid>, Vec<i16>) = (row.get("type_oids"), row.get("positions"));
        let (out_of_line, computed): (Vec<bool>, Vec<bool>) = (row.get("out_of_line"), row.get("computed"));
        let facts = type_oids.into_iter().zip(positions).zip(out_of_line.into_iter().zip(computed));
        let columns = names.into_iter().zip(facts).map(|(name, ((type_oid, position), (out_of_line, computed)))| {
            StreamedColumn { name, type_oid, position, out_of_line, computed }
        });
        StreamedTable {
            oid: row.get("oid"),
            schema: row.get("schema"),
            name: row.get("name"),
            columns: columns.collect(),
            version: row.get("version"),
        }
    };
    Ok(rows.iter().map(table).collect())
}

/// Columns that are computed when they are read are in no row of the log.
pub(super) fn check_computed(entity: &str, needed: &[&str], tables: &[StreamedTable], findings: &mut Findings) {
    let computed = tables.iter().take(1).flat_map(|table| &table.columns).filter(|column| column.computed);
    for column in computed.filter(|column| needed.contains(&column.name.as_str())) {
        let what = format!("column {} is computed when it is read, so the stream does not carry it", column.name);
        let remedy = "nothing: changes of these rows delete entries instead of rewriting them; or leave the column out of \
                      the entity's columns";
        findings.add(Finding::warning("generated_column", format!("entity {entity}"), what, remedy));
    }
}
