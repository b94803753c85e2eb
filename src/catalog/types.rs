//! Types of columns: what they mean for values and for keys.

use std::collections::HashMap;
use std::sync::LazyLock;

use tokio_postgres::Row;

use super::query;
use super::reader::Reader;
use crate::key::KeyType;
use crate::source::SourceError;
use crate::sql;
use crate::sqltype::{MAX_NESTING, MAX_PARTS, Obstacle, Reason, SqlType, TypeFacts};

/// An object identifier of the catalog.
pub(super) type Oid = u32;

/// The types of an entity's columns, as they read in JSON.
pub(super) struct ColumnTypes {
    resolved: HashMap<Oid, Result<SqlType, Obstacle>>,
    names: HashMap<Oid, String>,
    /// Differs when values of one of the types, or of a type that it is made of, read otherwise though no row has changed.
    pub(super) version: Vec<(Oid, String)>,
}

impl ColumnTypes {
    /// Reads what these types are and are made of.
    pub(super) async fn read(client: &Reader<'_>, oids: &[Oid]) -> Result<Self, SourceError> {
        let rows = query(client, "read types", include_str!("../../sql/type_facts.sql"), &[&oids]).await?;
        let facts = rows.iter().map(|row| (row.get("oid"), type_facts(row))).collect();
        Ok(ColumnTypes {
            resolved: oids.iter().map(|oid| (*oid, SqlType::of(*oid, &facts))).collect(),
            names: rows.iter().map(|row| (row.get("oid"), row.get("name"))).collect(),
            version: rows.iter().map(|row| (row.get("oid"), row.get("version"))).collect(),
        })
    }

    /// How values of a type become JSON; [`SqlType::Opaque`] if that cannot be told.
    pub(super) fn sql_type(&self, oid: Oid) -> SqlType {
        self.resolved.get(&oid).and_then(|resolved| resolved.clone().ok()).unwrap_or(SqlType::Opaque)
    }

    /// The name of a type that is opaque, and why it is.
    pub(super) fn obstacle(&self, oid: Oid) -> Option<(&str, String)> {
        let Err(obstacle) = self.resolved.get(&oid)? else { return None };
        let name = |oid| self.names.get(&oid).map_or("?", String::as_str);
        let culprit = name(obstacle.oid);
        let why = match obstacle.reason {
            Reason::Cast => format!("{culprit} has a cast to json that row_to_json calls"),
            Reason::Nesting => format!("it is nested deeper than {MAX_NESTING} types"),
            Reason::Parts => format!("it is made of more than {MAX_PARTS} types"),
            Reason::Unknown => format!("{culprit} is no type of values in tables"),
        };
        Some((name(oid), why))
    }
}

fn type_facts(row: &Row) -> TypeFacts {
    let byte = |column: &str| row.get::<_, i8>(column).cast_unsigned();
    let names: Vec<String> = row.get("attribute_names");
    let types: Vec<Oid> = row.get("attribute_types");
    TypeFacts {
        typtype: byte("typtype"),
        base: row.get("base"),
        element: row.get("element"),
        delimiter: byte("delimiter"),
        has_json_cast: row.get("has_json_cast"),
        attributes: names.into_iter().zip(types).collect(),
    }
}

/// A column's type as keys need it, domains looked through.
#[derive(Clone)]
pub(super) struct KeyFacts {
    pub(super) oid: Oid,
    /// In SQL, with its schema.
    pub(super) name: String,
    /// `atttypmod`, or the domain's.
    modifier: i32,
    /// `pg_type.typtype`.
    kind: String,
    /// Whether the column's collation calls only equal texts equal.
    deterministic: bool,
    /// An enum's labels.
    labels: Vec<String>,
}

impl KeyFacts {
    /// As `sql/columns.sql` and `sql/param_types.sql` give them.
    pub(super) fn read(row: &Row) -> Self {
        KeyFacts {
            oid: row.get("base_oid"),
            name: row.get("base_name"),
            modifier: row.get("base_modifier"),
            kind: row.get("base_kind"),
            deterministic: row.get("deterministic"),
            labels: row.get("labels"),
        }
    }

