//! What the stages take of the configuration.

use std::sync::Arc;

use crate::apply::{batch, lookup};
use crate::cache::{Freshness, bound, l2};
use crate::config::{Config, EntityConfig, L2Config, Plugin};
use crate::decode::{Decoder, pgoutput, wal2json};
use crate::entity::Entity;
use crate::serve::Limits;

/// Lookups that wait may be as large as so many batches.
const HELD_BATCHES: u64 = 32;

/// A size of the configuration, as far as this machine can count.
pub(super) fn bytes(size: u64) -> usize {
    usize::try_from(size).unwrap_or(usize::MAX)
}

pub(super) fn l2_config(l2: &L2Config) -> l2::Config {
    l2::Config {
        url: l2.url.expose().to_owned(),
        prefix: l2.prefix.clone(),
        response_timeout: l2.response_timeout,
        connect_timeout: l2.connect_timeout,
        lease_ttl: l2.lease_ttl,
        lease_wait: l2.lease_wait,
    }
}

pub(super) fn http_limits(config: &Config) -> Limits {
    Limits {
        max_body: bytes(config.http.max_body),
        max_batch: config.http.max_batch,
        header_timeout: config.http.header_timeout,
        max_connections: config.http.max_connections,
        grace: config.http.grace,
    }
}

pub(super) fn freshness(config: &Config) -> Freshness {
    let f = &config.freshness;
    let of = |entity: &EntityConfig| {
        let max_staleness = entity.max_staleness.unwrap_or(f.max_staleness);
        bound::Bound::new(f.stale_after, max_staleness, entity.past_max_staleness.unwrap_or(f.past_max_staleness))
    };
    Freshness {
        bounds: config.entities.iter().map(of).collect(),
        min_lsn_wait: f.min_lsn_wait,
        min_lsn_wait_max: f.min_lsn_wait_max,
    }
}

pub(super) fn batch_limits(config: &Config) -> batch::Limits {
    let apply = &config.apply;
    batch::Limits {
        max_batch_events: apply.max_batch_events,
        max_batch_bytes: bytes(apply.max_batch_bytes),
        max_transaction_bytes: bytes(apply.max_transaction_bytes),
    }
}

pub(super) fn lookup_limits(config: &Config) -> lookup::Limits {
    let apply = &config.apply;
    lookup::Limits {
        max_lookups: apply.max_lookups,
        max_distance: apply.max_lookup_distance,
        timeout: apply.lookup_timeout,
        hold: apply.lookup_hold,
        max_bytes: bytes(apply.max_batch_bytes.saturating_mul(HELD_BATCHES)),
    }
}

pub(super) fn decoder(plugin: Plugin, entities: &[Arc<Entity>], numbers_as_text: bool) -> Decoder {
    match plugin {
        Plugin::Pgoutput => Decoder::Pgoutput(pgoutput::Decoder::new()),
        Plugin::Wal2json => Decoder::Wal2json(Box::new(wal2json::Decoder::new(entities.to_vec(), numbers_as_text))),
    }
}
