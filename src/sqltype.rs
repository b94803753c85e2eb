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
    /// A composite type, or the row type of a table: a JSON object of its attributes.
    Composite(Vec<Attribute>),
    /// A type whose JSON form cannot be made from its text, see [`Obstacle`]: refetched.
    Opaque,
}

/// An attribute of a composite type that has not been dropped.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attribute {
    /// Its name, which is its name in the JSON object.
    pub name: String,
    /// How its text becomes JSON.
    pub sql_type: SqlType,
}

/// Why a type is [`SqlType::Opaque`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Obstacle {
    /// The type that is in the way: the one asked for, or one that it is made of.
    pub oid: u32,
    /// What is the matter with it.
    pub reason: Reason,
}

/// What makes a type opaque.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// `row_to_json` converts it by a cast to json that a user made.
    Cast,
    /// It is nested deeper than [`MAX_NESTING`].
    Nesting,
    /// The whole is made of more than [`MAX_PARTS`] types.
    Parts,
    /// The catalog does not tell what it is made of, or it is no type that a column can have.
    Unknown,
}

/// What `sql/type_facts.sql` says of one type, by its `oid` column.
#[derive(Debug, Clone, PartialEq, Eq)]
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
    /// A composite type's attributes in order, without the dropped ones: name and type. Empty for others.
    pub attributes: Vec<(String, u32)>,
}

/// How deep domains, arrays and composites may nest (a domain over an array of a composite of ...) before a type counts
/// as opaque: it bounds the recursion of whatever goes through a type or renders a value of it.
pub const MAX_NESTING: usize = 16;

/// How many types a type may be made of, each counted as often as it occurs, before it counts as opaque: composites of
/// composites grow by multiplication.
pub const MAX_PARTS: usize = 4096;

const INT2VECTOR: u32 = 22;
const OIDVECTOR: u32 = 30;

impl SqlType {
    /// How a type reads in JSON, by the rules of `json_categorize_type` in Postgres.
    ///
    /// # Errors
    /// [`Obstacle`] where that does not follow from the text: the type is then [`SqlType::Opaque`], and its rows are
    /// refetched, which is never wrong.
    pub fn of(oid: u32, facts: &HashMap<u32, TypeFacts>) -> Result<SqlType, Obstacle> {
        Self::resolve(oid, facts, MAX_NESTING, &mut { MAX_PARTS })
    }

    fn resolve(
        oid: u32,
        facts: &HashMap<u32, TypeFacts>,
        nesting: usize,
        parts: &mut usize,
    ) -> Result<SqlType, Obstacle> {
        let obstacle = |reason| Obstacle { oid, reason };
        *parts = parts.checked_sub(1).ok_or(obstacle(Reason::Parts))?;
        if let Some(known) = Self::by_oid(oid) {
            return Ok(known);
        }
        let this = facts.get(&oid).ok_or(obstacle(Reason::Unknown))?;
        let nesting = nesting.checked_sub(1).ok_or(obstacle(Reason::Nesting))?;
        if this.typtype == b'd' {
            return Self::resolve(this.base, facts, nesting, parts);
        }
        if this.element != 0 {
            let delimiter = facts.get(&this.element).ok_or(obstacle(Reason::Unknown))?.delimiter;
            let element = Box::new(Self::resolve(this.element, facts, nesting, parts)?);
            return Ok(match oid {
                INT2VECTOR | OIDVECTOR => SqlType::Vector(element),
                _ => SqlType::Array(element, delimiter),
            });
        }
        match this.typtype {
            // Before the casts: as `row_to_json` does not look for any from a composite type.
            b'c' => {
                let attribute = |(name, oid): &(String, u32)| {
                    let sql_type = Self::resolve(*oid, facts, nesting, parts)?;
                    Ok(Attribute { name: name.clone(), sql_type })
                };
                this.attributes.iter().map(attribute).collect::<Result<_, _>>().map(SqlType::Composite)
            }
            _ if this.has_json_cast => Err(obstacle(Reason::Cast)),
            b'b' | b'e' | b'r' | b'm' => Ok(SqlType::Text),
            _ => Err(obstacle(Reason::Unknown)),
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
            (oid, TypeFacts { typtype, base, element, delimiter, has_json_cast, attributes: Vec::new() })
        };
        rows.iter().map(row).collect()
    }

