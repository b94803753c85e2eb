//! The changed table and its rows, as the stream would have them.

use std::sync::Arc;

use tokio_postgres::error::SqlState;
use tokio_postgres::types::ToSql;

use super::DryRunError;
use super::trial::Trial;
use crate::change::{Change, Datum, OldTuple, Relation, RelationColumn, ReplicaIdentity, Tuple};
use crate::config::TableName;
use crate::sql::quote_ident;

/// A row: each column's value in its type's text form.
pub(super) type Row = Vec<Option<String>>;

/// A row before and after a change.
pub(super) struct Changed {
    pub(super) old: Option<Row>,
    pub(super) new: Option<Row>,
    /// Whether there is a row before that is not known: its key was another one.
    pub(super) other_key: bool,
}

/// A table.
pub(super) struct Table {
    pub(super) relation: Arc<Relation>,
    /// The positions of its primary key's columns, in the key's order.
    key: Vec<usize>,
    /// The type of each column for casts in SQL.
    casts: Vec<String>,
}

impl Table {
    pub(super) async fn read(trial: &Trial<'_>, name: &TableName) -> Result<Table, DryRunError> {
        let sql = include_str!("../../sql/relation.sql");
        let rows = trial.query(sql, &[&name.schema, &name.name]).await?;
        let Some(first) = rows.first() else {
            return Err(DryRunError::Table(format!("there is no table {name}, or it has no columns")));
        };
        let identity = match first.get::<_, &str>("identity") {
            "n" => ReplicaIdentity::Nothing,
            "f" => ReplicaIdentity::Full,
            "i" => ReplicaIdentity::Index,
            _ => ReplicaIdentity::Default,
        };
        let columns = rows.iter().map(|row| RelationColumn {
            name: row.get("column_name"),
            type_oid: row.get("type_oid"),
            type_modifier: row.get("modifier"),
            in_identity: row.get("in_identity"),
        });
        let relation = Relation {
            oid: first.get("oid"),
            schema: first.get("schema"),
            name: first.get("name"),
            identity,
            columns: columns.collect(),
        };
        let place = |(i, row): (usize, &tokio_postgres::Row)| Some((row.get::<_, Option<i32>>("key_position")?, i));
        let mut key: Vec<(i32, usize)> = rows.iter().enumerate().filter_map(place).collect();
        key.sort_unstable();
        let key = key.into_iter().map(|(_, i)| i).collect();
        let casts = rows.iter().map(|row| row.get("base_type")).collect();
        Ok(Table { relation: Arc::new(relation), key, casts })
    }

    pub(super) fn name(&self) -> String {
        format!("{}.{}", self.relation.schema, self.relation.name)
    }

    /// The values of a row that is named `of` in a query, as an array of texts: as the types' output functions write them.
    pub(super) fn values(&self, of: &str) -> String {
        let value = |column: &RelationColumn| {
            let column = format!("{of}.{}", quote_ident(&column.name));
            format!("CASE WHEN {column} IS NOT DISTINCT FROM NULL THEN NULL ELSE format('%s', {column}) END")
        };
        let values: Vec<String> = self.relation.columns.iter().map(value).collect();
        format!("ARRAY[{}]::text[]", values.join(", "))
    }

    /// The condition that two names of a query are of rows with one primary key.
    pub(super) fn same_key(&self, one: &str, other: &str) -> Option<String> {
        let equal = |position: &usize| {
            let column = quote_ident(&self.relation.columns[*position].name);
            format!("{one}.{column} = {other}.{column}")
        };
        let conditions: Vec<String> = self.key.iter().map(equal).collect();
        (!conditions.is_empty()).then(|| conditions.join(" AND "))
    }

