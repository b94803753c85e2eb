//! What plans tell of a query and of its lookups: the tables that they read, and what that costs.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;
use tokio_postgres::Client;

use super::super::finding::{Finding, Findings, Phase};
use super::super::query;
use super::super::table::Table;
use super::explain::{self, Options, Refused};
use super::{Look, Param, RuleCost, RuleTable, lookup};
use crate::config::{DependsOn, TableName};
use crate::source::SourceError;
use crate::sql::quote_ident;

/// Functions that give another result each time, though Postgres calls them stable: within a statement they do not.
const OF_THE_MOMENT: [&str; 3] = ["now", "transaction_timestamp", "statement_timestamp"];
/// The same, spelled without parentheses.
const KEYWORDS: [&str; 5] = ["CURRENT_DATE", "CURRENT_TIME", "CURRENT_TIMESTAMP", "LOCALTIME", "LOCALTIMESTAMP"];

/// One plan.
struct Plan {
    cost: f64,
    nodes: Vec<Node>,
}

/// A node of a plan.
struct Node {
    kind: String,
    /// The relation that it reads.
    relation: Option<(String, String)>,
    /// What it looks for in an index.
    index_condition: Option<String>,
    /// What it sorts out after it was read.
    filter: Option<String>,
    /// All its expressions.
    texts: Vec<String>,
}

/// What is known of a relation in a plan.
struct Relation {
    kind: String,
    estimate: f64,
    columns: Vec<String>,
    /// Itself, then the tables that it is a partition of.
    above: Vec<TableName>,
}

impl Plan {
    fn read(json: &Value) -> Option<Plan> {
        let root = json.get(0)?.get("Plan")?;
        let mut nodes = Vec::new();
        collect(root, &mut nodes);
        Some(Plan { cost: root.get("Total Cost")?.as_f64()?, nodes })
    }

    fn relations(&self) -> BTreeSet<(String, String)> {
        self.nodes.iter().filter_map(|node| node.relation.clone()).collect()
    }

    fn texts(&self) -> impl Iterator<Item = &str> {
        self.nodes.iter().flat_map(|node| node.texts.iter().map(String::as_str))
    }
}

fn collect(node: &Value, nodes: &mut Vec<Node>) {
    let text = |key: &str| node.get(key).and_then(Value::as_str).map(str::to_owned);
    let expressions = node.as_object().into_iter().flatten().filter(|(key, _)| *key != "Plans");
    let texts = expressions.flat_map(|(_, value)| match value {
        Value::String(text) => vec![text.clone()],
        Value::Array(items) => items.iter().filter_map(Value::as_str).map(str::to_owned).collect(),
        _ => Vec::new(),
    });
    nodes.push(Node {
        kind: text("Node Type").unwrap_or_default(),
        relation: text("Schema").zip(text("Relation Name")),
        index_condition: text("Index Cond").or_else(|| text("Recheck Cond")).or_else(|| text("TID Cond")),
        filter: text("Filter"),
        texts: texts.collect(),
    });
    for child in node.get("Plans").and_then(Value::as_array).into_iter().flatten() {
        collect(child, nodes);
    }
}

/// The names of functions that an expression calls.
fn called(text: &str) -> impl Iterator<Item = &str> {
    let of_name = |c: char| c.is_alphanumeric() || matches!(c, '_' | '$');
    text.match_indices('(').filter_map(move |(at, _)| {
        let before = text[..at].trim_end_matches('"');
        let name = before.rsplit(|c| !of_name(c)).next().unwrap_or_default();
        (!name.is_empty()).then_some(name)
    })
}

/// The column that a filter compares with a parameter, if it is of this simple form: `(customer_id = $1)`, casts and the
/// table's name left aside.
fn compared(filter: &str, columns: &[String]) -> Option<String> {
    let (before, _) = filter.split_once(" = $")?;
    let before = before.trim_end_matches([')', ']']);
    let bare = before.rsplit_once("::").map_or(before, |(column, _)| column).trim_end_matches(')');
    // A function's argument is not what is compared.
    let start = bare.rfind(['(', ' ']).map_or(0, |at| at + 1);
    if bare[..start].trim_end_matches('(').ends_with(|c: char| c.is_alphanumeric() || matches!(c, '_' | '"')) {
        return None;
    }
    let name = bare[start..].rsplit('.').next()?.trim_matches('"');
    columns.iter().find(|column| *column == name).cloned()
}

