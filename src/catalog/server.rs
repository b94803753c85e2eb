//! The server, the role, and walcache's own schema.

use super::finding::{Finding, Findings, Phase};
use super::reader::Reader;
use super::slot::Slot;
use super::{query_one, types::Oid};
use crate::migrate::{self, MIGRATIONS};
use crate::source::{SourceError, SourceUrl};
use crate::sql::quote_ident;

/// The oldest version whose catalog and stream walcache knows, as `server_version_num`.
const OLDEST: i32 = 140_000;

/// What the server says of itself and of the role.
pub(super) struct Server {
    /// As `server_version_num`.
    pub(super) version: i32,
    in_recovery: bool,
    wal_level: String,
    encoding: String,
    database: String,
    session_role: String,
    slots: (i32, i32),
    senders: (i32, i32),
    /// 0 where the role does not exist.
    pub(super) role_oid: Oid,
    can_login: bool,
    can_replicate: bool,
}

impl Server {
    /// The encoding of the database.
    pub(super) fn encoding(&self) -> &str {
        &self.encoding
    }
}

pub(super) async fn read(client: &Reader<'_>, role: &str) -> Result<Server, SourceError> {
    let row = query_one(client, "read server settings", include_str!("../../sql/server.sql"), &[&role]).await?;
    Ok(Server {
        version: row.get("version"),
        in_recovery: row.get("in_recovery"),
        wal_level: row.get("wal_level"),
        encoding: row.get("encoding"),
        database: row.get("database"),
        session_role: row.get("session_role"),
        slots: (row.get("slots_used"), row.get("slots_max")),
        senders: (row.get("senders_used"), row.get("senders_max")),
        role_oid: row.get("role_oid"),
        can_login: row.get("can_login"),
        can_replicate: row.get("can_replicate"),
    })
}

pub(super) fn check(server: &Server, url: &SourceUrl, slot: Option<&Slot>, findings: &mut Findings) {
    let mut error = |code, what: String, remedy: &str, sql: Option<&str>| {
        let finding = Finding::error(code, "server", what, remedy);
        findings.add(match sql {
            Some(sql) => finding.sql(sql),
            None => finding,
        });
    };
    if server.version < OLDEST {
        let what = format!("is Postgres {}", server.version / 10_000);
        error("server_version", what, "upgrade to Postgres 14 or later", None);
    }
    if server.in_recovery {
        let what = "is a standby".to_owned();
        error("in_recovery", what, "name the primary in source.url: its slot is the one that is followed", None);
    }
    if server.wal_level != "logical" {
        let what = format!("wal_level is {}, so the log lacks what logical decoding needs", server.wal_level);
        let remedy =
            "set wal_level and restart the server (on Amazon RDS: rds.logical_replication = 1 in the parameter group)";
        error("wal_level", what, remedy, Some("ALTER SYSTEM SET wal_level = 'logical'"));
    }
    if server.encoding == "SQL_ASCII" {
        let what = "the database's encoding is SQL_ASCII: values that are not UTF-8 cannot become JSON".to_owned();
        error("encoding", what, "move the data to a database with a real encoding, such as UTF8", None);
    }
    if server.database != url.dbname() {
        let what = format!("this is database {:?}, source.url names {:?}", server.database, url.dbname());
        error("database_differs", what, "connect to the database of source.url", None);
    }
    let (used, max) = server.slots;
    if slot.is_none() && used >= max {
        let what = format!("all {max} replication slots are in use");
        let remedy = "raise max_replication_slots and restart the server, or drop a slot that nobody needs";
        error("slots_exhausted", what, remedy, Some(&format!("ALTER SYSTEM SET max_replication_slots = {}", max + 4)));
    }
    let (used, max) = server.senders;
    if slot.is_none_or(|slot| slot.active_pid.is_none()) && used >= max {
        let what = format!("all {max} WAL senders are in use");
        let remedy = "raise max_wal_senders and restart the server, or stop a consumer that nobody needs";
        error("senders_exhausted", what, remedy, Some(&format!("ALTER SYSTEM SET max_wal_senders = {}", max + 4)));
    }
    check_role(server, url.user(), findings);
}

