//! What a rule's lookup gives.

use tokio_postgres::types::Type;

use super::Look;
use super::explain::described;
use super::params::{Param, reads_alike};
use crate::catalog::column::Column;
use crate::catalog::finding::Findings;
use crate::catalog::types::KeyFacts;
use crate::config::DependsOn;
use crate::source::SourceError;
use crate::source::text::of_oid;

impl Look<'_> {
    /// Whether a lookup gives keys.
    pub(super) async fn check_lookup(
        &self,
        depends: &DependsOn,
        sql: &str,
        (columns, params): (&[Column], &[Param]),
        findings: &mut Findings,
    ) -> Result<bool, SourceError> {
        let table = &depends.table;
        let types: Vec<Type> = columns.iter().map(|column| of_oid(column.base.oid)).collect();
        let statement = match described(self.client.prepare_typed(sql, &types).await)? {
            Ok(statement) => statement,
            Err(refused) => {
                let what = format!("depends_on: the database refuses the lookup of {table}: {}", refused.said);
                let finding = self.error("lookup_refused", what, "correct the lookup, or its from");
                findings.add(self.granted(finding, &refused, sql).await?);
                return Ok(false);
            }
        };
        if statement.params().len() > columns.len() {
            let (has, given) = (statement.params().len(), columns.len());
            let what = format!("depends_on: the lookup of {table} has ${has}, and from has {given} column(s)");
            findings.add(self.error("lookup_refused", what, "name a column for each in from"));
            return Ok(false);
        }
        let given = statement.columns().iter().map(|column| (column.type_().oid(), column.type_modifier()));
        let given = KeyFacts::of(self.client, "read the types of a lookup", given).await?;
        let alike = given.len() == params.len()
            && given.iter().zip(params).all(|(given, param)| {
                given.key_type().is_ok_and(|of| reads_alike((&param.key.key_type, param.oid), (&of, given.oid)))
            });
        if !alike {
            let given: Vec<&str> = given.iter().map(|facts| facts.name.as_str()).collect();
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