impl Look<'_> {
    /// Plans the query and its lookups, and says whether the query's result changes with what it reads only.
    pub(super) async fn plans(
        &self,
        params: &[Param],
        rules: &[RuleTable],
        findings: &mut Findings,
    ) -> Result<(bool, Vec<RuleCost>), SourceError> {
        let Some(role) = explain::role(self.client, self.role).await? else {
            // The role is still to be made, or cannot be taken: it finds out when it connects.
            return Ok((true, Vec::new()));
        };
        let types: Vec<&str> = params.iter().map(|param| param.key.cast.as_str()).collect();
        let mut plans = Vec::new();
        for avoid_scans in [false, true] {
            let options = Options { role, avoid_scans };
            match explain::plan(self.client, &self.query.sql, &types, options).await? {
                Ok(json) => plans.extend(Plan::read(&json)),
                Err(refused) => {
                    self.refused(&refused, rules, findings);
                    return Ok((true, Vec::new()));
                }
            }
        }
        let [plan, scans] = &plans[..] else { return Ok((true, Vec::new())) };
        let relations = relations(self.client, plan).await?;
        self.check_named("the query reads", plan, &relations, Finding::error, findings);
        self.check_scans(scans, &relations, findings);
        let is_steady = self.check_functions(plan, findings).await?;
        let mut costs = Vec::new();
        let depends_on = self.entity.depends_on.iter().flatten();
        for ((depends, rule), configured) in depends_on.zip(rules).zip(&self.query.rules) {
            let cost = match (lookup(configured), &depends.key) {
                (Some(sql), _) => match self.lookup_cost(depends, sql, (rule, params), role, findings).await? {
                    Some(cost) => cost,
                    None => continue,
                },
                (None, Some(_)) => {
                    "drops one key of the row before, and one of the row after, if they differ".to_owned()
                }
                (None, None) => "voids all entries, by a new generation".to_owned(),
            };
            costs.push(RuleCost { entity: self.entity.name.clone(), table: depends.table.to_string(), cost });
        }
        Ok((is_steady, costs))
    }

    /// The cost of a lookup in words; `None` if it cannot be carried out.
    async fn lookup_cost(
        &self,
        depends: &DependsOn,
        sql: &str,
        (rule, params): (&RuleTable, &[Param]),
        role: Option<&str>,
        findings: &mut Findings,
    ) -> Result<Option<String>, SourceError> {
        let Some(columns) = &rule.columns else { return Ok(None) };
        if !self.check_lookup(depends, sql, (columns, params), findings).await? {
            return Ok(None);
        }
        let types: Vec<&str> = columns.iter().map(|column| column.base_name.as_str()).collect();
        match explain::plan(self.client, sql, &types, Options { role, avoid_scans: false }).await? {
            Ok(json) => {
                let Some(plan) = Plan::read(&json) else { return Ok(None) };
                let relations = relations(self.client, &plan).await?;
                let what = format!("the lookup of {} reads", depends.table);
                self.check_named(&what, &plan, &relations, Finding::warning, findings);
                let rows = json[0]["Plan"]["Plan Rows"].as_f64().unwrap_or_default();
                let cost = plan.cost;
                Ok(Some(format!("runs its lookup (planner's cost {cost:.0}), and drops about {rows:.0} key(s)")))
            }
            Err(refused) => {
                let what = format!("depends_on: the lookup of {} is refused: {}", depends.table, refused.said);
                findings.add(self.error("lookup_refused", what, "correct it, or grant what it needs"));
                Ok(None)
            }
        }
    }

    /// The database refuses the query: for want of rights, or because it is not right itself.
    pub(super) fn refused(&self, refused: &Refused, rules: &[RuleTable], findings: &mut Findings) {
        // In a schema that may not be looked into, a table that is not named with it does not exist.
        let is_hidden = || rules.iter().any(|rule| !rule.schema_usage);
        if !refused.rights && !is_hidden() {
            let what = format!("the database refuses the query: {}", refused.said);
            let remedy = "correct the entity's query, or its params, or what it reads";
            findings.add(self.error("query_refused", what, remedy));
            return;
        }
        let what = format!("role {} may not run the query: {}", self.role.1, refused.said);
        let role = quote_ident(self.role.1);
        let of = |lacks: &dyn Fn(&RuleTable, &Table) -> bool, name: &dyn Fn(&Table) -> String| -> BTreeSet<String> {
            let tables = rules.iter().filter_map(|rule| Some((rule, rule.table.as_ref()?)));
            tables.filter(|(rule, table)| lacks(rule, table)).map(|(_, table)| name(table)).collect()
        };
        let schemas = of(&|rule, _| !rule.schema_usage, &|table| quote_ident(&table.name.schema));
        let tables = of(&|_, table| !table.unreadable.is_empty(), &|table| table.name.sql());
        let usage = schemas.iter().map(|schema| format!("GRANT USAGE ON SCHEMA {schema} TO {role}"));
        let select = tables.iter().map(|table| format!("GRANT SELECT ON {table} TO {role}"));
        let grants: Vec<String> = usage.chain(select).collect();
        let finding = self.error("query_rights", what, "grant it");
        findings.add(match grants.is_empty() {
            true => finding,
            false => finding.mended_in(Phase::Grant, grants.join(";\n")),
        });
    }

    /// Whether `depends_on` names each table that a plan reads.
    fn check_named(
        &self,
        reads: &str,
        plan: &Plan,
        relations: &BTreeMap<(String, String), Relation>,
        severity: fn(&'static str, String, String, String) -> Finding,
        findings: &mut Findings,
    ) {
        for name in plan.relations() {
            let Some(relation) = relations.get(&name) else { continue };
            let named = |table: &TableName| self.entity.depends_on.iter().flatten().any(|d| d.table == *table);
            if relation.above.iter().any(named) {
                continue;
            }
            // By the topmost name: so come the changes of all partitions.
            let Some(table) = relation.above.last() else { continue };
            let why = "which depends_on does not name: its changes would void nothing";
            let (what, remedy) = match relation.kind.as_str() {
                "m" => (
                    format!("{reads} the materialized view {table}, and its refreshes are not in the log"),
                    "let the query read what the view is made of".to_owned(),
                ),
                "f" => (
                    format!("{reads} the foreign table {table}, and its changes are not in this server's log"),
                    "leave it out of the query".to_owned(),
                ),
                _ => (format!("{reads} {table}, {why}"), format!("add to depends_on: {}", self.line(table, relation))),
            };
            findings.add(severity("table_unnamed", self.subject.clone(), what, remedy));
        }
    }

    /// What would name a table in `depends_on`.
    fn line(&self, table: &TableName, relation: &Relation) -> String {
        let params: Vec<&str> = self.entity.params.iter().flat_map(|params| params.names()).collect();
        if params.iter().all(|param| relation.columns.iter().any(|column| column == param)) {
            let key: Vec<String> = params.iter().map(|param| format!("{param} = \"{param}\"")).collect();
            return format!("{{ table = \"{table}\", key = {{ {} }} }}", key.join(", "));
        }
        format!("{{ table = \"{table}\", all = true }}, or a key or lookup that tells which entries a row is part of")
    }

    /// Tables that are read as a whole because no index serves.
    fn check_scans(&self, plan: &Plan, relations: &BTreeMap<(String, String), Relation>, findings: &mut Findings) {
        let mut said = BTreeSet::new();
        for node in &plan.nodes {
            let by_param = node.filter.as_deref().is_some_and(|filter| filter.contains('$'));
            let whole = node.kind.ends_with("Seq Scan") || (by_param && node.index_condition.is_none());
            let Some(relation) = node.relation.as_ref().filter(|_| whole).and_then(|name| relations.get(name)) else {
                continue;
            };
            let Some(table) = relation.above.last().filter(|table| said.insert((*table).clone())) else { continue };
            let condition = match &node.filter {
                Some(filter) => format!("no index serves {filter}"),
                None => "no index serves its condition".to_owned(),
            };
            let rows = if relation.estimate < 0.0 {
                "never analyzed".to_owned()
            } else {
                format!("about {:.0} rows", relation.estimate)
            };
            let what = format!("each fill reads all of {table} ({rows}): {condition}");
            let remedy = "make an index, unless the table stays small";
            let finding = Finding::warning("query_scan", self.subject.clone(), what, remedy);
            let column = node.filter.as_deref().and_then(|filter| compared(filter, &relation.columns));
            findings.add(match column {
                Some(column) => {
                    let concurrently = if relation.above.len() > 1 { "" } else { "CONCURRENTLY " };
                    finding.sql(format!("CREATE INDEX {concurrently}ON {} ({})", table.sql(), quote_ident(&column)))
                }
                None => finding,
            });
        }
    }

    /// Says which functions make the result change by itself, and which may read what the plan does not show. Whether none
    /// of the first kind was found.
    async fn check_functions(&self, plan: &Plan, findings: &mut Findings) -> Result<bool, SourceError> {
        let names: BTreeSet<&str> = plan.texts().flat_map(called).collect();
        let names: Vec<&str> = names.into_iter().collect();
        let rows =
            query(self.client, "read functions", include_str!("../../../sql/plan_functions.sql"), &[&names]).await?;
        let name = |row: &tokio_postgres::Row| row.get::<_, String>("name");
        let mut moving: Vec<String> = rows.iter().filter(|row| row.get("volatile")).map(name).collect();
        moving.extend(names.iter().filter(|name| OF_THE_MOMENT.contains(name)).map(|name| (*name).to_owned()));
        let keywords = KEYWORDS.iter().filter(|keyword| {
            plan.texts()
                .any(|text| text.split(|c: char| !c.is_alphanumeric() && c != '_').any(|word| word == **keyword))
        });
        moving.extend(keywords.map(|keyword| (*keyword).to_owned()));
        moving.sort();
        moving.dedup();
        if !moving.is_empty() {
            let what = format!(
                "the query calls {}: its result changes without any change of a table, which nothing tells",
                moving.join(", ")
            );
            let remedy = "set a ttl as short as that matters; or give it as a parameter";
            findings.add(Finding::warning("query_volatile", self.subject.clone(), what, remedy));
        }
        let hiding: BTreeSet<String> = rows.iter().filter(|row| row.get("hides_tables")).map(name).collect();
        for function in hiding {
            let what = format!("the query calls {function}, and a plan does not show which tables a function reads");
            let remedy = "see that depends_on names them";
            findings.add(Finding::warning("query_function", self.subject.clone(), what, remedy));
        }
        Ok(moving.is_empty())
    }
}