fn check_role(server: &Server, role: &str, findings: &mut Findings) {
    let subject = format!("role {role}");
    let ident = quote_ident(role);
    if server.role_oid == 0 {
        // As it stands the statement fails, rather than to set a wrong password.
        let remedy = "create it with the password that source.url has (in psql, \\set password first)";
        let sql = format!("CREATE ROLE {ident} LOGIN REPLICATION PASSWORD :'password'");
        findings.add(Finding::error("role_missing", subject, "does not exist", remedy).mended_in(Phase::Role, sql));
        return;
    }
    if !server.can_login {
        let finding = Finding::error("role_login", &subject, "may not log in", "give it LOGIN");
        findings.add(finding.mended_in(Phase::Role, format!("ALTER ROLE {ident} LOGIN")));
    }
    if !server.can_replicate {
        let what = "may not replicate: it lacks REPLICATION";
        let remedy = "give it REPLICATION (on Amazon RDS: GRANT rds_replication), as a superuser";
        let finding = Finding::error("role_replication", subject, what, remedy);
        findings.add(finding.mended_in(Phase::Role, format!("ALTER ROLE {ident} REPLICATION")));
    }
}

pub(super) async fn check_own_schema(
    client: &Reader<'_>,
    server: &Server,
    role: &str,
    findings: &mut Findings,
) -> Result<(), SourceError> {
    let sql = include_str!("../../sql/own_schema.sql");
    let own = query_one(client, "read schema walcache", sql, &[&server.role_oid]).await?;
    let present = match own.get("migrations_readable") {
        true => client.within("read migrations", migrate::applied(client)).await?,
        false => Vec::new(),
    };
    let unknown: bool = own.get::<_, bool>("migrations_exist") && !own.get::<_, bool>("migrations_readable");
    // Where the table is there but cannot be read, the grants come first.
    for migration in MIGRATIONS.iter().filter(|m| !unknown && !present.contains(&m.version)) {
        let what = format!("migration {} was not applied", migration.version);
        let finding = Finding::error("migration_missing", "schema walcache", what, "apply it");
        findings.add(finding.mended_in(Phase::Schema, migration.script()));
    }
    if let Some(newer) = present.iter().find(|v| **v > MIGRATIONS.len() as i32) {
        let what = format!("migration {newer} comes from a later version of walcache");
        findings.add(Finding::error("migration_unknown", "schema walcache", what, "use that version"));
    }
    // Whoever applies the migrations owns what they make.
    let will_own = !own.get::<_, bool>("schema_exists") && server.session_role == role;
    if !own.get::<_, bool>("granted") && !will_own {
        let ident = quote_ident(role);
        let what = format!("role {role} may not use it");
        let finding = Finding::error("own_schema_rights", "schema walcache", what, "grant it");
        let sql = format!(
            "GRANT USAGE ON SCHEMA walcache TO {ident};\nGRANT SELECT ON walcache.migrations TO {ident};\n\
             GRANT USAGE ON SEQUENCE walcache.epoch TO {ident}"
        );
        findings.add(finding.mended_in(Phase::Grant, sql));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Secret;

    fn codes(version: i32) -> Vec<(&'static str, String)> {
        let server = Server {
            version,
            in_recovery: false,
            wal_level: "logical".into(),
            encoding: "UTF8".into(),
            database: "shop".into(),
            session_role: "walcache".into(),
            slots: (0, 10),
            senders: (0, 10),
            role_oid: 1,
            can_login: true,
            can_replicate: true,
        };
        let url = SourceUrl::parse(&Secret::from("postgres://walcache@127.0.0.1/shop")).unwrap();
        let mut findings = Findings::default();
        check(&server, &url, None, &mut findings);
        findings.0.into_iter().map(|finding| (finding.code, finding.remedy)).collect()
    }

    #[test]
    fn versions_before_14_are_refused() {
        assert_eq!(codes(140_000), []);
        assert_eq!(codes(180_004), []);
        assert_eq!(codes(130_022), [("server_version", "upgrade to Postgres 14 or later".to_owned())]);
    }
}
