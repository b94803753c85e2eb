//! What operators ask of the daemon over the admin listener.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::Mutex;
use tokio_postgres::Client;
use tokio_util::sync::CancellationToken;

use super::invalidate;
use super::orders::OrderError;
use super::shapes::Catalog;
use super::warmth::{self, Leading};
use super::{Context, STATEMENT_TIMEOUT};
use crate::apply::LookUpShape;
use crate::audit::verify::{Cursor, Scope};
use crate::audit::{Auditor, Shapes};
use crate::entity::{Entity, EntryKey, Generation, Resolved, Standing};
use crate::serve::admin::{Operate, Refusal, Verify, VerifyScope, Warm};
use crate::source::{self, SourceError};
use crate::warm::Warming;

/// How long an operator waits for a new generation: it may come after a batch that takes its time.
const RESYNC_TIMEOUT: Duration = Duration::from_secs(60);

/// Carries out what operators ask, once the daemon has started.
#[derive(Default)]
pub(super) struct Operator(OnceLock<Parts>);

struct Parts {
    context: Arc<Context>,
    auditor: Arc<Auditor<Catalogued>>,
    stop: CancellationToken,
    warming: Arc<Warming<Leading>>,
}

impl Operator {
    /// From now on there is something to operate.
    pub(super) fn attach(
        &self,
        context: Arc<Context>,
        auditor: Arc<Auditor<Catalogued>>,
        warming: Arc<Warming<Leading>>,
        stop: CancellationToken,
    ) {
        // Attached once, at the start.
        let _ = self.0.set(Parts { context, auditor, warming, stop });
    }

    fn parts(&self) -> Result<&Parts, Refusal> {
        self.0.get().ok_or_else(|| Refusal::Starting("the source database has not been inspected yet".to_owned()))
    }
}

impl Operate for Operator {
    fn entities(&self) -> Result<&[Arc<Entity>], Refusal> {
        Ok(&self.parts()?.context.hierarchy.entities)
    }

    async fn resync(&self, entity: Option<usize>) -> Result<Generation, Refusal> {
        let context = &self.parts()?.context;
        let resync = context.orders.resync(entity);
        match tokio::time::timeout(RESYNC_TIMEOUT, resync).await {
            Ok(done) => done.map_err(|error| match error {
                OrderError::NotLeading => context.not_leading(),
                OrderError::Failed(_) => Refusal::Failed(error.to_string()),
            }),
            Err(_) => Err(Refusal::Failed(format!(
                "it was not carried out within {RESYNC_TIMEOUT:?}: a batch is held up; it may still come"
            ))),
        }
    }

    async fn verify(&self, entity: &Arc<Entity>, verify: Verify) -> Result<Bytes, Refusal> {
        let parts = self.parts()?;
        if parts.context.hierarchy.watermark.staleness().is_none() {
            let why = "replication has not caught up since the start: this instance serves nothing from its tiers";
            return Err(Refusal::NotLeading(why.to_owned()));
        }
        let scope = match verify.scope {
            VerifyScope::Sample(count) => Scope::Sample(count),
            VerifyScope::Page { cursor: None, limit } => Scope::Page(Cursor::L2(0), limit),
            VerifyScope::Page { cursor: Some(text), limit } => {
                let cursor = text.parse().map_err(|()| Refusal::Malformed(format!("{text:?} is no cursor")))?;
                Scope::Page(cursor, limit)
            }
        };
        // Boxed, as it is large: whoever awaits it holds it on its stack.
        Ok(json(&Box::pin(parts.auditor.verify(entity, scope, verify.repair)).await))
    }

    async fn invalidate(&self, command: &str, dry_run: bool) -> Result<(Bytes, bool), Refusal> {
        invalidate::invalidate(&self.parts()?.context, command, dry_run).await
    }

    async fn explain(&self, entity: &Arc<Entity>, key: &EntryKey) -> Result<Bytes, Refusal> {
        Ok(json(&self.parts()?.auditor.explain(entity, key).await))
    }

    async fn tap(&self, entity: Option<usize>, from: Option<&str>) -> Result<Bytes, Refusal> {
        let from = from.map(str::parse).transpose();
        let from = from.map_err(|()| Refusal::Malformed("from must be the \"next\" of an answer".to_owned()))?;
        let Parts { context, stop, .. } = self.parts()?;
        if !context.orders.is_open() {
            return Err(context.not_leading());
        }
        tokio::select! {
            answer = context.tap.ask(from, entity, &context.hierarchy.watermark) => Ok(json(&answer)),
            () = stop.cancelled() => Err(Refusal::NotLeading("the daemon is stopping".to_owned())),
        }
    }

    async fn warm(&self, entity: &Arc<Entity>, warm: Warm) -> Result<Bytes, Refusal> {
        let Parts { context, warming, .. } = self.parts()?;
        warmth::begin(warming, entity, warm).await.map_err(|refusal| match refusal {
            Refusal::NotLeading(_) => context.not_leading(),
            other => other,
        })
    }

    fn cancel_warming(&self, entity: &Arc<Entity>) -> Result<Bytes, Refusal> {
        warmth::cancel(&self.parts()?.warming, entity)
    }

    fn warming(&self) -> Result<Bytes, Refusal> {
        Ok(json(&serde_json::json!({ "jobs": self.parts()?.warming.progress() })))
    }
}

/// Not by way of `Value`, which would print a row's numbers otherwise.
fn json<T: serde::Serialize>(what: &T) -> Bytes {
    // Structs of strings, numbers and JSON always serialize.
    serde_json::to_vec(what).unwrap_or_default().into()
}

/// Compares shapes with the catalog of the source, over a connection of its own.
pub(super) struct Catalogued {
    context: Arc<Context>,
    catalog: Catalog,
    client: Mutex<Option<Client>>,
}

impl Catalogued {
    pub(super) fn new(context: Arc<Context>) -> Self {
        let catalog = Catalog::new(context.config.clone());
        Catalogued { context, catalog, client: Mutex::default() }
    }

    async fn look_up(&self, entity: &Entity) -> Result<bool, SourceError> {
        let mut client = self.client.lock().await;
        // Kept while it works: findings are rare, but DDL makes many entries differ at once.
        let connected = match client.take().filter(|client| !client.is_closed()) {
            Some(connected) => connected,
            None => source::connect(&self.context.config.source, Some(STATEMENT_TIMEOUT)).await?,
        };
        let found = Box::pin(self.catalog.look_up(&connected, &[entity.id])).await?;
        *client = Some(connected);
        let is_current = |found: &Resolved| {
            found.standing == Standing::Cached && found.shape.as_ref().is_some_and(|shape| *shape == *entity.shape())
        };
        Ok(found.iter().all(is_current))
    }
}

impl Shapes for Catalogued {
    async fn are_current(&self, entity: &Entity) -> Option<bool> {
        let current = match tokio::time::timeout(STATEMENT_TIMEOUT, Box::pin(self.look_up(entity))).await {
            Ok(Ok(current)) => current,
            Ok(Err(error)) => {
                tracing::debug!(%error, entity = entity.name, "look a table's shape up");
                return None;
            }
            Err(_) => return None,
        };
        if !current {
            // Sooner than the next look at the catalog.
            self.context.orders.reshape(entity.id);
        }
        Some(current)
    }
}
