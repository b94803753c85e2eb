//! The HTTP API: a thin layer over the read path, and the listeners that carry it.
//!
//! ```text
//! [http]  Listener -> hyper -> Hits --(L1 has it)--> Reads
//!                                \--(the rest)-----> warp routes -> read | batch -> Reads
//! [admin] Listener -> hyper -> warp routes -> Health | Operate
//! ```
//!
//! A hit in L1 is answered without a boxed future, a span or a lookup of a metric. Everything a client can do wrong
//! is answered by `application/problem+json`; only what hyper itself refuses while parsing (a request line over
//! 64 KiB, more than 100 header fields, bytes that are not HTTP) gets its bare status code.

pub mod admin;
pub mod api;
mod batch;
mod cache_control;
mod headers;
mod listener;
mod problem;
mod projection;
mod read;
mod shared;
#[cfg(test)]
mod tests;
mod timer;

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use warp::http;

use crate::cache::Cache;
use crate::cache::answer::{Answer, Demand, ReadError};
use crate::entity::{Entity, EntryKey};

pub use listener::{BindError, Listener};

/// What every route answers with.
pub type Response = http::Response<Bytes>;

/// The read path, as far as HTTP needs it.
pub trait Reads: Send + Sync + 'static {
    /// The entity of this name.
    fn entity(&self, name: &str) -> Option<&Arc<Entity>>;

    /// Asks L1 only, without waiting: `Some` on a servable hit. It is tried first, so that a hit never becomes a boxed
    /// future.
    fn read_l1(&self, entity: &Entity, key: &EntryKey, demand: &Demand) -> Option<Answer>;

    /// Asks the tiers in order.
    fn read(
        &self,
        entity: &Arc<Entity>,
        key: EntryKey,
        demand: Demand,
    ) -> impl Future<Output = Result<Answer, ReadError>> + Send;

    /// Asks the tiers for many keys; the results come in the keys' order.
    fn read_many(
        &self,
        entity: &Arc<Entity>,
        keys: Vec<EntryKey>,
        demand: Demand,
    ) -> impl Future<Output = Vec<Result<Answer, ReadError>>> + Send;
}

impl Reads for Cache {
    fn entity(&self, name: &str) -> Option<&Arc<Entity>> {
        Cache::entity(self, name)
    }

    fn read_l1(&self, entity: &Entity, key: &EntryKey, demand: &Demand) -> Option<Answer> {
        Cache::read_l1(self, entity, key, demand)
    }

    fn read(
        &self,
        entity: &Arc<Entity>,
        key: EntryKey,
        demand: Demand,
    ) -> impl Future<Output = Result<Answer, ReadError>> + Send {
        Cache::read(self, entity, key, demand)
    }

    fn read_many(
        &self,
        entity: &Arc<Entity>,
        keys: Vec<EntryKey>,
        demand: Demand,
    ) -> impl Future<Output = Vec<Result<Answer, ReadError>>> + Send {
        Cache::read_many(self, entity, keys, demand)
    }
}

/// What clients may ask of a listener at most.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// The longest request body, in bytes.
    pub max_body: usize,
    /// The most keys in one batch.
    pub max_batch: usize,
    /// How long a client may take to send a request's head (an idle connection is closed after it, too), and then
    /// its body.
    pub header_timeout: Duration,
    /// The most connections at a time; further ones wait in the kernel's backlog.
    pub max_connections: usize,
    /// How long requests in flight may take to finish after shutdown began.
    pub grace: Duration,
}
