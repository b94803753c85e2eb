//! The types of Postgres, as far as their text form decides how they read in JSON.

/// How a value of a type becomes JSON in `row_to_json`: decided once per column, from the catalog.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SqlType {
    /// `bool`: text `t` or `f`.
    Bool,
    /// `int2`, `int4`, `int8`: a JSON number, as it stands.
    Integer,
    /// `float4`, `float8`, `numeric`: a JSON number, or a string for `NaN` and the infinities.
    Number,
    /// `json`, `jsonb`: embedded as it stands.
    Json,
    /// `date`: ISO 8601, or a string `infinity`.
    Date,
    /// `timestamp`: ISO 8601 with `T`.
    Timestamp,
    /// `timestamptz`: ISO 8601 with `T` and the offset written with minutes.
    TimestampTz,
    /// Any type whose JSON form is its text output as a JSON string: text, uuid, bytea, interval, enums, ...
    Text,
    /// An array of such a type; the character separates elements in its text form.
    Array(Box<SqlType>, u8),
    /// A type whose JSON form cannot be made from its text (composites, types with a cast to json): refetched.
    Opaque,
}
