//! `GET` and `POST /v1/warm`.

use std::sync::Arc;

use bytes::{Buf, Bytes};
use futures_util::Stream;
use serde::Deserialize;
use warp::http::HeaderMap;

use super::super::Limits;
use super::super::problem::Problem;
use super::operate::{Operate, Refusal, Warm, find, read};
use crate::entity::Entity;
use crate::entity::warming::{MAX_RATE, WarmOrder};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Body {
    entity: String,
    #[serde(rename = "where")]
    condition: Option<String>,
    keys: Option<String>,
    order: Option<WarmOrder>,
    limit: Option<u64>,
    rate: Option<u32>,
    #[serde(default)]
    cancel: bool,
}

/// `POST /v1/warm`.
pub(super) async fn warm<O: Operate>(
    operator: &O,
    request: &HeaderMap,
    body: impl Stream<Item = Result<impl Buf, warp::Error>>,
    limits: &Limits,
) -> Result<Bytes, Problem> {
    let wanted = "{\"entity\":..}, with \"where\" or \"keys\", \"order\", \"limit\", \"rate\"; or with \"cancel\":true";
    let body: Body = read(request, body, limits, wanted).await?;
    let entity: &Arc<Entity> = find(operator, &body.entity)?;
    let Body { condition, keys, order, limit, rate, cancel, .. } = body;
    if cancel {
        return operator.cancel_warming(entity).map_err(Refusal::into_problem);
    }
    let malformed = |why: &str| Err(Problem::malformed_body(why));
    if condition.is_some() && keys.is_some() {
        return malformed("where and keys do not go together: put the condition into the query");
    }
    if limit == Some(0) {
        return malformed("limit must be at least 1");
    }
    if rate.is_some_and(|rate| !(1..=MAX_RATE).contains(&rate)) {
        return malformed(&format!("rate must be from 1 to {MAX_RATE}"));
    }
    if condition.iter().chain(&keys).any(|sql| sql.trim().is_empty()) {
        return malformed("where and keys are SQL: leave out what is empty");
    }
    if condition.iter().chain(&keys).any(|sql| sql.contains('\0')) {
        return malformed("where and keys are SQL, which has no NUL characters");
    }
    let warm = Warm { condition, keys, order, limit, rate };
    operator.warm(entity, warm).await.map_err(Refusal::into_problem)
}
