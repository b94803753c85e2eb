//! The parameters of a query, which are its key.

use super::Look;
use super::explain::described;
use crate::catalog::finding::Findings;
use crate::catalog::types::{KeyFacts, Oid};
use crate::key::{KeyColumn, KeyType};
use crate::source::SourceError;

/// A parameter of the query.
pub(super) struct Param {
    pub(super) name: String,
    /// Its type, domains looked through.
    pub(super) oid: Oid,
    pub(super) key: KeyColumn,
}

impl Look<'_> {
    /// The parameters with their types; `None` where one cannot be part of a key.
    pub(super) async fn params(&self, findings: &mut Findings) -> Result<Option<Vec<Param>>, SourceError> {
        let declared = self.entity.params.iter().flat_map(|params| &params.0);
        let mut types = Some(Vec::new());
        for (name, text) in declared.clone() {
            // The text holds nothing but a type's name: see `config::validate`.
            match described(self.client.prepare(&format!("SELECT NULL::{text}")).await)? {
                Ok(statement) => {
                    let of = statement.columns().first().map(|column| (column.type_().oid(), column.type_modifier()));
                    types.iter_mut().for_each(|types| types.extend(of));
                }
                Err(refused) => {
                    let what = format!("params: {name} = {text:?} is no type: {}", refused.said);
                    findings.add(self.error("param_type", what, "name a type that the database has"));
                    types = None;
                }
            }
        }
        let Some(types) = types else { return Ok(None) };
        let types = KeyFacts::of(self.client, "read the types of parameters", types.into_iter()).await?;
        let mut params = Some(Vec::new());
        for ((name, text), facts) in declared.zip(types) {
            let oid = facts.oid;
            match facts.key_type() {
                Ok(key_type) => {
                    let key = KeyColumn { name: name.clone(), type_oid: oid, key_type, cast: facts.name };
                    params.iter_mut().for_each(|params: &mut Vec<_>| {
                        params.push(Param { name: name.clone(), oid, key: key.clone() });
                    });
                }
                Err(why) => {
                    let what = format!("params: {name} = {text:?} cannot be part of a key: {why}");
                    findings.add(self.error("param_type", what, "choose another type, and cast it in the query"));
                    params = None;
                }
            }
        }
        Ok(params)
    }
}

/// `pg_type.oid` of `oid` and of `int8`.
const OID: Oid = 26;
const INT8: Oid = 20;

/// Whether values of two types that are equal in SQL have the same canonical text in both.
pub(super) fn reads_alike((a, a_oid): (&KeyType, Oid), (b, b_oid): (&KeyType, Oid)) -> bool {
    match (a, b) {
        // Besides int8, integers are compared with an oid as oids: -1 is equal to 4294967295.
        (KeyType::Integer(..), KeyType::Integer(..)) => {
            (a_oid == OID) == (b_oid == OID) || a_oid == INT8 || b_oid == INT8
        }
        (KeyType::Text, KeyType::Text)
        | (KeyType::Char(_), KeyType::Char(_))
        | (KeyType::Uuid, KeyType::Uuid)
        | (KeyType::Bool, KeyType::Bool)
        | (KeyType::Date, KeyType::Date)
        | (KeyType::Timestamp, KeyType::Timestamp)
        | (KeyType::TimestampTz, KeyType::TimestampTz) => true,
        (KeyType::Enum(_), KeyType::Enum(_)) => a_oid == b_oid,
        (KeyType::Numeric(a), KeyType::Numeric(b)) => a == b,
        _ => false,
    }
}
