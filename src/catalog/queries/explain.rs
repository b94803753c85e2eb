//! Asking the server for the plan of a query with parameters, without running it.

use serde_json::Value;
use tokio_postgres::error::{DbError, SqlState};
use tokio_postgres::{Client, SimpleQueryMessage};

use super::super::query_one;
use crate::source::SourceError;
use crate::sql::quote_ident;

/// Why there is no plan, or no description.
pub(super) struct Refused {
    /// Whether rights are missing.
    pub(super) rights: bool,
    /// What the server said.
    pub(super) said: String,
}

impl Refused {
    pub(super) fn of(error: &DbError) -> Refused {
        let said = format!("{} (SQLSTATE {})", error.message(), error.code().code());
        Refused { rights: *error.code() == SqlState::INSUFFICIENT_PRIVILEGE, said }
    }
}

/// The role to plan as, where whoever is connected is another and may become it: `Some(None)` where nothing need be done;
/// `None` where it cannot be done.
pub(super) async fn role<'r>(
    client: &Client,
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

/// How a plan is made.
#[derive(Clone, Copy)]
pub(super) struct Options<'a> {
    /// The role to plan as, unless it is the one that is connected.
    pub(super) role: Option<&'a str>,
    /// Whether tables are read as a whole only where there is no other way.
    pub(super) avoid_scans: bool,
}

/// The plan of a statement of which the parameters are not known, in Postgres' JSON. Types are given by their names.
pub(super) async fn plan(
    client: &Client,
    sql: &str,
    types: &[&str],
    options: Options<'_>,
) -> Result<Result<Value, Refused>, SourceError> {
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
         EXPLAIN (FORMAT JSON, VERBOSE) EXECUTE {name}{nulls};\nDEALLOCATE {name}"
    );
    let failed = |error| SourceError::postgres("plan a query", error);
    match client.simple_query(&script).await {
        Ok(messages) => {
            let text = messages.iter().find_map(|message| match message {
                SimpleQueryMessage::Row(row) => row.get(0),
                _ => None,
            });
            let plan = text.and_then(|text| serde_json::from_str(text).ok());
            Ok(plan.ok_or_else(|| Refused { rights: false, said: "its plan is not of the expected form".to_owned() }))
        }
        Err(error) => {
            let Some(refusal) = error.as_db_error() else { return Err(failed(error)) };
            if *refusal.code() == SqlState::LOCK_NOT_AVAILABLE {
                return Err(failed(error));
            }
            let refused = Refused::of(refusal);
            // PREPARE is not undone with the rest. It may not have come to that.
            let _ = client.batch_execute(&format!("DEALLOCATE {name}")).await;
            Ok(Err(refused))
        }
    }
}
