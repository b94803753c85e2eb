//! What operators ask for: explain an entry, verify entries, make entries unservable.

use std::sync::Arc;

use bytes::{Buf, Bytes};
use futures_util::Stream;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use warp::http::HeaderMap;
use warp::http::header::CONTENT_TYPE;

use super::super::problem::Problem;
use super::super::{Limits, batch};
use crate::entity::{Entity, EntryKey, Generation};

/// Entries of one request at most: it must not take long.
const MAX_ENTRIES: usize = 10_000;
/// Entries of one page, where the request does not say.
const PAGE: usize = 1000;

/// Why an operator's request was not carried out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refusal {
    /// The daemon is starting.
    Starting(String),
    /// This instance does not apply changes.
    NotLeading(String),
    /// The request makes no sense.
    Malformed(String),
    /// It was begun.
    Failed(String),
}

impl Refusal {
    fn into_problem(self) -> Problem {
        match self {
            Refusal::Starting(detail) => Problem::not_now("starting", "Starting", detail),
            Refusal::NotLeading(detail) => Problem::not_now("not-leading", "Not leading", detail),
            Refusal::Malformed(detail) => Problem::malformed_body(detail),
            Refusal::Failed(detail) => Problem::not_now("not-done", "Not carried out", detail),
        }
    }
}

/// Which entries to verify, and whether to repair.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verify {
    /// Which.
    pub scope: VerifyScope,
    /// Whether wrong entries are made unservable.
    pub repair: bool,
}

/// Which entries to verify.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum VerifyScope {
    /// About so many of each tier.
    Sample(usize),
    /// A page of a walk through all.
    Page {
        /// Where the last page ended; `None` at the beginning.
        cursor: Option<String>,
        /// About so many entries.
        limit: usize,
    },
}

/// Carries out what operators ask for.
pub trait Operate: Send + Sync + 'static {
    /// The configured entities.
    ///
    /// # Errors
    /// [`Refusal::Starting`].
    fn entities(&self) -> Result<&[Arc<Entity>], Refusal>;

    /// Makes everything unservable that is cached of an entity, or of all; says in which generation they are now.
    fn resync(&self, entity: Option<usize>) -> impl Future<Output = Result<Generation, Refusal>> + Send;

    /// Compares entries with Postgres; gives the report as JSON.
    fn verify(&self, entity: &Arc<Entity>, verify: Verify) -> impl Future<Output = Result<Bytes, Refusal>> + Send;

    /// Explains an entry; gives the explanation as JSON.
    fn explain(&self, entity: &Arc<Entity>, key: &EntryKey) -> impl Future<Output = Result<Bytes, Refusal>> + Send;
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct VerifyBody {
    entity: String,
    sample: Option<usize>,
    cursor: Option<String>,
    limit: Option<usize>,
    #[serde(default = "yes")]
    repair: bool,
}

fn yes() -> bool {
    true
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ResyncBody {
    entity: Option<String>,
}

/// `GET /v1/explain/{entity}/{key}`; `path` is what follows `/v1/explain/`.
pub(super) async fn explain<O: Operate>(operator: &O, path: &str) -> Result<Bytes, Problem> {
    let (name, segment) = path.split_once('/').ok_or_else(|| {
        Problem::no_route(
            "an entity and a key are needed: /v1/explain/{entity}/{key}, the key as in /v1/{entity}/{key}",
        )
    })?;
    let entity = find(operator, name)?;
    let key = entity.key(segment).map_err(|error| Problem::key(&error))?;
    operator.explain(entity, &key).await.map_err(Refusal::into_problem)
}

/// `POST /v1/verify`.
pub(super) async fn verify<O: Operate>(
    operator: &O,
    request: &HeaderMap,
    body: impl Stream<Item = Result<impl Buf, warp::Error>>,
    limits: &Limits,
) -> Result<Bytes, Problem> {
    let wanted = "{\"entity\":..,\"sample\":..} or {\"entity\":..,\"cursor\":..,\"limit\":..}, with \"repair\":false to change nothing";
    let body: VerifyBody = read(request, body, limits, wanted).await?;
    let entity = find(operator, &body.entity)?;
    let bounded = |field: &str, count: usize| match count {
        1..=MAX_ENTRIES => Ok(count),
        _ => Err(Problem::malformed_body(format!("{field} must be from 1 to {MAX_ENTRIES}"))),
    };
    let scope = match (body.sample, body.cursor, body.limit) {
        (Some(_), Some(_), _) | (Some(_), _, Some(_)) => {
            return Err(Problem::malformed_body("sample does not go together with cursor and limit"));
        }
        (Some(count), None, None) => VerifyScope::Sample(bounded("sample", count)?),
        (None, cursor, limit) => VerifyScope::Page { cursor, limit: bounded("limit", limit.unwrap_or(PAGE))? },
    };
    operator.verify(entity, Verify { scope, repair: body.repair }).await.map_err(Refusal::into_problem)
}

/// `POST /v1/resync`.
pub(super) async fn resync<O: Operate>(
    operator: &O,
    request: &HeaderMap,
    body: impl Stream<Item = Result<impl Buf, warp::Error>>,
    limits: &Limits,
) -> Result<Value, Problem> {
    let body: ResyncBody = read(request, body, limits, "{} or {\"entity\":..}").await?;
    let entity = body.entity.map(|name| find(operator, &name)).transpose()?;
    let generation = operator.resync(entity.map(|entity| entity.id)).await.map_err(Refusal::into_problem)?;
    Ok(json!({ "entity": entity.map(|entity| &entity.name), "generation": generation.0 }))
}

fn find<'a, O: Operate>(operator: &'a O, name: &str) -> Result<&'a Arc<Entity>, Problem> {
    let entities = operator.entities().map_err(Refusal::into_problem)?;
    entities.iter().find(|entity| entity.name == name).ok_or_else(|| {
        let known: Vec<String> = entities.iter().map(|entity| entity.name.clone()).collect();
        Problem::unknown_entity(name, &known)
    })
}

/// Reads a body that says that it is JSON: a page in an operator's browser can send other types to anywhere.
async fn read<T: DeserializeOwned>(
    request: &HeaderMap,
    body: impl Stream<Item = Result<impl Buf, warp::Error>>,
    limits: &Limits,
    wanted: &str,
) -> Result<T, Problem> {
    if !request.contains_key(CONTENT_TYPE) {
        return Err(Problem::unsupported_media_type("Content-Type must be application/json"));
    }
    batch::expect_json(request)?;
    let body = batch::collect(request, body, limits).await?;
    serde_json::from_slice(&body).map_err(|error| Problem::malformed_body(format!("expected {wanted}: {error}")))
}
