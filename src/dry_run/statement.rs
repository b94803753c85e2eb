//! A statement that is run and taken back.

use serde_json::Value;
use tokio_postgres::{Client, Transaction};

use super::DryRunError;
use super::relation::{Changed, Row, Table, said};
use crate::config::TableName;

/// Limits of the transaction: it must not keep others waiting.
const LIMITS: &str = "SET LOCAL lock_timeout = '2s'; SET LOCAL statement_timeout = '10s'; \
                      SET LOCAL idle_in_transaction_session_timeout = '30s'";

/// What a statement changes.
pub(super) struct Target {
    pub(super) table: TableName,
    operation: String,
    /// What the statement calls the table.
    alias: String,
}

fn refused(error: tokio_postgres::Error) -> DryRunError {
    DryRunError::Refused(said(&error))
}

pub(super) async fn begin(client: &mut Client) -> Result<Transaction<'_>, DryRunError> {
    let transaction = client.transaction().await.map_err(refused)?;
    transaction.batch_execute(LIMITS).await.map_err(refused)?;
    Ok(transaction)
}

/// Finds out by its plan what a statement changes.
pub(super) async fn target(transaction: &Transaction<'_>, sql: &str) -> Result<Target, DryRunError> {
    // One statement only: it goes through the extended protocol, which takes no more.
    let plan = transaction.query_one(&format!("EXPLAIN (VERBOSE, FORMAT JSON) {sql}"), &[]).await.map_err(refused)?;
    let plan: Value = plan.try_get(0).map_err(refused)?;
    let node = &plan[0]["Plan"];
    let text = |name: &str| node[name].as_str().map(str::to_owned);
    let no_change = || DryRunError::NoChange(format!("{:?}", sql.chars().take(60).collect::<String>()));
    if node["Node Type"] != "ModifyTable" || node["Operation"] == "Merge" {
        return Err(no_change());
    }
    let (schema, name) = (text("Schema").ok_or_else(no_change)?, text("Relation Name").ok_or_else(no_change)?);
    let alias = text("Alias").unwrap_or_else(|| name.clone());
    let operation = text("Operation").ok_or_else(no_change)?;
    Ok(Target { table: TableName { schema, name }, operation, alias })
}

/// Runs it, and gives the rows that it has changed, before and after.
pub(super) async fn run(
    transaction: &Transaction<'_>,
    sql: &str,
    target: &Target,
    table: &Table,
) -> Result<Vec<Changed>, DryRunError> {
    let alias = crate::sql::quote_ident(&target.alias);
    let sql = sql.trim().trim_end_matches(';');
    let changed = format!("WITH walcache_changed AS ({sql}\n RETURNING {alias}.*)");
    let relation = &table.relation;
    let name = TableName { schema: relation.schema.clone(), name: relation.name.clone() }.sql();
    // Beside a statement that changes rows, the others of a query still see those of before.
    let query = match (target.operation.as_str(), table.same_key("o", "n")) {
        ("Delete", _) => {
            format!("{changed} SELECT {} AS old, NULL::text[] AS new FROM walcache_changed n", table.values("n"))
        }
        (_, Some(same)) => format!(
            "{changed} SELECT CASE WHEN o IS DISTINCT FROM NULL THEN {} END AS old, {} AS new
             FROM walcache_changed n LEFT JOIN {name} o ON {same}",
            table.values("o"),
            table.values("n"),
        ),
        (_, None) => {
            format!("{changed} SELECT NULL::text[] AS old, {} AS new FROM walcache_changed n", table.values("n"))
        }
    };
    let rows = transaction.query(&query, &[]).await.map_err(refused)?;
    let row = |row: &tokio_postgres::Row| -> Result<Changed, DryRunError> {
        let of = |name: &str| row.try_get::<_, Option<Row>>(name).map_err(refused);
        let old = of("old")?;
        let other_key = old.is_none() && target.operation == "Update";
        Ok(Changed { old, new: of("new")?, other_key })
    };
    rows.iter().map(row).collect()
}
