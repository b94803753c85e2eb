//! An entity's query: its parameters, its result, the tables that it depends on, and how the database goes about it.

mod explain;
mod plan;

use explain::Refused;

use std::time::Duration;

use tokio_postgres::error::SqlState;
use tokio_postgres::types::{Kind, Type};
use tokio_postgres::{Client, Statement};

use super::finding::{Finding, Findings};
use super::identity;
use super::signature::Signature;
use super::table::{self, Column, Table};
use super::types::{self, ColumnTypes, KeyFacts, Oid};
use super::{query, query_one, wal2json};
use crate::config::{DependsOn, EntityConfig, Plugin, SourceConfig, nearest};
use crate::entity::query::{Dependency, Query, QueryFacts, ResultShape, RuleColumn, Via};
use crate::entity::{Published, Shape, ValueColumn, hash};
use crate::key::{KeyColumn, KeyType};
use crate::source::SourceError;

/// Why the query cannot be read as it is configured.
pub(super) const UNREADABLE: [&str; 3] = ["query_refused", "query_rights", "query_columns"];

/// The code of the finding that the query cannot be looked at now.
pub const LOCKED: &str = "query_locked";

/// How long a table that is just being altered is waited for: applying waits as long.
const LOCK_TIMEOUT: Duration = Duration::from_millis(200);

/// What a change of a row costs by one rule.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct RuleCost {
    /// The entity's name.
    pub entity: String,
    /// The rule's table.
    pub table: String,
    /// In words.
    pub cost: String,
}

/// A query as the catalog has it.
pub(super) struct Looked {
    /// By rule, its table; `None` where there is no such table.
    pub(super) tables: Vec<Option<Table>>,
    /// Its shape, but for what is published of the tables; `None` where it cannot be read at all.
    pub(super) shape: Option<Shape>,
    pub(super) costs: Vec<RuleCost>,
}

/// A parameter of the query.
struct Param {
    name: String,
    /// Its type, domains looked through.
    oid: Oid,
    key: KeyColumn,
}

/// The table of a rule, and what the rule reads there.
struct RuleTable {
    table: Option<Table>,
    /// The columns that it reads; `None` where one is missing or cannot be read so.
    columns: Option<Vec<Column>>,
    /// Whether the role may look into its schema.
    schema_usage: bool,
    streamed: Vec<crate::entity::StreamedTable>,
}

/// Whoever looks, at one entity.
struct Look<'a> {
    client: &'a Client,
    entity: &'a EntityConfig,
    query: &'a Query,
    /// The role that reads, whoever is connected.
    role: (Oid, &'a str),
    source: &'a SourceConfig,
    subject: String,
}

/// Looks at an entity's query with the rights of `role` (oid and name). The signature was read before.
pub(super) async fn inspect(
    client: &Client,
    (entity, query): (&EntityConfig, &Query),
    role: (Oid, &str),
    (source, signature): (&SourceConfig, Signature),
    findings: &mut Findings,
) -> Result<Looked, SourceError> {
    let subject = format!("entity {}", entity.name);
    let look = Look { client, entity, query, role, source, subject };
    // To describe and to plan a query locks its tables.
    let failed = |error| SourceError::postgres("limit waiting for locks", error);
    client.batch_execute(&format!("SET lock_timeout = {}", LOCK_TIMEOUT.as_millis())).await.map_err(failed)?;
    let looked = look.inspect(signature, findings).await;
    client.batch_execute("RESET lock_timeout").await.map_err(failed)?;
    match looked {
        Err(SourceError::Postgres { error, .. }) if error.code() == Some(&SqlState::LOCK_NOT_AVAILABLE) => {
            let what = "one of the query's tables is locked, as it is while it is altered";
            findings.add(look.error(LOCKED, what, "wait until that has ended"));
            let tables = entity.depends_on.iter().flatten().map(|_| None).collect();
            Ok(Looked { tables, shape: None, costs: Vec::new() })
        }
        looked => looked,
    }
}