/// What the relations of a plan are.
async fn relations(client: &Client, plan: &Plan) -> Result<BTreeMap<(String, String), Relation>, SourceError> {
    let (schemas, names): (Vec<String>, Vec<String>) = plan.relations().into_iter().unzip();
    let sql = include_str!("../../../sql/plan_tables.sql");
    let rows = query(client, "read the tables of a plan", sql, &[&schemas, &names]).await?;
    let relation = |row: &tokio_postgres::Row| {
        let above = row.get::<_, Vec<String>>("schemas").into_iter().zip(row.get::<_, Vec<String>>("names"));
        let relation = Relation {
            kind: row.get("kind"),
            estimate: row.get("estimate"),
            columns: row.get("columns"),
            above: above.map(|(schema, name)| TableName { schema, name }).collect(),
        };
        ((row.get("schema"), row.get("name")), relation)
    };
    Ok(rows.iter().map(relation).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters_tell_the_column_that_an_index_is_wanted_on() {
        let columns: Vec<String> = ["customer_id", "Email", "code"].map(str::to_owned).to_vec();
        let cases = [
            ("(customer_id = $1)", Some("customer_id")),
            ("(orders.customer_id = $1)", Some("customer_id")),
            ("((orders.code)::text = $2)", Some("code")),
            ("((o.\"Email\")::text = $1)", Some("Email")),
            ("(lower(code) = $1)", None),
            ("((id > 1) AND (customer_id = $1))", Some("customer_id")),
            ("(other = $1)", None),
            ("(customer_id > $1)", None),
        ];
        for (filter, column) in cases {
            assert_eq!(compared(filter, &columns).as_deref(), column, "{filter}");
        }
    }

    #[test]
    fn functions_are_told_by_their_names() {
        let names: Vec<&str> = called("(public.f(a) > (now() - '1 day'::interval))").collect();
        assert_eq!(names, ["f", "now"]);
    }
}
