//! Whether the statements can be run that say which entries are warmed: they are planned, not run.
//!
//! Only `check` and `setup` look: a daemon whose statement is refused serves all the same, and its warming says why.

use tokio_postgres::Client;
use tokio_postgres::error::SqlState;

use super::finding::{Finding, Findings, Phase};
use super::queries::explain::{self, Options};
use super::queries::{Refused, described};
use super::reader::Reader;
use super::types::Oid;
use super::{Inspection, Severity, query_opt, rights};
use crate::config::{Config, EntityConfig};
use crate::entity::{Entity, Shape};
use crate::source::{SourceError, SourceUrl};
use crate::warm::Walk;
use crate::warm::keys::{self, Which};

/// How long a table that is just being altered is waited for.
const LOCK_TIMEOUT: &str = "SET lock_timeout = '1s'";

/// Whoever looks, at one entity's warming.
struct Look<'a> {
    client: &'a Reader<'a>,
    entity: &'a EntityConfig,
    shape: &'a Shape,
    /// The role that will read, whoever is connected.
    role: (Oid, &'a str),
}

/// What keeps entities from being warmed as they are configured to be. Those with errors of another kind are left out: what
/// mends these may mend this.
///
/// # Errors
/// [`SourceError`] where the database cannot be asked.
pub async fn inspect_warming(
    client: &Client,
    config: &Config,
    inspection: &Inspection,
) -> Result<Vec<Finding>, SourceError> {
    let url = SourceUrl::parse(&config.source.url)?;
    let client = &Reader::new(client, &config.source);
    let mut findings = Findings::default();
    let sql = "SELECT oid FROM pg_roles WHERE rolname = $1";
    let Some(role) = query_opt(client, "read role", sql, &[&url.user()]).await? else { return Ok(findings.0) };
    let role = (role.get(0), url.user());
    let failed = |error| SourceError::postgres("limit waiting for locks", error);
    client.batch_execute(LOCK_TIMEOUT).await.map_err(failed)?;
    for (entity, (shape, _)) in config.entities.iter().zip(&inspection.entities) {
        let subject = format!("entity {}", entity.name);
        let has_error = |finding: &Finding| finding.severity == Severity::Error && finding.subject == subject;
        let (Some(shape), false) = (shape, inspection.findings.iter().any(has_error)) else { continue };
        let look = Look { client, entity, shape, role };
        match look.check(&mut findings).await {
            Err(SourceError::Postgres { error, .. }) if error.code() == Some(&SqlState::LOCK_NOT_AVAILABLE) => {
                let what = "what it warms cannot be looked at: a table is locked, as it is while it is altered";
                findings.add(Finding::warning("warm_locked", subject, what, "check again when that has ended"));
            }
            looked => looked?,
        }
    }
    client.batch_execute("RESET lock_timeout").await.map_err(failed)?;
    Ok(findings.0)
}

impl Look<'_> {
    async fn check(&self, findings: &mut Findings) -> Result<(), SourceError> {
        let Some(warm) = &self.entity.warm else { return Ok(()) };
        let walk = Walk::new(warm);
        let field = match &walk.which {
            Which::Rows(None) => return Ok(()),
            Which::Rows(Some(_)) => "warm.where",
            Which::Select(_) => "warm.keys",
        };
        if let Which::Select(select) = &walk.which
            && !self.gives_keys(select, findings).await?
        {
            return Ok(());
        }
        let prefix = "";
        let entity = Entity::new(0, self.entity.definition(), prefix, self.shape.clone());
        let statement = keys::first_page(&entity, &walk.which, walk.order, walk.limit);
        let refused = match described(self.client.prepare(&statement).await)? {
            Err(refused) => refused,
            Ok(described) if !described.params().is_empty() => {
                let what = format!("{field} has a parameter ($1), and is given none");
                findings.add(self.error(what, "write the value into it"));
                return Ok(());
            }
            Ok(_) => {
                // It cannot be planned as a role that cannot be taken: that one finds out when it connects.
                let Some(role) = explain::role(self.client, self.role).await? else { return Ok(()) };
                match explain::plan(self.client, &statement, &[], Options { role, avoid_scans: false }).await? {
                    Ok(_) => return Ok(()),
                    Err(refused) => refused,
                }
            }
        };
        self.refused(field, &refused, &statement, findings).await
    }

    /// Whether a SELECT by itself is right, and what it gives is a key of the entity.
    async fn gives_keys(&self, select: &str, findings: &mut Findings) -> Result<bool, SourceError> {
        let select = select.trim().trim_end_matches(|c: char| c == ';' || c.is_whitespace());
        // By itself: so the server speaks of what the operator has written.
        let statement = match described(self.client.prepare(select).await)? {
            Ok(statement) => statement,
            Err(refused) => {
                self.refused("warm.keys", &refused, select, findings).await?;
                return Ok(false);
            }
        };
        let key = &self.shape.key;
        let each = |text: &dyn Fn(usize) -> String, by| (0..key.len()).map(text).collect::<Vec<_>>().join(by);
        let wanted = each(&|i| format!("{} {}", key[i].name, key[i].cast), ", ");
        let given = statement.columns();
        if given.len() == key.len() {
            let alike = each(&|i| format!("s.k{i} = NULL::{}", key[i].cast), " AND ");
            let names = each(&|i| format!("k{i}"), ", ");
            let compared = format!("SELECT {alike} FROM ({select}\n) AS s({names})");
            let Err(refused) = described(self.client.prepare(&compared).await)? else { return Ok(true) };
            // As a part of another statement it may be wrong for other reasons: WITH that writes, for example.
            if refused.code != SqlState::UNDEFINED_FUNCTION.code() {
                self.refused("warm.keys", &refused, select, findings).await?;
                return Ok(false);
            }
        }
        let given: Vec<&str> = given.iter().map(|column| column.type_().name()).collect();
        let what = format!("warm.keys gives ({}), and a key is ({wanted})", given.join(", "));
        findings.add(self.error(what, "select the key's columns in their order, cast to their types"));
        Ok(false)
    }

    async fn refused(
        &self,
        field: &str,
        refused: &Refused,
        statement: &str,
        findings: &mut Findings,
    ) -> Result<(), SourceError> {
        let finding = self.error(format!("the database refuses {field}: {}", refused.said), format!("correct {field}"));
        let grants = rights::grants(self.client, self.role.0, refused, statement).await?;
        findings.add(match grants.is_empty() {
            true => finding,
            false => finding.granted(grants.join(";\n")),
        });
        Ok(())
    }

    fn error(&self, what: String, remedy: impl Into<String>) -> Finding {
        Finding::error("warm_refused", format!("entity {}", self.entity.name), what, remedy)
    }
}

impl Finding {
    fn granted(self, sql: String) -> Finding {
        Finding { remedy: "grant it".to_owned(), ..self }.mended_in(Phase::Grant, sql)
    }
}
