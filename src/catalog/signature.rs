//! Signatures: whether anything in the catalog has changed that a look at an entity would see, at the price of one query
//! for all entities.

use std::collections::BTreeMap;
use std::ops::Range;
use std::time::Duration;

use tokio_postgres::types::ToSql;
use tokio_postgres::{Client, Statement};

use super::reader::Reader;
use super::types::Oid;
use super::{names, query_one, query_opt};
use crate::config::{Config, EntityConfig, Plugin, SourceConfig};
use crate::entity::hash;
use crate::source::{SourceError, within};

const WHAT: &str = "read the signatures of tables";

/// What stands for the catalog, as far as an entity is concerned.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Signature {
    /// All of it: if that differs, the entity is to be looked at.
    pub(super) whole: u64,
    /// The tables only, and what the names in a query lead to, without the functions, views and types that it might be made of.
    pub(super) tables: u64,
}

/// The query for the signatures of some entities, prepared on one connection.
pub struct Signatures {
    statement: Statement,
    /// What stands for functions, views and types, and what tells where names lead to; not asked where no entity is a query.
    of_queries: Option<(Statement, Statement)>,
    /// By entity: where its tables are among the names, and whether it is a query.
    entities: Vec<(Range<usize>, bool)>,
    schemas: Vec<String>,
    names: Vec<String>,
    /// The names in queries, and the entities in whose queries each is.
    in_queries: BTreeMap<String, Vec<usize>>,
    role: Oid,
    publications: Vec<String>,
    /// How long an answer may take.
    limit: Duration,
}

impl Signatures {
    /// For all entities, as the role sees them that is connected.
    ///
    /// # Errors
    /// If the catalog cannot be read.
    pub async fn prepare(client: &Client, config: &Config) -> Result<Self, SourceError> {
        let reader = &Reader::new(client, &config.source);
        let role = query_one(reader, "read role", "SELECT oid FROM pg_roles WHERE rolname = current_user", &[]).await?;
        Signatures::of(reader, config.entities.iter(), role.get(0), &config.source).await
    }

    /// For these entities, as a role sees them.
    pub(super) async fn of<'e>(
        reader: &Reader<'_>,
        entities: impl Iterator<Item = &'e EntityConfig>,
        role: Oid,
        source: &SourceConfig,
    ) -> Result<Self, SourceError> {
        let schemas = "SELECT FROM pg_class WHERE oid = to_regclass('pg_catalog.pg_publication_namespace')";
        let schemas = match query_opt(reader, "look for publications of schemas", schemas, &[]).await? {
            Some(_) => include_str!("../../sql/signature_schemas.sql"),
            None => "",
        };
        let sql = include_str!("../../sql/signatures.sql").replace("-- {schemas}", schemas);
        let prepare = async |sql: &str| {
            let prepared = async { reader.prepare(sql).await.map_err(|error| SourceError::postgres(WHAT, error)) };
            reader.within(WHAT, prepared).await
        };
        let statement = prepare(&sql).await?;
        let mut in_queries: BTreeMap<String, Vec<usize>> = BTreeMap::new();
        let (mut schemas, mut names): (Vec<String>, Vec<String>) = Default::default();
        let range = |(i, entity): (usize, &EntityConfig)| {
            let from = names.len();
            if entity.query.is_some() {
                names::of(entity).into_iter().for_each(|name| in_queries.entry(name).or_default().push(i));
            }
            for table in entity.tables() {
                schemas.push(table.schema.clone());
                names.push(table.name.clone());
            }
            (from..names.len(), entity.query.is_some())
        };
        let entities: Vec<(Range<usize>, bool)> = entities.enumerate().map(range).collect();
        let of_queries = match entities.iter().any(|(_, is_query)| *is_query) {
            true => {
                let definitions = prepare(include_str!("../../sql/definitions.sql")).await?;
                Some((definitions, prepare(include_str!("../../sql/names.sql")).await?))
            }
            false => None,
        };
        // Where the stream needs none, what is published says nothing.
        let publications = match source.plugin {
            Plugin::Pgoutput => source.publication.names().to_vec(),
            Plugin::Wal2json => Vec::new(),
        };
        let limit = source.dead_after;
        Ok(Signatures { statement, of_queries, entities, schemas, names, in_queries, role, publications, limit })
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
        let rows = async { client.query(&self.statement, &with).await.map_err(failed) };
        let rows = within(WHAT, self.limit, rows).await??;
        let tables: Vec<u64> = rows.iter().map(|row| row.get::<_, i64>(0).cast_unsigned()).collect();
        // Of each entity, what its names lead to: of all of them only few are names of tables.
        let mut leads: Vec<Vec<(i64, Oid)>> = vec![Vec::new(); self.entities.len()];
        let mut definitions = 0;
        if let Some((statement, names)) = &self.of_queries {
            let row = async { client.query_one(statement, &[]).await.map_err(failed) };
            definitions = within(WHAT, self.limit, row).await??.get::<_, i64>(0).cast_unsigned();
            let (in_queries, of): (Vec<&String>, Vec<&Vec<usize>>) = self.in_queries.iter().unzip();
            let rows = async { client.query(names, &[&in_queries]).await.map_err(failed) };
            for row in within(WHAT, self.limit, rows).await?? {
                let of = usize::try_from(row.get::<_, i64>("name") - 1).ok().and_then(|name| of.get(name));
                for entity in of.into_iter().flat_map(|of| of.iter()) {
                    leads[*entity].push((row.get("place"), row.get("oid")));
                }
            }
        }
        let signature = |((range, is_query), leads): (&(Range<usize>, bool), _)| match tables.get(range.clone()) {
            Some([table]) if !is_query => Signature { whole: *table, tables: *table },
            of => {
                let tables = hash(format!("{of:?} {leads:?}").as_bytes());
                Signature { whole: hash(format!("{tables} {definitions}").as_bytes()), tables }
            }
        };
        Ok(self.entities.iter().zip(leads).map(signature).collect())
    }
}