    fn composite(oid: u32, attributes: &[(&str, u32)]) -> (u32, TypeFacts) {
        let attributes = attributes.iter().map(|(name, oid)| ((*name).to_owned(), *oid)).collect();
        // A cast from a composite type counts for nothing.
        (oid, TypeFacts { typtype: b'c', base: 0, element: 0, delimiter: b',', has_json_cast: true, attributes })
    }

    fn array(element: SqlType) -> SqlType {
        SqlType::Array(Box::new(element), b',')
    }

    fn object(attributes: &[(&str, SqlType)]) -> SqlType {
        let attribute =
            |(name, sql_type): &(&str, SqlType)| Attribute { name: (*name).to_owned(), sql_type: sql_type.clone() };
        SqlType::Composite(attributes.iter().map(attribute).collect())
    }

    #[test]
    fn follows_json_categorize_type() {
        let mut facts = facts(&[
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
            (20005, b'b', 0, 20004, false),
            (20006, b'd', 20004, 0, false),
            (20007, b'e', 0, 0, false),
            (20008, b'e', 0, 0, true),
            (20009, b'b', 0, 20008, false),
            (20010, b'd', 20008, 0, false),
            (20011, b'b', 0, 20099, false),
            (2249, b'p', 0, 0, false),
        ]);
        facts.extend([
            composite(20004, &[("a", 23), ("b \"", 20001), ("c", 20003)]),
            composite(20012, &[]),
            composite(20013, &[("inner", 20006), ("list", 20005)]),
            composite(20014, &[("a", 23), ("b", 20009)]),
            composite(20015, &[("a", 2249)]),
        ]);
        let boxes = SqlType::Array(Box::new(SqlType::Text), b';');
        let inner =
            object(&[("a", SqlType::Integer), ("b \"", SqlType::Integer), ("c", array(array(SqlType::Integer)))]);
        let obstacle = |oid, reason| Err(Obstacle { oid, reason });
        for (oid, expected) in [
            (16, Ok(SqlType::Bool)),
            (22, Ok(SqlType::Vector(Box::new(SqlType::Integer)))),
            (23, Ok(SqlType::Integer)),
            (25, Ok(SqlType::Text)),
            (603, Ok(SqlType::Text)),
            (1007, Ok(array(SqlType::Integer))),
            (1020, Ok(boxes)),
            (1184, Ok(SqlType::TimestampTz)),
            (1700, Ok(SqlType::Number)),
            (3802, Ok(SqlType::Json)),
            (3904, Ok(SqlType::Text)),
            (20001, Ok(SqlType::Integer)),
            (20002, Ok(array(SqlType::Integer))),
            (20003, Ok(array(array(SqlType::Integer)))),
            (20004, Ok(inner.clone())),
            (20005, Ok(array(inner.clone()))),
            (20006, Ok(inner.clone())),
            (20007, Ok(SqlType::Text)),
            (20008, obstacle(20008, Reason::Cast)),
            (20009, obstacle(20008, Reason::Cast)),
            (20010, obstacle(20008, Reason::Cast)),
            (20011, obstacle(20011, Reason::Unknown)),
            (20012, Ok(object(&[]))),
            (20013, Ok(object(&[("inner", inner.clone()), ("list", array(inner))]))),
            (20014, obstacle(20008, Reason::Cast)),
            (20015, obstacle(2249, Reason::Unknown)),
            (2249, obstacle(2249, Reason::Unknown)),
            (99999, obstacle(99999, Reason::Unknown)),
        ] {
            assert_eq!(SqlType::of(oid, &facts), expected, "{oid}");
        }
    }

    #[test]
    fn what_is_nested_too_deeply_or_too_often_is_opaque() {
        let mut facts =
            facts(&[(20000, b'd', 20001, 0, false), (20001, b'd', 20000, 0, false), (20002, b'b', 0, 20002, false)]);
        facts.extend([composite(20003, &[("a", 20003)]), composite(21000, &[("a", 23), ("b", 23)])]);
        for oid in [20000, 20002, 20003] {
            assert_eq!(SqlType::of(oid, &facts).unwrap_err().reason, Reason::Nesting, "{oid}");
        }
        // Each of two of the one before: 4,095 parts, and 8,191.
        facts.extend((1..12).map(|n| composite(21000 + n, &[("a", 20999 + n), ("b", 20999 + n)])));
        assert!(SqlType::of(21010, &facts).is_ok());
        assert_eq!(SqlType::of(21011, &facts).unwrap_err().reason, Reason::Parts);
    }
}
