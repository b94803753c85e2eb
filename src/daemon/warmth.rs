//! What the daemon warms: its part in [`crate::warm`].

use std::sync::Arc;

use bytes::Bytes;

use super::Context;
use crate::cache::fill::Filler;
use crate::cache::hot::HotSets;
use crate::config::{Config, WarmConfig};
use crate::entity::Entity;
use crate::metrics::WarmMetrics;
use crate::serve::admin::{Refusal, Warm};
use crate::warm::keys::Keys;
use crate::warm::{Leadership, Parts, Progress, Refused, Walk, Warming};

/// What warming sees of the daemon.
pub(super) struct Leading(Arc<Context>);

impl Leadership for Leading {
    fn leads(&self) -> bool {
        self.0.orders.is_open()
    }

    fn is_superseded(&self) -> bool {
        self.0.orders.is_superseded()
    }
}

/// Remembers what the configuration says.
pub(super) fn hot_sets(config: &Config) -> Arc<HotSets> {
    Arc::new(HotSets::new(config.entities.iter().map(|entity| entity.hot_set)))
}

pub(super) fn warming(context: &Arc<Context>, filler: Arc<Filler>, hot: Arc<HotSets>) -> Arc<Warming<Leading>> {
    let config = &context.config;
    let parts = Parts {
        hierarchy: context.hierarchy.clone(),
        filler,
        keys: Keys::new(config.source.clone(), context.followed.clone()),
        hot,
        warmer: context.warmer.clone(),
        config: config.entities.iter().map(|entity| entity.warm.clone()).collect(),
        stale_after: config.freshness.stale_after,
        metrics: WarmMetrics::new(config.entities.iter().map(|entity| entity.name.as_str())),
    };
    Warming::new(parts, Leading(context.clone()))
}

/// Begins what an operator asks for; gives the job's progress.
pub(super) async fn begin(warming: &Warming<Leading>, entity: &Arc<Entity>, asked: Warm) -> Result<Bytes, Refusal> {
    let configured = warming.walk(entity);
    let (condition, keys) = match (asked.condition, asked.keys) {
        (None, None) => (configured.condition, configured.keys),
        asked => asked,
    };
    let walk = WarmConfig {
        condition,
        keys,
        order: asked.order.unwrap_or(configured.order),
        limit: asked.limit.unwrap_or(configured.limit),
        rate: asked.rate.unwrap_or(configured.rate),
        ..WarmConfig::default()
    };
    told(warming.begin(entity, Walk::new(&walk)).await)
}

/// Ends an entity's job; gives its progress.
pub(super) fn cancel(warming: &Warming<Leading>, entity: &Entity) -> Result<Bytes, Refusal> {
    told(warming.cancel(entity))
}

fn told(outcome: Result<Progress, Refused>) -> Result<Bytes, Refusal> {
    match outcome {
        // A struct of strings and finite numbers always serializes.
        Ok(progress) => Ok(serde_json::to_vec(&progress).unwrap_or_default().into()),
        Err(refused) => {
            let why = refused.to_string();
            Err(match refused {
                Refused::NotLeading => Refusal::NotLeading(why),
                Refused::Running(_) | Refused::Idle(_) => Refusal::Conflict(why),
                Refused::NoKeys(_) | Refused::Statement(_) => Refusal::Malformed(why),
                Refused::Away(_) => Refusal::Failed(why),
            })
        }
    }
}
