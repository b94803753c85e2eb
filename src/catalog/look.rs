//! Looks at entities: all that are wanted in one pass.

use std::time::Duration;

use futures_util::stream::{self, StreamExt, TryStreamExt};

use super::finding::{Finding, Findings, Severity};
use super::reader::Reader;
use super::signature::{Signature, Signatures};
use super::table::{self, Table};
use super::types::Oid;
use super::{is_unreadable, queries};
use crate::config::{EntityConfig, SourceConfig};
use crate::entity::{QUERY_LOCKED, Resolved, Shape, Standing, TABLE_LOCKED};
use crate::source::SourceError;

/// Entities that are looked at side by side, on one connection: what is sent need not wait for what comes back.
const AT_A_TIME: usize = 32;

/// How long tables that are just being altered are waited for: applying waits as long.
const LOCK_TIMEOUT: Duration = Duration::from_millis(200);

/// As [`LOCK_TIMEOUT`], once that has been waited in vain: by then whoever alters tables is not just about to be done.
const SPENT_TIMEOUT: Duration = Duration::from_millis(5);

/// Whether a finding says no more than that an entity cannot be looked at now.
pub fn tells_of_lock(finding: &Finding) -> bool {
    [QUERY_LOCKED, TABLE_LOCKED].contains(&finding.code)
}

/// What one pass waits for locks: all that are met together hardly longer than the first.
#[derive(Debug, Default)]
pub(super) struct Locks {
    met: bool,
}

impl Locks {
    /// How long the next one is waited for.
    pub(super) fn limit(&self) -> Duration {
        if self.met { SPENT_TIMEOUT } else { LOCK_TIMEOUT }
    }

    /// One was waited for in vain.
    pub(super) fn met(&mut self) {
        self.met = true;
    }
}

/// One entity as the catalog has it, but for what is published.
pub(super) struct Look {
    /// Its tables; `None` where there is no such table.
    pub(super) tables: Vec<Option<Table>>,
    /// What is known of its query, if it is one.
    of_query: Option<Option<Shape>>,
    /// What a change of a row costs by its rules.
    pub(super) costs: Vec<queries::RuleCost>,
    pub(super) findings: Findings,
    pub(super) signature: Signature,
}

/// Looks at these entities with the rights of `role` (oid and name).
pub(super) async fn look(
    reader: &Reader<'_>,
    entities: &[&EntityConfig],
    role: (Oid, &str),
    source: &SourceConfig,
    locks: &mut Locks,
) -> Result<Vec<Look>, SourceError> {
    // Before the tables: see `Signatures::read`.
    let signatures = Signatures::of(reader, entities.iter().copied(), role.0, source).await?;
    let signatures = signatures.read_parts(reader).await?;
    let rows: Vec<_> = (entities.iter().zip(&signatures))
        .map(|(entity, signature)| of_rows(reader, entity, role, source, *signature))
        .collect();
    let rows: Vec<Option<Look>> = stream::iter(rows).buffered(AT_A_TIME).try_collect().await?;
    let wanted: Vec<_> = entities.iter().copied().zip(signatures).zip(rows).collect();
    if wanted.iter().all(|(_, look)| look.is_some()) {
        return Ok(wanted.into_iter().filter_map(|(_, look)| look).collect());
    }
    // To describe and to plan a query locks its tables. One after the other: the limit is the session's.
    let looks = of_queries(reader, wanted, role, source, locks).await;
    set_lock_timeout(reader, None).await?;
    looks
}

/// The rows of a table; `None` if it is a query.
async fn of_rows(
    reader: &Reader<'_>,
    entity: &EntityConfig,
    role: (Oid, &str),
    source: &SourceConfig,
    signature: Signature,
) -> Result<Option<Look>, SourceError> {
    if entity.query.is_some() {
        return Ok(None);
    }
    let mut findings = Findings::default();
    let table = table::inspect(reader, entity, role, (source, signature), &mut findings).await?;
    Ok(Some(Look { tables: vec![table], of_query: None, costs: Vec::new(), findings, signature }))
}

