//! The columns of a query's result.

use tokio_postgres::types::Type;

use super::Look;
use super::explain::described;
use super::params::Param;
use super::rule::RuleTable;
use crate::catalog::finding::Findings;
use crate::catalog::lifetime;
use crate::catalog::types::{ColumnTypes, Oid};
use crate::entity::ValueColumn;
use crate::source::SourceError;
use crate::source::text::of_oid;

impl Look<'_> {
    /// The columns of the result; `None` where the database refuses the query, or they cannot be an object.
    pub(super) async fn result(
        &self,
        params: &[Param],
        rules: &[RuleTable],
        findings: &mut Findings,
    ) -> Result<Option<(Vec<ValueColumn>, ColumnTypes)>, SourceError> {
        let types: Vec<Type> = params.iter().map(|param| of_oid(param.oid)).collect();
        let statement = match described(self.client.prepare_typed(&self.query.sql, &types).await)? {
            Ok(statement) => statement,
            Err(refused) => {
                self.refused((&refused, &self.query.sql), rules, findings).await?;
                return Ok(None);
            }
        };
        if let Some(unknown) = statement.params().len().checked_sub(params.len() + 1) {
            let what =
                format!("the query has ${}, and params has {} of them", params.len() + unknown + 1, params.len());
            findings.add(self.error("query_refused", what, "declare it in params, or remove it from the query"));
            return Ok(None);
        }
        // Where its text cannot be taken apart nothing is said: the database has understood it.
        let used = crate::sql::parameters(&self.query.sql);
        let idle: Vec<&str> = (params.iter().zip(1..))
            .filter(|(_, number)| used.as_ref().is_some_and(|used| !used.contains(number)))
            .map(|(param, _)| param.name.as_str())
            .collect();
        if !idle.is_empty() {
            let what = format!(
                "the query does not use params {}: entries that differ by nothing else are not voided together",
                idle.join(", ")
            );
            findings.add(self.error("param_unused", what, "use it as $1, $2 and so on, or remove it from params"));
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
            let first = self.query.sql.split_whitespace().next().unwrap_or_default().to_uppercase();
            if matches!(first.as_str(), "INSERT" | "UPDATE" | "DELETE" | "MERGE") {
                let what = format!("the query begins with {first}: it must be one SELECT");
                findings.add(self.error("query_refused", what, "make it one: walcache only reads"));
                return Ok(None);
            }
            self.refused((&refused, &self.query.sql), rules, findings).await?;
            return Ok(None);
        }
        let oids: Vec<Oid> = statement.columns().iter().map(|column| column.type_().oid()).collect();
        let types = ColumnTypes::read(self.client, &oids).await?;
        let said: Vec<_> = statement.columns().iter().map(|c| (c.name(), c.type_().oid(), c.type_().name())).collect();
        lifetime::check(self.entity, &said, findings);
        let column = |column: &tokio_postgres::Column| {
            let type_oid = column.type_().oid();
            ValueColumn { name: column.name().to_owned(), type_oid, sql_type: types.sql_type(type_oid) }
        };
        Ok(Some((statement.columns().iter().map(column).collect(), types)))
    }
}
