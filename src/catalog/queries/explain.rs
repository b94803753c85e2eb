//! Asking the server for the plan of a query with parameters, and for the tables that it reads, without running it; and what
//! it refuses.

use std::collections::BTreeSet;

use serde_json::Value;
use tokio_postgres::error::{DbError, SqlState};
use tokio_postgres::{SimpleQueryMessage, Statement};

use super::super::query_one;
use super::super::reader::Reader;
use crate::source::SourceError;
use crate::sql::quote_ident;

const LOCKS: &str = include_str!("../../../sql/plan_locks.sql");

/// Why there is no plan, or no description.
pub(in crate::catalog) struct Refused {
    /// Whether rights are missing.
    pub(in crate::catalog) rights: bool,
    /// What the server said.
    pub(in crate::catalog) said: String,
    /// The same, without its code.
    pub(in crate::catalog) message: String,
    /// Its code: the SQLSTATE.
    pub(in crate::catalog) code: String,
}

impl Refused {
    fn of(error: &DbError) -> Refused {
        let said = format!("{} (SQLSTATE {})", error.message(), error.code().code());
        let message = error.message().to_owned();
        let code = error.code().code().to_owned();
        Refused { rights: *error.code() == SqlState::INSUFFICIENT_PRIVILEGE, said, message, code }
    }
}

/// What the server says of a statement; or why it refuses it.
pub(in crate::catalog) fn described(
    prepared: Result<Statement, tokio_postgres::Error>,
) -> Result<Result<Statement, Refused>, SourceError> {
    match prepared {
        Ok(statement) => Ok(Ok(statement)),
        Err(error) => match error.as_db_error() {
            // Shutting down, canceled, out of resources, a lock that is not to be had: says nothing of the statement.
            Some(said) if !matches!(said.code().code().get(..2), Some("57" | "53" | "08" | "55")) => {
                Ok(Err(Refused::of(said)))
            }
            _ => Err(SourceError::postgres("describe a query", error)),
        },
    }
}

/// The role to plan as, where whoever is connected is another and may become it: `Some(None)` where nothing need be done;
/// `None` where it cannot be done.
pub(in crate::catalog) async fn role<'r>(
    client: &Reader<'_>,
    (oid, name): (u32, &'r str),
) -> Result<Option<Option<&'r str>>, SourceError> {
    let sql = "SELECT current_user = $2, coalesce((SELECT pg_has_role(current_user, r.oid, 'MEMBER') FROM pg_roles r \
               WHERE r.oid = $1), false)";
    let row = query_one(client, "read role", sql, &[&oid, &name]).await?;
    Ok(match (row.get(0), row.get(1)) {
        (true, _) => Some(None),
        (false, true) => Some(Some(name)),
        (false, false) => None,
    })
}

/// What the server says of a statement.
pub(in crate::catalog) struct Planned {
    /// Its plan, in Postgres' JSON.
    pub(in crate::catalog) json: Value,
    /// The relations that it reads, by schema and name; system catalogs are not among them.
    pub(in crate::catalog) reads: BTreeSet<(String, String)>,
}

/// How a plan is made.
#[derive(Clone, Copy)]
pub(in crate::catalog) struct Options<'a> {
    /// The role to plan as, unless it is the one that is connected.
    pub(in crate::catalog) role: Option<&'a str>,
    /// Whether tables are read as a whole only where there is no other way.
    pub(in crate::catalog) avoid_scans: bool,
}

/// The plan of a statement of which the parameters are not known. Types are given by their names.
pub(in crate::catalog) async fn plan(
    client: &Reader<'_>,
    sql: &str,
    types: &[&str],
    options: Options<'_>,
) -> Result<Result<Planned, Refused>, SourceError> {
    let name = format!("walcache_{:016x}", rand::random::<u64>());
    let role = options.role.map(|role| format!("SET LOCAL ROLE {};\n", quote_ident(role))).unwrap_or_default();
    let scans = if options.avoid_scans { "off" } else { "on" };
    let (declared, nulls) = match types {
        [] => (String::new(), String::new()),
        types => (format!(" ({})", types.join(", ")), format!(" ({})", vec!["NULL"; types.len()].join(", "))),
    };
    // One message, so one transaction, in which nothing else can run. Partitions are not left out for being of no interest
    // to NULL. The statement has been described before: it is one, and a semicolon ends it.
    let script = format!(
        "SET LOCAL plan_cache_mode = force_generic_plan;\nSET LOCAL enable_partition_pruning = off;\n\
         SET LOCAL enable_seqscan = {scans};\n{role}PREPARE {name}{declared} AS\n{sql}\n;\n\
         EXPLAIN (FORMAT JSON, VERBOSE) EXECUTE {name}{nulls};\n{LOCKS};\nDEALLOCATE {name}"
    );
    let failed = |error| SourceError::postgres("plan a query", error);
    match client.simple_query(&script).await {
        Ok(messages) => {
            let mut rows = messages.iter().filter_map(|message| match message {
                SimpleQueryMessage::Row(row) => Some(row),
                _ => None,
            });
            let json = rows.next().and_then(|row| serde_json::from_str(row.get(0)?).ok());
            let reads = rows.filter_map(|row| Some((row.get(0)?.to_owned(), row.get(1)?.to_owned()))).collect();
            let odd = "its plan is not of the expected form".to_owned();
            let odd = || Refused { rights: false, said: odd.clone(), message: odd, code: String::new() };
            Ok(json.map(|json| Planned { json, reads }).ok_or_else(odd))
        }
        Err(error) => {
            let Some(refusal) = error.as_db_error() else { return Err(failed(error)) };
            // PREPARE is not undone with the rest. It may not have come to that.
            let dropped = client.batch_execute(&format!("DEALLOCATE {name}")).await;
            if let Err(error) = dropped
                && error.code() != Some(&SqlState::INVALID_SQL_STATEMENT_NAME)
            {
                return Err(SourceError::postgres("drop the statement of a plan", error));
            }
            if *refusal.code() == SqlState::LOCK_NOT_AVAILABLE {
                return Err(failed(error));
            }
            Ok(Err(Refused::of(refusal)))
        }
    }
}