    /// The row with this primary key, which is spelled as in URLs.
    pub(super) async fn row(&self, trial: &Trial<'_>, key: &str) -> Result<Row, DryRunError> {
        let parts: Vec<String> = crate::key::parts(key).map(|part| part.into_owned()).collect();
        if self.key.is_empty() || parts.len() != self.key.len() {
            let names: Vec<&str> = self.key.iter().map(|i| self.relation.columns[*i].name.as_str()).collect();
            let wanted = if names.is_empty() { "none".to_owned() } else { names.join(",") };
            return Err(DryRunError::Key(format!("{}: the primary key has the columns: {wanted}", self.name())));
        }
        let equal = |(i, position): (usize, &usize)| {
            let column = quote_ident(&self.relation.columns[*position].name);
            // The value, however it is spelled; by the key's index.
            format!("t.{column} = ${}::text::{}", i + 1, self.casts[*position])
        };
        let conditions: Vec<String> = self.key.iter().enumerate().map(equal).collect();
        let sql = format!("SELECT {} FROM {} t WHERE {}", self.values("t"), self.sql(), conditions.join(" AND "));
        let parts: Vec<&(dyn ToSql + Sync)> = parts.iter().map(|part| part as _).collect();
        let found = trial.query(&sql, &parts).await.map_err(|error| match error {
            // It spells no value of the type.
            DryRunError::Refused(said, Some(state)) if is_data(&state) => DryRunError::Key(said),
            error => error,
        })?;
        found.first().map(|row| row.get(0)).ok_or_else(|| DryRunError::Key(format!("{} has no row {key}", self.name())))
    }

    /// Its name for use in SQL.
    pub(super) fn sql(&self) -> String {
        format!("{}.{}", quote_ident(&self.relation.schema), quote_ident(&self.relation.name))
    }

    /// The change that the stream would tell of; `None` if nothing has changed.
    pub(super) fn change<'r>(&self, changed: &'r Changed) -> Option<(&'static str, Change<'r>)> {
        let relation = self.relation.clone();
        let whole = |row: &'r Row| -> Tuple<'r> { row.iter().map(datum).collect() };
        Some(match (&changed.old, &changed.new) {
            (None, None) => return None,
            (None, Some(new)) => {
                (if changed.other_key { "update" } else { "insert" }, Change::Insert { relation, new: whole(new) })
            }
            (Some(old), None) => (
                "delete",
                match self.old(old, None) {
                    OldTuple::None => Change::Untold { relation },
                    old => Change::Delete { relation, old },
                },
            ),
            (Some(old), Some(new)) => {
                ("update", Change::Update { relation, old: self.old(old, Some(new)), new: whole(new) })
            }
        })
    }

    /// What the stream tells of the row before.
    fn old<'r>(&self, old: &'r Row, new: Option<&Row>) -> OldTuple<'r> {
        let columns = &self.relation.columns;
        match self.relation.identity {
            ReplicaIdentity::Full => OldTuple::Full(old.iter().map(datum).collect()),
            ReplicaIdentity::Nothing => OldTuple::None,
            ReplicaIdentity::Default | ReplicaIdentity::Index => {
                let identity = || columns.iter().enumerate().filter(|(_, column)| column.in_identity).map(|(i, _)| i);
                let same = new.is_some_and(|new| identity().all(|i| old[i] == new[i]));
                if same || identity().next().is_none() {
                    return OldTuple::None;
                }
                let told = |(value, column): (&'r Option<String>, &RelationColumn)| {
                    if column.in_identity { datum(value) } else { Datum::Null }
                };
                OldTuple::Key(old.iter().zip(columns).map(told).collect())
            }
        }
    }

    /// A row by its primary key, for people.
    pub(super) fn describe(&self, changed: &Changed) -> String {
        let named = |row: &Row| {
            let part = |i: &usize| {
                let value = row[*i].as_deref().unwrap_or("NULL");
                format!("{}={value}", self.relation.columns[*i].name)
            };
            self.key.iter().map(part).collect::<Vec<_>>().join(",")
        };
        match (changed.old.as_ref().map(named), changed.new.as_ref().map(named)) {
            (Some(old), Some(new)) if old != new => format!("{old} -> {new}"),
            (None, Some(new)) if changed.other_key => {
                format!("{new} (it had another key, of whose entries nothing is told)")
            }
            (old, new) => new.or(old).unwrap_or_default(),
        }
    }
}

/// Whether it is of the class "data exception".
fn is_data(state: &SqlState) -> bool {
    state.code().starts_with("22")
}

fn datum(value: &Option<String>) -> Datum<'_> {
    value.as_ref().map_or(Datum::Null, |text| Datum::Text(text.as_bytes()))
}