impl Look<'_> {
    async fn inspect(&self, signature: Signature, findings: &mut Findings) -> Result<Looked, SourceError> {
        let (client, entity, query) = (self.client, self.entity, self.query);
        let params = self.params(findings).await?;
        let mut rules = Vec::new();
        for depends in entity.depends_on.iter().flatten() {
            rules.push(self.rule(depends, params.as_deref(), findings).await?);
        }
        let mut looked = Looked { tables: Vec::new(), shape: None, costs: Vec::new() };
        if let Some(params) = &params
            && let Some((columns, types)) = self.result(params, &rules, findings).await?
        {
            let mut named: Vec<&str> = params.iter().map(|param| param.name.as_str()).collect();
            if query.shape == ResultShape::One {
                named.extend(columns.iter().map(|column| column.name.as_str()));
            }
            table::check_tags(entity, &named, findings);
            let (is_steady, costs) = self.plans(params, &rules, findings).await?;
            looked.costs = costs;
            let texts: Vec<&str> =
                std::iter::once(query.sql.as_str()).chain(query.rules.iter().filter_map(lookup)).collect();
            let sql = include_str!("../../sql/query_definitions.sql");
            let definitions = query_one(client, "read the definitions of views and functions", sql, &[&texts]).await?;
            let definitions: String = definitions.get(0);
            let version = format!("{} {:?} {definitions}", signature.tables, types.version);
            looked.shape = Some(Shape {
                table_oid: 0,
                columns,
                key: params.iter().map(|param| param.key.clone()).collect(),
                whole_row: false,
                partitioned: false,
                version: hash(version.as_bytes()),
                published: Published::default(),
                tables: Vec::new(),
                query: Some(QueryFacts { depends: rules.iter().map(RuleTable::dependency).collect(), is_steady }),
            });
        }
        looked.tables = rules.into_iter().map(|rule| rule.table).collect();
        Ok(looked)
    }
}

/// A rule's lookup, if it has one.
fn lookup(rule: &crate::entity::query::Rule) -> Option<&str> {
    match &rule.via {
        Via::Lookup { sql, .. } => Some(sql),
        Via::Key(_) | Via::All => None,
    }
}

/// What of a query's tables is published, as one.
pub(super) fn published(tables: &[Option<Table>]) -> Published {
    let facts: Vec<_> = tables.iter().flatten().map(|table| (table.oid, &table.published)).collect();
    Published { row_filter: None, version: hash(format!("{facts:?}").as_bytes()) }
}

impl RuleTable {
    fn dependency(&self) -> Dependency {
        let column = |column: &Column| RuleColumn { name: column.name.clone(), type_oid: column.type_oid };
        Dependency {
            table_oid: self.table.as_ref().map_or(0, |table| table.oid),
            partitioned: self.table.as_ref().is_some_and(|table| table.partitioned),
            columns: self.columns.as_ref().map(|columns| columns.iter().map(column).collect()),
            tables: self.streamed.clone(),
        }
    }
}

