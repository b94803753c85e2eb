//! Entities that are the result of a query, and what tells which of their entries a row change voids.

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
    /// The SELECT, with `$1` and so on for the parameters.
    pub sql: String,
    /// What the value is.
    pub shape: ResultShape,
    /// What voids entries.
    pub rules: Vec<Rule>,
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
