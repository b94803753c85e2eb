//! A statement that is run and taken back.

use serde_json::Value;

use super::relation::{Changed, Row, Table};
use super::trial::{Trial, said};
use super::update::Update;
use super::{DryRunError, MAX_ROWS};
use crate::config::TableName;

/// What a statement changes.
pub(super) struct Target {
    pub(super) table: TableName,
    operation: String,
    /// What the statement calls the table.
    alias: String,
}

/// Finds out by its plan what a statement changes.
pub(super) async fn target(trial: &Trial<'_>, sql: &str) -> Result<Target, DryRunError> {
    let no_change = || DryRunError::NoChange(format!("{:?}", sql.chars().take(60).collect::<String>()));
    let plan = trial.query(&format!("EXPLAIN (VERBOSE, FORMAT JSON) {sql}"), &[]).await?;
    let plan: Value = plan.first().ok_or_else(no_change)?.try_get(0).map_err(|error| said(&error))?;
    let node = &plan[0]["Plan"];
    let text = |name: &str| node[name].as_str().map(str::to_owned);
    if node["Node Type"] != "ModifyTable" || node["Operation"] == "Merge" {
        return Err(no_change());
    }
    let (schema, name) = (text("Schema").ok_or_else(no_change)?, text("Relation Name").ok_or_else(no_change)?);
    let alias = text("Alias").unwrap_or_else(|| name.clone());
    let operation = text("Operation").ok_or_else(no_change)?;
    Ok(Target { table: TableName { schema, name }, operation, alias })
}

/// Runs it, and gives the first [`MAX_ROWS`] of the rows that it has changed, before and after; and how many they are.
pub(super) async fn run(
    trial: &Trial<'_>,
    sql: &str,
    target: &Target,
    table: &Table,
) -> Result<(Vec<Changed>, usize), DryRunError> {
    let alias = crate::sql::quote_ident(&target.alias);
    let sql = sql.trim().trim_end_matches(';');
    let is_update = target.operation == "Update";
    // An update that gives its old rows, too, if this one can be written so.
    let rows = match Update::read(sql).filter(|_| is_update) {
        Some(update) => {
            let changed = format!("{} {alias}.*, {}", update.beside_old(&alias, &table.sql()), Update::OLD);
            let old = table.values(&format!("(n.{})", Update::OLD));
            trial.attempt(&query(&changed, &old, &table.values("n"), "")).await?
        }
        None => None,
    };
    let rows = match rows {
        Some(rows) => rows,
        None => trial.query(&by_key(sql, &alias, target, table), &[]).await?,
    };
    let refused = |error: tokio_postgres::Error| said(&error);
    let total = rows.first().map_or(Ok(0), |row| row.try_get::<_, i64>("total")).map_err(refused)?;
    let row = |row: &tokio_postgres::Row| -> Result<Changed, DryRunError> {
        let of = |name: &str| row.try_get::<_, Option<Row>>(name).map_err(refused);
        let old = of("old")?;
        let other_key = old.is_none() && is_update;
        Ok(Changed { old, new: of("new")?, other_key })
    };
    let changed = rows.iter().map(row).collect::<Result<_, _>>()?;
    // A count is never negative.
    Ok((changed, usize::try_from(total).unwrap_or_default()))
}

/// The statement's rows of before are those with the same key.
fn by_key(sql: &str, alias: &str, target: &Target, table: &Table) -> String {
    let changed = format!("{sql}\n RETURNING {alias}.*");
    let (none, new) = ("NULL::text[]", table.values("n"));
    // Beside a statement that changes rows, the others of a query still see those of before.
    match (target.operation.as_str(), table.same_key("o", "n")) {
        ("Delete", _) => query(&changed, &new, none, ""),
        (_, Some(same)) => {
            let old = format!("CASE WHEN o IS DISTINCT FROM NULL THEN {} END", table.values("o"));
            query(&changed, &old, &new, &format!("LEFT JOIN {} o ON {same}", table.sql()))
        }
        (_, None) => query(&changed, none, &new, ""),
    }
}

/// The old and the new row of what is `changed`, of no more than are told; each with the number of all.
fn query(changed: &str, old: &str, new: &str, join: &str) -> String {
    format!(
        "WITH walcache_changed AS ({changed}
         )
         SELECT {old} AS old, {new} AS new, (SELECT count(*) FROM walcache_changed) AS total
         FROM (SELECT * FROM walcache_changed LIMIT {MAX_ROWS}) n {join}"
    )
}
