//! Audits on demand: a sample, or all entries page by page.

use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::check::{LATE, Outcome, said};
use super::finding::Finding;
pub use super::sample::Cursor;
use super::{Auditor, Shapes, Tier};
use crate::entity::{Entity, EntryKey};

/// How often a check without a verdict is made again.
const RETRIES: usize = 3;
/// The pause before that.
const PAUSE: Duration = Duration::from_millis(50);
/// Checks without a verdict that are named at most.
const NAMED: usize = 100;

/// Which entries are checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// About so many of each tier.
    Sample(usize),
    /// About so many, from a cursor on.
    Page(Cursor, usize),
}

/// How many checks of one tier ended how.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Counts {
    /// Equal to their rows.
    pub ok: usize,
    /// Wrong.
    pub findings: usize,
    /// Changed each time while they were checked.
    pub changed: usize,
    /// Without a verdict.
    pub inconclusive: usize,
}

/// A check without a verdict.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unsettled {
    /// The entity's name.
    pub entity: String,
    /// The key within the entity.
    pub key: String,
    /// Where it stands.
    pub tier: Tier,
    /// Why there is none.
    pub why: String,
}

/// What was found.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Report {
    /// The entity's name.
    pub entity: String,
    /// Of L1.
    pub l1: Counts,
    /// Of L2.
    pub l2: Counts,
    /// Wrong entries.
    pub findings: Vec<Finding>,
    /// Checks without a verdict, the first of them.
    pub unsettled: Vec<Unsettled>,
    /// Why a tier could not be looked at at all.
    pub problems: Vec<String>,
    /// Where to go on.
    pub next: Option<String>,
}

impl<S: Shapes> Auditor<S> {
    /// Checks entries of an entity. What changed meanwhile or has no verdict is checked again a few times.
    pub async fn verify(&self, entity: &Arc<Entity>, scope: Scope, repair: bool) -> Report {
        let mut report = Report { entity: entity.name.clone(), ..Report::default() };
        match scope {
            Scope::Sample(count) => {
                for tier in [Tier::L2, Tier::L1] {
                    match self.sample(entity, tier, count).await {
                        Ok(keys) => self.verify_keys(entity, tier, keys, repair, &mut report).await,
                        Err(error) => report.problems.push(format!("list entries in L2: {}", said(&error))),
                    }
                }
            }
            Scope::Page(cursor, limit) => match self.page(entity, cursor, limit).await {
                Ok((tier, keys, next)) => {
                    report.next = next.map(|next| next.to_string());
                    self.verify_keys(entity, tier, keys, repair, &mut report).await;
                }
                Err(error) => {
                    report.problems.push(format!("list entries in L2: {}", said(&error)));
                    // L1 can be looked at without it.
                    report.next = self.hierarchy.l1.is_some().then(|| Cursor::L1(Default::default()).to_string());
                }
            },
        }
        report
    }

    async fn verify_keys(
        &self,
        entity: &Arc<Entity>,
        tier: Tier,
        keys: Vec<EntryKey>,
        repair: bool,
        report: &mut Report,
    ) {
        let mut keys = keys;
        for round in 0..=RETRIES {
            let last = round == RETRIES;
            let mut again = Vec::new();
            for (key, outcome) in self.check(entity, tier, std::mem::take(&mut keys), repair).await {
                let unsettled =
                    |why: String| Unsettled { entity: entity.name.clone(), key: key.key().to_owned(), tier, why };
                let Report { l1, l2, findings, unsettled: named, .. } = report;
                let counts = match tier {
                    Tier::L1 => l1,
                    Tier::L2 => l2,
                };
                let (count, why) = match outcome {
                    Outcome::Ok => {
                        counts.ok += 1;
                        continue;
                    }
                    Outcome::Finding(finding) => {
                        counts.findings += 1;
                        findings.push(*finding);
                        continue;
                    }
                    Outcome::Inconclusive(LATE) => (&mut counts.inconclusive, LATE.to_owned()),
                    _ if !last => {
                        again.push(key);
                        continue;
                    }
                    Outcome::Changed => (&mut counts.changed, "it changed each time while it was checked".to_owned()),
                    Outcome::Inconclusive(why) => (&mut counts.inconclusive, why.to_owned()),
                    Outcome::Error(why) => (&mut counts.inconclusive, why),
                };
                *count += 1;
                if named.len() < NAMED {
                    named.push(unsettled(why));
                }
            }
            if again.is_empty() {
                return;
            }
            keys = again;
            tokio::time::sleep(PAUSE).await;
        }
    }
}
