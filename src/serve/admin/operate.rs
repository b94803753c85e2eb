//! What operators ask for: explain an entry, verify entries, make entries unservable.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::{Buf, Bytes};
use futures_util::Stream;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::value::RawValue;
use serde_json::{Value, json};
use warp::http::HeaderMap;
use warp::http::header::CONTENT_TYPE;

use super::super::problem::Problem;
use super::super::{Limits, batch};
use crate::entity::warming::WarmOrder;
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
    /// The request names no configured entity.
    UnknownEntity {
        /// What it names.
        name: String,
        /// Those there are.
        configured: Vec<String>,
    },
    /// It was begun.
    Failed(String),
    /// Something else is under way that it does not go together with.
    Conflict(String),
}

impl Refusal {
    pub(super) fn into_problem(self) -> Problem {
        match self {
            Refusal::Starting(detail) => Problem::not_now("starting", "Starting", detail),
            Refusal::NotLeading(detail) => Problem::not_now("not-leading", "Not leading", detail),
            Refusal::Malformed(detail) => Problem::malformed_body(detail),
            Refusal::UnknownEntity { name, configured } => Problem::unknown_entity(&name, &configured),
            Refusal::Conflict(detail) => Problem::conflict(detail),
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

/// What an operator wants to be warmed. What is left out is as it is configured.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Warm {
    /// Of which rows: a condition in SQL.
    pub condition: Option<String>,
    /// Which keys: a SELECT.
    pub keys: Option<String>,
    /// In which order.
    pub order: Option<WarmOrder>,
    /// How many at most.
    pub limit: Option<u64>,
    /// How many a second at most.
    pub rate: Option<u32>,
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

    /// Carries out a command of the form that applications write into the log; with `dry_run`, only counts what it would make
    /// unservable. Gives the answer as JSON, and whether it is done: else it is written, and may not be applied yet.
    fn invalidate(&self, command: &str, dry_run: bool) -> impl Future<Output = Result<(Bytes, bool), Refusal>> + Send;

    /// Compares entries with Postgres; gives the report as JSON.
    fn verify(&self, entity: &Arc<Entity>, verify: Verify) -> impl Future<Output = Result<Bytes, Refusal>> + Send;

    /// Explains an entry; gives the explanation as JSON.
    fn explain(&self, entity: &Arc<Entity>, key: &EntryKey) -> impl Future<Output = Result<Bytes, Refusal>> + Send;

    /// Events that were applied, and what they did to entries of an entity, or of all: from where an answer said on, or
    /// from now on. Waits for some, for some seconds; gives them as JSON.
    fn tap(&self, entity: Option<usize>, from: Option<&str>) -> impl Future<Output = Result<Bytes, Refusal>> + Send;
    /// Begins to warm an entity; gives the progress as JSON.
    fn warm(&self, entity: &Arc<Entity>, warm: Warm) -> impl Future<Output = Result<Bytes, Refusal>> + Send;

    /// Ends the warming of an entity; gives the progress as JSON.
    ///
    /// # Errors
    /// If it is not being warmed.
    fn cancel_warming(&self, entity: &Arc<Entity>) -> Result<Bytes, Refusal>;

    /// The progress of all warming as JSON: `{"jobs":[..]}`.
    ///
    /// # Errors
    /// [`Refusal::Starting`].
    fn warming(&self) -> Result<Bytes, Refusal>;
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

/// `GET /v1/tap`, with the parameters `entity` and `from`.
pub(super) async fn tap<O: Operate>(operator: &O, query: &str) -> Result<Bytes, Problem> {
    let (mut entity, mut from) = (None, None);
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        match pair.split_once('=') {
            Some(("entity", name)) => entity = Some(find(operator, name)?.id),
            Some(("from", next)) => from = Some(next),
            _ => return Err(Problem::malformed_query("the parameters are entity and from")),
        }
    }
    operator.tap(entity, from).await.map_err(|refusal| match refusal {
        Refusal::Malformed(detail) => Problem::malformed_query(&detail),
        other => other.into_problem(),
    })
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

/// `POST /v1/invalidate`: what is in the body beside `dry_run` is what an application would say.
pub(super) async fn invalidate<O: Operate>(
    operator: &O,
    request: &HeaderMap,
    body: impl Stream<Item = Result<impl Buf, warp::Error>>,
    limits: &Limits,
) -> Result<(Bytes, bool), Problem> {
    // As they are written: the scale of a number may matter.
    let mut body: BTreeMap<String, Box<RawValue>> = read(request, body, limits, "an object").await?;
    let dry_run = match body.remove("dry_run").as_deref().map(RawValue::get) {
        None | Some("false") => false,
        Some("true") => true,
        Some(_) => return Err(Problem::malformed_body("dry_run must be true or false")),
    };
    // A map of strings to JSON always serializes.
    let target = serde_json::to_string(&body).unwrap_or_default();
    let command = format!("{{\"invalidate\":{target}}}");
    operator.invalidate(&command, dry_run).await.map_err(Refusal::into_problem)
}

pub(super) fn find<'a, O: Operate>(operator: &'a O, name: &str) -> Result<&'a Arc<Entity>, Problem> {
    let entities = operator.entities().map_err(Refusal::into_problem)?;
    entities.iter().find(|entity| entity.name == name).ok_or_else(|| {
        let known: Vec<String> = entities.iter().map(|entity| entity.name.clone()).collect();
        Problem::unknown_entity(name, &known)
    })
}

/// Reads a body that says that it is JSON: a page in an operator's browser can send other types to anywhere.
pub(super) async fn read<T: DeserializeOwned>(
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