async fn of_queries(
    reader: &Reader<'_>,
    wanted: Vec<((&EntityConfig, Signature), Option<Look>)>,
    role: (Oid, &str),
    source: &SourceConfig,
    locks: &mut Locks,
) -> Result<Vec<Look>, SourceError> {
    set_lock_timeout(reader, Some(locks)).await?;
    let mut looks = Vec::with_capacity(wanted.len());
    for ((entity, signature), look) in wanted {
        let look = match (look, entity.query()) {
            (None, Some(query)) => {
                let mut findings = Findings::default();
                // Boxed, as it is large: whoever awaits it holds it on its stack.
                let look =
                    Box::pin(queries::inspect(reader, (entity, &query), role, (source, signature), &mut findings));
                let looked = reader.within("look at a query", look).await?;
                if findings.is_locked() && !locks.met {
                    locks.met();
                    set_lock_timeout(reader, Some(locks)).await?;
                }
                let (tables, of_query, costs) = (looked.tables, Some(looked.shape), looked.costs);
                Look { tables, of_query, costs, findings, signature }
            }
            (Some(look), _) => look,
            // Whatever has no query has been looked at by its rows.
            (None, None) => continue,
        };
        looks.push(look);
    }
    Ok(looks)
}

async fn set_lock_timeout(reader: &Reader<'_>, locks: Option<&Locks>) -> Result<(), SourceError> {
    let sql = match locks {
        Some(locks) => format!("SET lock_timeout = {}", locks.limit().as_millis()),
        None => "RESET lock_timeout".to_owned(),
    };
    let what = "limit waiting for locks";
    let set = async { reader.batch_execute(&sql).await.map_err(|error| SourceError::postgres(what, error)) };
    reader.within(what, set).await
}

impl Findings {
    /// Whether one of them says that the entity cannot be looked at now.
    pub(super) fn is_locked(&self) -> bool {
        self.0.iter().any(tells_of_lock)
    }
}

impl Look {
    /// The entity's shape; `None` where it has none that can be served.
    pub(super) fn take_shape(&mut self) -> Option<Shape> {
        match self.of_query.take() {
            Some(shape) => shape.map(|shape| Shape { published: queries::published(&self.tables), ..shape }),
            None => self.tables.first_mut()?.take()?.into_shape(),
        }
    }

    /// How the entity stands, and the errors that keep it from being cached.
    pub(super) fn resolve(mut self) -> (Resolved, Vec<Finding>) {
        let is_locked = self.findings.is_locked();
        // Which of its rows are published is not known then: what was known before stays.
        let shape = if is_locked { None } else { self.take_shape() };
        let mut findings = self.findings.0;
        findings.retain(|finding| finding.severity == Severity::Error);
        let why = || {
            // Readers who must not see rows are told no more than that, and that it was not looked at further.
            let forbidden = findings.iter().any(|finding| finding.code == table::ROW_SECURITY);
            let is_told = |finding: &Finding| finding.code == table::ROW_SECURITY || tells_of_lock(finding);
            let told = findings.iter().filter(|finding| !forbidden || is_told(finding));
            told.map(ToString::to_string).collect::<Vec<_>>().join("; ")
        };
        let standing = match &shape {
            Some(_) if findings.is_empty() => Standing::Cached,
            Some(_) if !findings.iter().any(is_unreadable) => Standing::Uncached(why()),
            // What must not be read is not read because something else is locked, either.
            None if is_locked && !findings.iter().any(is_unreadable) => Standing::Uncached(why()),
            _ => Standing::Unreadable(why()),
        };
        // What is locked is to be looked at again.
        let signature = if is_locked { Signature::default() } else { self.signature };
        (Resolved { standing, shape, signature: signature.whole }, findings)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resolved(codes: &[&'static str]) -> Resolved {
        let finding = |code: &&'static str| Finding::error(code, "entity e", "is as it is", "mend it");
        let findings = Findings(codes.iter().map(finding).collect());
        let of_query = Some(Some(Shape::unknown(0)));
        let signature = Signature { whole: 7, tables: 7 };
        Look { tables: Vec::new(), of_query, costs: Vec::new(), findings, signature }.resolve().0
    }

    #[test]
    fn a_lock_opens_nothing_to_readers() {
        let locked = resolved(&[QUERY_LOCKED]);
        assert!(matches!(locked.standing, Standing::Uncached(_)) && locked.standing.is_locked(), "{locked:?}");
        for lock in [QUERY_LOCKED, TABLE_LOCKED] {
            for code in ["table_rights", table::ROW_SECURITY, "row_security_role", "query_rights"] {
                let found = resolved(&[code, lock]);
                assert!(matches!(found.standing, Standing::Unreadable(_)), "{found:?}");
                assert!(found.standing.cause().is_some_and(|why| why.contains(code)), "{found:?}");
                // It is looked at again, but not all the time.
                assert!(found.standing.is_locked() && found.signature == 0 && found.shape.is_none(), "{found:?}");
            }
        }
        let forbidden = resolved(&[table::ROW_SECURITY, "replica_identity", QUERY_LOCKED]);
        assert!(forbidden.standing.cause().is_some_and(|why| !why.contains("replica_identity")), "{forbidden:?}");
    }
}