impl Look<'_> {
    fn error(&self, code: &'static str, what: impl Into<String>, remedy: impl Into<String>) -> Finding {
        Finding::error(code, self.subject.clone(), what, remedy)
    }

    /// The parameters with their types; `None` where one cannot be part of a key.
    async fn params(&self, findings: &mut Findings) -> Result<Option<Vec<Param>>, SourceError> {
        let declared = self.entity.params.iter().flat_map(|params| &params.0);
        let mut types = Some(Vec::new());
        for (name, text) in declared.clone() {
            // The text holds nothing but a type's name: see `config::query`.
            match described(self.client.prepare(&format!("SELECT NULL::{text}")).await)? {
                Ok(statement) => {
                    let of = statement.columns().first().map(|column| (column.type_().oid(), column.type_modifier()));
                    types.iter_mut().for_each(|types| types.extend(of));
                }
                Err(refused) => {
                    let what = format!("params: {name} = {text:?} is no type: {}", refused.said);
                    findings.add(self.error("param_type", what, "name a type that the database has"));
                    types = None;
                }
            }
        }
        let Some(types) = types else { return Ok(None) };
        let (oids, modifiers): (Vec<Oid>, Vec<i32>) = types.into_iter().unzip();
        let sql = include_str!("../../sql/param_types.sql");
        let rows = query(self.client, "read the types of parameters", sql, &[&oids, &modifiers]).await?;
        let mut params = Some(Vec::new());
        for ((name, text), row) in declared.zip(&rows) {
            let oid: Oid = row.get("base_oid");
            let facts = KeyFacts {
                oid,
                modifier: row.get("base_modifier"),
                kind: row.get("base_kind"),
                deterministic: row.get("deterministic"),
                labels: row.get("labels"),
            };
            match types::key_type(facts) {
                Ok(key_type) => {
                    let key = KeyColumn { name: name.clone(), type_oid: oid, key_type, cast: row.get("base_name") };
                    params.iter_mut().for_each(|params: &mut Vec<_>| {
                        params.push(Param { name: name.clone(), oid, key: key.clone() });
                    });
                }
                Err(why) => {
                    let what = format!("params: {name} = {text:?} cannot be part of a key: {why}");
                    findings.add(self.error("param_type", what, "choose another type, and cast it in the query"));
                    params = None;
                }
            }
        }
        Ok(params)
    }

    /// The table of a rule: whether its changes are told, and what they void.
    async fn rule(
        &self,
        depends: &DependsOn,
        params: Option<&[Param]>,
        findings: &mut Findings,
    ) -> Result<RuleTable, SourceError> {
        let with = (&depends.table, self.entity.bypass_rls);
        let name = &self.entity.name;
        let Some(row) = table::open(self.client, name, with, self.role, self.source, findings).await? else {
            return Ok(RuleTable { table: None, columns: None, schema_usage: true, streamed: Vec::new() });
        };
        let oid: Oid = row.get("oid");
        let all = table::read_columns(self.client, oid, self.role.0).await?;
        let unreadable = all.iter().filter(|column| !column.readable).map(|column| column.name.clone()).collect();
        let wanted = self.wanted(depends);
        let mut columns = Some(Vec::new());
        for (i, name) in wanted.iter().enumerate() {
            let Some(at) = all.iter().position(|column| column.name == *name) else {
                let near = nearest(name, all.iter().map(|column| column.name.as_str()));
                let what = format!("depends_on: table {} has no column {name}", depends.table);
                let remedy = match near {
                    Some(near) => format!("did you mean {near}?"),
                    None => "correct the rule's columns".to_owned(),
                };
                findings.add(self.error("column_missing", what, remedy));
                columns = None;
                continue;
            };
            let is_usable = self.check_column(depends, &all[at], params.and_then(|params| params.get(i)), findings);
            match &mut columns {
                // Each is taken once: names are distinct, but for parameters that one column gives.
                Some(columns) if is_usable => columns.push(all[at].clone()),
                _ => columns = None,
            }
        }
        let leaves = identity::check_rule(self.client, name, oid, &wanted, findings).await?;
        let streamed = match self.source.plugin {
            Plugin::Pgoutput => Vec::new(),
            Plugin::Wal2json => wal2json::streamed_tables(self.client, oid).await?,
        };
        let table = Table {
            name: depends.table.clone(),
            oid,
            partitioned: row.get::<_, &str>("kind") == "p",
            ancestors: row.get("ancestors"),
            leaves,
            key_columns: wanted,
            value_columns: Vec::new(),
            generated_columns: Vec::new(),
            unreadable,
            role: self.role.1.to_owned(),
            of_query: true,
            published: table::published_as(&row, self.source),
            shape: None,
        };
        Ok(RuleTable { table: Some(table), columns, schema_usage: row.get("schema_usage"), streamed })
    }

    /// The columns that a rule reads, in its order: of a key, in that of the parameters.
    fn wanted(&self, depends: &DependsOn) -> Vec<String> {
        let params = self.entity.params.iter().flat_map(|params| params.names());
        match (&depends.key, &depends.from) {
            (Some(key), _) => {
                let of = |param: &str| key.0.iter().find(|(name, _)| name == param).map(|(_, column)| column.clone());
                params.filter_map(of).collect()
            }
            (None, Some(from)) => from.clone(),
            (None, None) => Vec::new(),
        }
    }

    /// Whether the stream carries a rule's column, and, where it is part of a key, values that are equal to a parameter's
    /// read the same.
    fn check_column(
        &self,
        depends: &DependsOn,
        column: &Column,
        param: Option<&Param>,
        findings: &mut Findings,
    ) -> bool {
        let (table, name) = (&depends.table, &column.name);
        if column.generated {
            let what = format!("depends_on: column {name} of {table} is generated, so the stream does not carry it");
            let remedy = "use the columns that it is made of, with lookup; or all = true";
            findings.add(self.error("key_generated", what, remedy));
            return false;
        }
        let Some(param) = param.filter(|_| depends.key.is_some()) else { return true };
        let why = match column.key_type() {
            Ok(of_column) if reads_alike((&param.key.key_type, param.oid), (&of_column, column.base_oid)) => {
                return true;
            }
            Ok(_) => "equal values may have different texts".to_owned(),
            Err(why) => why.to_owned(),
        };
        let what = format!(
            "depends_on: column {name} of {table} is of type {}, and parameter {} of type {}: {why}",
            column.base_name, param.name, param.key.cast
        );
        let remedy = "give the parameter the column's type, and cast it in the query; or use lookup";
        findings.add(self.error("rule_type", what, remedy));
        false
    }

    /// The columns of the result; `None` where the database refuses the query, or they cannot be an object.
    async fn result(
        &self,
        params: &[Param],
        rules: &[RuleTable],
        findings: &mut Findings,
    ) -> Result<Option<(Vec<ValueColumn>, ColumnTypes)>, SourceError> {
        let types: Vec<Type> = params.iter().map(|param| typed(param.oid)).collect();
        let statement = match described(self.client.prepare_typed(&self.query.sql, &types).await)? {
            Ok(statement) => statement,
            Err(refused) => {
                self.refused(&refused, rules, findings);
                return Ok(None);
            }
        };
        if let Some(unknown) = statement.params().len().checked_sub(params.len() + 1) {
            let what =
                format!("the query has ${}, and params has {} of them", params.len() + unknown + 1, params.len());
            findings.add(self.error("query_refused", what, "declare it in params, or remove it from the query"));
            return Ok(None);
        }
        let names: Vec<&str> = statement.columns().iter().map(tokio_postgres::Column::name).collect();
        if let Some(twice) = names.iter().enumerate().find(|(i, name)| names[..*i].contains(name)) {
            let what = format!("the query gives two columns named {:?}: they cannot be members of one object", twice.1);
            findings.add(self.error("query_columns", what, "name each of them by AS"));
            return Ok(None);
        }
        if names.is_empty() {
            let what = "the query gives no columns: it must be a SELECT";
            findings.add(self.error("query_columns", what, "make it one"));
            return Ok(None);
        }
        // What is right by itself may not be so as a part of another statement: WITH that writes, for example.
        if let Err(refused) = described(self.client.prepare_typed(&self.query.fill_statement(), &types).await)? {
            self.refused(&refused, rules, findings);
            return Ok(None);
        }
        let oids: Vec<Oid> = statement.columns().iter().map(|column| column.type_().oid()).collect();
        let types = ColumnTypes::read(self.client, &oids).await?;
        let said: Vec<_> = statement.columns().iter().map(|c| (c.name(), c.type_().oid(), c.type_().name())).collect();
        super::lifetime::check(self.entity, &said, findings);
        let column = |column: &tokio_postgres::Column| {
            let type_oid = column.type_().oid();
            ValueColumn { name: column.name().to_owned(), type_oid, sql_type: types.sql_type(type_oid) }
        };
        Ok(Some((statement.columns().iter().map(column).collect(), types)))
    }

    /// Whether a lookup gives keys.
    async fn check_lookup(
        &self,
        depends: &DependsOn,
        sql: &str,
        (columns, params): (&[Column], &[Param]),
        findings: &mut Findings,
    ) -> Result<bool, SourceError> {
        let table = &depends.table;
        let types: Vec<Type> = columns.iter().map(|column| typed(column.base_oid)).collect();
        let statement = match described(self.client.prepare_typed(sql, &types).await)? {
            Ok(statement) => statement,
            Err(refused) => {
                let what = format!("depends_on: the database refuses the lookup of {table}: {}", refused.said);
                findings.add(self.error("lookup_refused", what, "correct the lookup, or its from"));
                return Ok(false);
            }
        };
        if statement.params().len() > columns.len() {
            let (has, given) = (statement.params().len(), columns.len());
            let what = format!("depends_on: the lookup of {table} has ${has}, and from has {given} column(s)");
            findings.add(self.error("lookup_refused", what, "name a column for each in from"));
            return Ok(false);
        }
        let given: Vec<(Oid, i32)> =
            statement.columns().iter().map(|column| (column.type_().oid(), column.type_modifier())).collect();
        let (oids, modifiers): (Vec<Oid>, Vec<i32>) = given.iter().copied().unzip();
        let facts = include_str!("../../sql/param_types.sql");
        let rows = query(self.client, "read the types of a lookup", facts, &[&oids, &modifiers]).await?;
        let key_type = |row: &tokio_postgres::Row| {
            let facts = KeyFacts {
                oid: row.get("base_oid"),
                modifier: row.get("base_modifier"),
                kind: row.get("base_kind"),
                deterministic: row.get("deterministic"),
                labels: row.get("labels"),
            };
            types::key_type(facts).map(|key_type| (key_type, row.get::<_, Oid>("base_oid")))
        };
        let alike = rows.len() == params.len()
            && rows.iter().zip(params).all(|(row, param)| {
                key_type(row).is_ok_and(|(of, oid)| reads_alike((&param.key.key_type, param.oid), (&of, oid)))
            });
        if !alike {
            let given: Vec<String> = rows.iter().map(|row| row.get("base_name")).collect();
            let wanted: Vec<String> = params.iter().map(|param| format!("{} {}", param.name, param.key.cast)).collect();
            let what = format!(
                "depends_on: the lookup of {table} gives ({}), and a key is ({})",
                given.join(", "),
                wanted.join(", ")
            );
            let remedy = "select the parameters' values in their order, cast to their types";
            findings.add(self.error("lookup_columns", what, remedy));
        }
        Ok(alike)
    }
}

