//! Signatures: whether anything in the catalog has changed that a look at an entity would see, at the price of one query
//! for all entities.

use tokio_postgres::types::ToSql;
use tokio_postgres::{Client, Statement};

use super::types::Oid;
use super::{query_one, query_opt};
use crate::config::{Config, Plugin, SourceConfig, TableName};
use crate::source::SourceError;

const WHAT: &str = "read the signatures of tables";

/// The query for the signatures of some tables, prepared on one connection.
pub struct Signatures {
    statement: Statement,
    schemas: Vec<String>,
    names: Vec<String>,
    role: Oid,
    publications: Vec<String>,
}

impl Signatures {
    /// For all entities, as the role sees them that is connected.
    ///
    /// # Errors
    /// If the catalog cannot be read.
    pub async fn prepare(client: &Client, config: &Config) -> Result<Self, SourceError> {
        let role = query_one(client, "read role", "SELECT oid FROM pg_roles WHERE rolname = current_user", &[]).await?;
        Signatures::of(client, config.entities.iter().map(|e| &e.table), role.get(0), &config.source).await
    }

    /// For these tables, as a role sees them.
    pub(super) async fn of(
        client: &Client,
        tables: impl Iterator<Item = &TableName>,
        role: Oid,
        source: &SourceConfig,
    ) -> Result<Self, SourceError> {
        let schemas = "SELECT FROM pg_class WHERE oid = to_regclass('pg_catalog.pg_publication_namespace')";
        let schemas = match query_opt(client, "look for publications of schemas", schemas, &[]).await? {
            Some(_) => include_str!("../../sql/signature_schemas.sql"),
            None => "",
        };
        let sql = include_str!("../../sql/signatures.sql").replace("-- {schemas}", schemas);
        let statement = client.prepare(&sql).await.map_err(|error| SourceError::postgres(WHAT, error))?;
        let (schemas, names) = tables.map(|table| (table.schema.clone(), table.name.clone())).unzip();
        // Where the stream needs none, what is published says nothing.
        let publications = match source.plugin {
            Plugin::Pgoutput => source.publication.names().to_vec(),
            Plugin::Wal2json => Vec::new(),
        };
        Ok(Signatures { statement, schemas, names, role, publications })
    }

    /// The signatures as they are now, in the order of the tables. A look at a table that begins after this sees at least
    /// what it stands for.
    ///
    /// # Errors
    /// If the catalog cannot be read.
    pub async fn read(&self, client: &Client) -> Result<Vec<u64>, SourceError> {
        let with: [&(dyn ToSql + Sync); 4] = [&self.schemas, &self.names, &self.role, &self.publications];
        let rows = client.query(&self.statement, &with).await.map_err(|error| SourceError::postgres(WHAT, error))?;
        Ok(rows.iter().map(|row| row.get::<_, i64>(0).cast_unsigned()).collect())
    }
}
