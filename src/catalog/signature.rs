//! Signatures: whether anything in the catalog has changed that a look at an entity would see, at the price of one query
//! for all entities.

use std::ops::Range;

use tokio_postgres::types::ToSql;
use tokio_postgres::{Client, Statement};

use super::types::Oid;
use super::{query_one, query_opt};
use crate::config::{Config, EntityConfig, Plugin, SourceConfig};
use crate::entity::hash;
use crate::source::SourceError;

const WHAT: &str = "read the signatures of tables";

/// What stands for the catalog, as far as an entity is concerned.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Signature {
    /// All of it: if that differs, the entity is to be looked at.
    pub(super) whole: u64,
    /// The tables only, without the functions, views and types that a query might be made of.
    pub(super) tables: u64,
}

/// The query for the signatures of some entities, prepared on one connection.
pub struct Signatures {
    statement: Statement,
    /// What stands for functions, views and types; not asked where no entity is a query.
    definitions: Option<Statement>,
    /// By entity: where its tables are among the names, and whether it is a query.
    entities: Vec<(Range<usize>, bool)>,
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
        Signatures::of(client, &config.entities, role.get(0), &config.source).await
    }

    /// For these entities, as a role sees them.
    pub(super) async fn of(
        client: &Client,
        entities: &[EntityConfig],
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
        let definitions = match entities.iter().any(|entity| entity.query.is_some()) {
            true => {
                let prepared = client.prepare(include_str!("../../sql/definitions.sql")).await;
                Some(prepared.map_err(|error| SourceError::postgres(WHAT, error))?)
            }
            false => None,
        };
        let (mut schemas, mut names): (Vec<String>, Vec<String>) = Default::default();
        let range = |entity: &EntityConfig| {
            let from = names.len();
            for table in entity.tables() {
                schemas.push(table.schema.clone());
                names.push(table.name.clone());
            }
            (from..names.len(), entity.query.is_some())
        };
        let entities = entities.iter().map(range).collect();
        // Where the stream needs none, what is published says nothing.
        let publications = match source.plugin {
            Plugin::Pgoutput => source.publication.names().to_vec(),
            Plugin::Wal2json => Vec::new(),
        };
        Ok(Signatures { statement, definitions, entities, schemas, names, role, publications })
    }

    /// The signatures as they are now, in the order of the entities. A look at an entity that begins after this sees at
    /// least what it stands for.
    ///
    /// # Errors
    /// If the catalog cannot be read.
    pub async fn read(&self, client: &Client) -> Result<Vec<u64>, SourceError> {
        Ok(self.read_parts(client).await?.into_iter().map(|signature| signature.whole).collect())
    }

    /// As [`Signatures::read`].
    pub(super) async fn read_parts(&self, client: &Client) -> Result<Vec<Signature>, SourceError> {
        let failed = |error| SourceError::postgres(WHAT, error);
        let with: [&(dyn ToSql + Sync); 4] = [&self.schemas, &self.names, &self.role, &self.publications];
        let rows = client.query(&self.statement, &with).await.map_err(failed)?;
        let tables: Vec<u64> = rows.iter().map(|row| row.get::<_, i64>(0).cast_unsigned()).collect();
        let definitions = match &self.definitions {
            Some(statement) => client.query_one(statement, &[]).await.map_err(failed)?.get::<_, i64>(0).cast_unsigned(),
            None => 0,
        };
        let signature = |(range, is_query): &(Range<usize>, bool)| match (is_query, tables.get(range.clone())) {
            (false, Some([table])) => Signature { whole: *table, tables: *table },
            (_, of) => {
                let tables = hash(format!("{of:?}").as_bytes());
                Signature { whole: hash(format!("{tables} {definitions}").as_bytes()), tables }
            }
        };
        Ok(self.entities.iter().map(signature).collect())
    }
}