    /// What such types are, domains looked through, in their order.
    pub(super) async fn of(
        client: &Reader<'_>,
        what: &'static str,
        types: impl Iterator<Item = (Oid, i32)>,
    ) -> Result<Vec<Self>, SourceError> {
        static SQL: LazyLock<String> = LazyLock::new(|| {
            looking_through_domains(include_str!("../../sql/param_types.sql"), "wanted.oid", "wanted.modifier")
        });
        let (oids, modifiers): (Vec<Oid>, Vec<i32>) = types.unzip();
        let rows = query(client, what, &SQL, &[&oids, &modifiers]).await?;
        Ok(rows.iter().map(KeyFacts::read).collect())
    }

    /// What the type is as a key's; or why it cannot be one.
    pub(super) fn key_type(&self) -> Result<KeyType, &'static str> {
        // A modifier counts from the four bytes of a length word.
        let modifier = self.modifier.checked_sub(4).filter(|m| *m >= 0);
        match self.oid {
            21 => Ok(KeyType::Integer(i16::MIN.into(), i16::MAX.into())),
            23 => Ok(KeyType::Integer(i32::MIN.into(), i32::MAX.into())),
            20 => Ok(KeyType::Integer(i64::MIN, i64::MAX)),
            26 => Ok(KeyType::Integer(0, u32::MAX.into())),
            25 | 1043 | 1042 if !self.deterministic => {
                Err("its collation is not deterministic: different texts are equal")
            }
            25 | 1043 => Ok(KeyType::Text),
            1042 => match modifier.map(usize::try_from) {
                Some(Ok(length)) => Ok(KeyType::Char(length)),
                _ => Err("bpchar without a length has many texts for one value"),
            },
            2950 => Ok(KeyType::Uuid),
            16 => Ok(KeyType::Bool),
            1082 => Ok(KeyType::Date),
            1114 => Ok(KeyType::Timestamp),
            1184 => Ok(KeyType::TimestampTz),
            1700 => match modifier {
                // The scale is a signed number of 11 bits; a negative one leaves no fraction.
                Some(modifier) => match usize::try_from(((modifier & 0x7FF) ^ 1024) - 1024) {
                    Ok(scale) => Ok(KeyType::Numeric(scale)),
                    Err(_) => Ok(KeyType::Numeric(0)),
                },
                None => Err("numeric without precision and scale has many texts for one value"),
            },
            _ if self.kind == "e" => Ok(KeyType::Enum(self.labels.clone())),
            _ => Err("keys can be int2, int4, int8, oid, text, varchar, char(n), uuid, bool, enums, date, timestamp, \
                      timestamptz and numeric(p,s)"),
        }
    }
}

/// A statement whose `{base_type}` is what lies below the domains of a type: `base`, with its `pg_type` `t` and namespace `n`.
pub(super) fn looking_through_domains(template: &str, oid: &str, modifier: &str) -> String {
    let base = sql::statement(include_str!("../../sql/base_type.sql"));
    let base = base.replace("{oid}", oid).replace("{modifier}", modifier);
    sql::statement(template).replace("{base_type}", &base)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(oid: Oid, modifier: i32) -> Result<KeyType, &'static str> {
        let (name, kind) = (String::new(), "b".to_owned());
        KeyFacts { oid, name, modifier, kind, deterministic: true, labels: Vec::new() }.key_type()
    }

    #[test]
    fn modifiers_give_lengths_and_scales() {
        assert_eq!(of(1042, 7), Ok(KeyType::Char(3)));
        assert!(of(1042, -1).is_err());
        // numeric(10,2), numeric(5,0), numeric(4,-2), numeric.
        assert_eq!(of(1700, (10 << 16 | 2) + 4), Ok(KeyType::Numeric(2)));
        assert_eq!(of(1700, (5 << 16) + 4), Ok(KeyType::Numeric(0)));
        assert_eq!(of(1700, (4 << 16 | (-2 & 0x7FF)) + 4), Ok(KeyType::Numeric(0)));
        assert!(of(1700, -1).is_err());
        assert!(of(701, -1).is_err());
    }
}
