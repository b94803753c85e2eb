//! The types of Postgres, as far as their text form decides how they read in JSON.

use std::collections::HashMap;

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
    /// `int2vector`, `oidvector`: an array whose text form has spaces between its elements and no braces.
    Vector(Box<SqlType>),
    /// A type whose JSON form cannot be made from its text (composites, types with a cast to json): refetched.
    Opaque,
}

/// What `sql/type_facts.sql` says of one type, by its `oid` column.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TypeFacts {
    /// `pg_type.typtype`: `b` base, `c` composite, `d` domain, `e` enum, `m` multirange, `p` pseudo, `r` range.
    pub typtype: u8,
    /// The type that a domain is over; 0 for others.
    pub base: u32,
    /// The element type of an array; 0 for others.
    pub element: u32,
    /// What separates elements in the text form of an array of this type.
    pub delimiter: u8,
    /// Whether `row_to_json` converts the type by a cast to json that a user made.
    pub has_json_cast: bool,
}

/// How deep domains and arrays may nest (a domain over an array of a domain over ...) before a type counts as opaque.
const MAX_NESTING: usize = 16;

const INT2VECTOR: u32 = 22;
const OIDVECTOR: u32 = 30;

impl SqlType {
    /// How a type reads in JSON, by the rules of `json_categorize_type` in Postgres.
    ///
    /// A type that `facts` lacks is [`SqlType::Opaque`]: its rows are then refetched, which is never wrong.
    pub fn of(oid: u32, facts: &HashMap<u32, TypeFacts>) -> SqlType {
        Self::resolve(oid, facts, MAX_NESTING)
    }

    fn resolve(oid: u32, facts: &HashMap<u32, TypeFacts>, nesting: usize) -> SqlType {
        if let Some(known) = Self::by_oid(oid) {
            return known;
        }
        let Some(this) = facts.get(&oid) else { return SqlType::Opaque };
        let Some(nesting) = nesting.checked_sub(1) else { return SqlType::Opaque };
        if this.typtype == b'd' {
            return Self::resolve(this.base, facts, nesting);
        }
        if this.element != 0 {
            let Some(element) = facts.get(&this.element) else { return SqlType::Opaque };
            return match Self::resolve(this.element, facts, nesting) {
                SqlType::Opaque => SqlType::Opaque,
                resolved if oid == INT2VECTOR || oid == OIDVECTOR => SqlType::Vector(Box::new(resolved)),
                resolved => SqlType::Array(Box::new(resolved), element.delimiter),
            };
        }
        match this.typtype {
            _ if this.has_json_cast => SqlType::Opaque,
            b'b' | b'e' | b'r' | b'm' => SqlType::Text,
            _ => SqlType::Opaque,
        }
    }

    /// The types that `row_to_json` knows by their number.
    fn by_oid(oid: u32) -> Option<SqlType> {
        Some(match oid {
            16 => SqlType::Bool,
            20 | 21 | 23 => SqlType::Integer,
            700 | 701 | 1700 => SqlType::Number,
            114 | 3802 => SqlType::Json,
            1082 => SqlType::Date,
            1114 => SqlType::Timestamp,
            1184 => SqlType::TimestampTz,
            _ => return None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts(rows: &[(u32, u8, u32, u32, bool)]) -> HashMap<u32, TypeFacts> {
        let row = |&(oid, typtype, base, element, has_json_cast)| {
            let delimiter = if oid == 603 { b';' } else { b',' };
            (oid, TypeFacts { typtype, base, element, delimiter, has_json_cast })
        };
        rows.iter().map(row).collect()
    }

    fn array(element: SqlType) -> SqlType {
        SqlType::Array(Box::new(element), b',')
    }

    #[test]
    fn follows_json_categorize_type() {
        let facts = facts(&[
            (21, b'b', 0, 0, false),
            (22, b'b', 0, 21, false),
            (23, b'b', 0, 0, false),
            (25, b'b', 0, 0, false),
            (603, b'b', 0, 0, false),
            (1007, b'b', 0, 23, false),
            (1020, b'b', 0, 603, false),
            (3904, b'r', 0, 0, false),
            (20000, b'd', 23, 0, false),
            (20001, b'd', 20000, 0, false),
            (20002, b'd', 1007, 0, false),
            (20003, b'b', 0, 20002, false),
            (20004, b'c', 0, 0, false),
            (20005, b'b', 0, 20004, false),
            (20006, b'd', 20004, 0, false),
            (20007, b'e', 0, 0, false),
            (20008, b'e', 0, 0, true),
            (20009, b'b', 0, 20008, false),
            (20010, b'd', 20008, 0, false),
            (20011, b'b', 0, 20099, false),
            (2249, b'p', 0, 0, false),
        ]);
        let boxes = SqlType::Array(Box::new(SqlType::Text), b';');
        for (oid, expected) in [
            (16, SqlType::Bool),
            (22, SqlType::Vector(Box::new(SqlType::Integer))),
            (23, SqlType::Integer),
            (25, SqlType::Text),
            (603, SqlType::Text),
            (1007, array(SqlType::Integer)),
            (1020, boxes),
            (1184, SqlType::TimestampTz),
            (1700, SqlType::Number),
            (3802, SqlType::Json),
            (3904, SqlType::Text),
            (20001, SqlType::Integer),
            (20002, array(SqlType::Integer)),
            (20003, array(array(SqlType::Integer))),
            (20004, SqlType::Opaque),
            (20005, SqlType::Opaque),
            (20006, SqlType::Opaque),
            (20007, SqlType::Text),
            (20008, SqlType::Opaque),
            (20009, SqlType::Opaque),
            (20010, SqlType::Opaque),
            (20011, SqlType::Opaque),
            (2249, SqlType::Opaque),
            (99999, SqlType::Opaque),
        ] {
            assert_eq!(SqlType::of(oid, &facts), expected, "{oid}");
        }
    }

    #[test]
    fn facts_that_go_round_in_circles_end_as_opaque() {
        let facts =
            facts(&[(20000, b'd', 20001, 0, false), (20001, b'd', 20000, 0, false), (20002, b'b', 0, 20002, false)]);
        assert_eq!(SqlType::of(20000, &facts), SqlType::Opaque);
        assert_eq!(SqlType::of(20002, &facts), SqlType::Opaque);
    }
}
