//! Entities that are the result of a query, and what tells which of their entries a row change voids.

use super::StreamedTable;

/// How many rows a query's value is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Deserialize, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum ResultShape {
    /// An array of all rows, as objects; empty where there is none.
    #[default]
    Many,
    /// The one row, as an object; absent where there is none.
    One,
}

/// What an entity of query results is made of. Its key's columns are the query's parameters, in their order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Query {
    /// The SELECT, with `$1` and so on for the parameters, and without a semicolon at its end.
    pub sql: String,
    /// What the value is.
    pub shape: ResultShape,
    /// What voids entries.
    pub rules: Vec<Rule>,
}

impl Query {
    /// The statement that reads one entry's value, with the same parameters: `value`, the number of `rows` that it was made
    /// from (of [`ResultShape::One`] no more than two are read), and `hi`.
    pub fn fill_statement(&self) -> String {
        let template = match self.shape {
            ResultShape::Many => include_str!("../../sql/fill_many.sql"),
            ResultShape::One => include_str!("../../sql/fill_one.sql"),
        };
        crate::sql::statement(template).replace("{query}", &self.sql)
    }
}

/// What a change of a table's row does to a query's entries.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// The table's schema.
    pub schema: String,
    /// The table's name.
    pub table: String,
    /// Which entries it voids.
    pub via: Via,
}

/// How a row tells which entries depend on it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Via {
    /// The row's columns that are the key, in the order of the parameters: before the change and after it.
    Key(Vec<String>),
    /// A query gives the keys, one a row, its columns in the order of the parameters.
    Lookup {
        /// The SELECT, with `$1` and so on for the columns.
        sql: String,
        /// The row's columns that it is given.
        from: Vec<String>,
    },
    /// All of them.
    All,
}

/// What the catalog says of a [`Query`] now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QueryFacts {
    /// The tables of its rules, in their order.
    pub depends: Vec<Dependency>,
    /// `pg_class.oid` of the tables besides these that lookups read, in order.
    pub looked_up: Vec<u32>,
    /// Whether its value changes with what it reads only: not with time, or by chance.
    pub is_steady: bool,
}

/// The table of a [`Rule`], as the catalog has it now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dependency {
    /// `pg_class.oid`; 0 where there is no such table.
    pub table_oid: u32,
    /// Whether it is the root of partitions, which have replica identities of their own.
    pub partitioned: bool,
    /// The columns of [`Via::Key`], or what [`Via::Lookup`] is given from, in the rule's order; `None` where the table has
    /// none that can be used so.
    pub columns: Option<Vec<RuleColumn>>,
    /// As [`super::Shape::tables`], of this table.
    pub tables: Vec<StreamedTable>,
}

/// A column that a rule reads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RuleColumn {
    /// The column's name.
    pub name: String,
    /// `pg_type.oid` of its type.
    pub type_oid: u32,
    /// The same, domains looked through: what a lookup is given it as.
    pub base_oid: u32,
}
