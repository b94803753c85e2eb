//! What the catalog says of an entity's columns, and of the tables that it is made of.

use super::query::{Dependency, QueryFacts};
use crate::key::{KeyColumn, hash};
use crate::sqltype::SqlType;

/// A column of an entity's value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ValueColumn {
    /// The column's name, which is its name in the JSON object.
    pub name: String,
    /// `pg_type.oid` of its type.
    pub type_oid: u32,
    /// How its text becomes JSON.
    pub sql_type: SqlType,
}

/// What of a table reaches the stream.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Published {
    /// The publications' row filter, in SQL over the table's columns: other rows are none of the entity's. `None`: all rows
    /// are.
    pub row_filter: Option<String>,
    /// Differs after a time out of the publications, and whenever they were altered.
    pub version: u64,
}

/// The columns of an entity as the catalog has them now; replaced as a whole when the table's shape changes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shape {
    /// `pg_class.oid` of the table.
    pub table_oid: u32,
    /// The value's columns, in the order of the JSON object.
    pub columns: Vec<ValueColumn>,
    /// The key's columns, in key order.
    pub key: Vec<KeyColumn>,
    /// Whether the value is the whole row, so that a column that is added to the table belongs to it, too.
    pub whole_row: bool,
    /// Whether it is the root of partitions, which have replica identities of their own.
    pub partitioned: bool,
    /// Stands for whatever else decides what its values read as: it differs after an ALTER TABLE that rewrote values in
    /// place, a renamed enum label, a partition that came or went, or a time out of the publication; also where all of that
    /// was undone.
    pub version: u64,
    /// Which of its rows are streamed.
    pub published: Published,
    /// The tables under whose names its rows are streamed: the table itself, then its partitions of every level. Empty
    /// where the stream announces tables by itself, as pgoutput's does; from Postgres 15 on also which partitions are its.
    pub tables: Vec<StreamedTable>,
    /// What the catalog says of its query, if it has one.
    pub query: Option<QueryFacts>,
}

/// What the catalog says of a table that the stream knows by its name only.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StreamedTable {
    /// `pg_class.oid`.
    pub oid: u32,
    /// The table's schema.
    pub schema: String,
    /// The table's name.
    pub name: String,
    /// Its columns, by position.
    pub columns: Vec<StreamedColumn>,
    /// Differs after a change of its name, its schema's name, or its replica identity, also if that was taken back.
    pub version: String,
}

/// A column of a [`StreamedTable`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StreamedColumn {
    /// The column's name.
    pub name: String,
    /// `pg_type.oid` of its type.
    pub type_oid: u32,
    /// `pg_attribute.attnum`.
    pub position: i16,
    /// Whether its values may lie out of line, so that an update that leaves one as it was does not carry it.
    pub out_of_line: bool,
    /// Whether it is computed when it is read, and therefore in no row that is streamed.
    pub computed: bool,
}

impl Shape {
    /// Of a table that cannot be read: without columns, and no key is one of its keys.
    pub fn unknown(version: u64) -> Self {
        Shape {
            table_oid: 0,
            columns: Vec::new(),
            key: Vec::new(),
            whole_row: false,
            partitioned: false,
            version,
            published: Published::default(),
            tables: Vec::new(),
            query: None,
        }
    }

    /// Whether what it is made of is streamed under the same names in both.
    pub fn is_streamed_as(&self, other: &Shape) -> bool {
        let names = |shape: &Shape| -> std::collections::BTreeSet<(String, String)> {
            shape.streamed().flatten().map(|table| (table.schema.clone(), table.name.clone())).collect()
        };
        self.is_partitioned() == other.is_partitioned() && names(self) == names(other)
    }

    /// The tables that it is made of, each with its partitions: see [`Shape::tables`].
    pub fn streamed(&self) -> impl Iterator<Item = &[StreamedTable]> {
        std::iter::once(&self.tables[..]).chain(self.depends().iter().map(|dependency| &dependency.tables[..]))
    }

    /// Whether any table that it is made of is the root of partitions.
    pub fn is_partitioned(&self) -> bool {
        self.partitioned || self.depends().iter().any(|dependency| dependency.partitioned)
    }

    /// Of a query, the tables of its rules, in their order.
    pub fn depends(&self) -> &[Dependency] {
        self.query.as_ref().map_or(&[], |query| &query.depends)
    }

    /// `pg_class.oid` of each table that its lookups may read.
    pub fn read_by_lookups(&self) -> impl Iterator<Item = u32> + '_ {
        let besides = self.query.iter().flat_map(|query| query.looked_up.iter().copied());
        self.depends().iter().map(|dependency| dependency.table_oid).chain(besides)
    }

    /// Tells shapes apart across restarts: whatever decides how a value reads, as a hash.
    pub fn fingerprint(&self) -> u64 {
        hash(format!("{self:?}").as_bytes())
    }
}