/// Whether values of two types that are equal in SQL have the same canonical text in both.
fn reads_alike((a, a_oid): (&KeyType, Oid), (b, b_oid): (&KeyType, Oid)) -> bool {
    match (a, b) {
        (KeyType::Integer(..), KeyType::Integer(..))
        | (KeyType::Text, KeyType::Text)
        | (KeyType::Char(_), KeyType::Char(_))
        | (KeyType::Uuid, KeyType::Uuid)
        | (KeyType::Bool, KeyType::Bool)
        | (KeyType::Date, KeyType::Date)
        | (KeyType::Timestamp, KeyType::Timestamp)
        | (KeyType::TimestampTz, KeyType::TimestampTz) => true,
        (KeyType::Enum(_), KeyType::Enum(_)) => a_oid == b_oid,
        (KeyType::Numeric(a), KeyType::Numeric(b)) => a == b,
        _ => false,
    }
}

/// A type of which only the oid counts: what is sent and received of it is text.
fn typed(oid: Oid) -> Type {
    Type::from_oid(oid).unwrap_or_else(|| Type::new("parameter".to_owned(), oid, Kind::Simple, String::new()))
}

/// What the server says of a statement; or why it refuses it.
fn described(prepared: Result<Statement, tokio_postgres::Error>) -> Result<Result<Statement, Refused>, SourceError> {
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
