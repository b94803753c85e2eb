//! `GET` and `HEAD /v1/{entity}/{key}`.

use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use warp::http::header::{CACHE_CONTROL, CONTENT_TYPE, ETAG};
use warp::http::{HeaderMap, HeaderValue, Method, StatusCode};

use super::api::Api;
use super::headers::{self, Provenance};
use super::problem::Problem;
use super::{Reads, Response};
use crate::cache::answer::{Answer, Demand};
use crate::entity::{Entity, EntryKey};
use crate::key::{KeyError, MAX_KEY_BYTES};
use crate::metrics::Route;

/// How many headers a 200 has at most, apart from those that hyper adds.
const HEADERS: usize = 9;

/// Answers a read that L1 has, without waiting; `None` for whatever else may become of it.
///
/// `path` is the request's, as it was sent: keys are percent-decoded once, by [`crate::key::Key::from_request`].
pub fn hit<R: Reads>(api: &Api<R>, method: &Method, path: &str, request: &HeaderMap) -> Option<Response> {
    let started = Instant::now();
    let head = match *method {
        Method::GET => false,
        Method::HEAD => true,
        _ => return None,
    };
    let (entity, key, demand) = ask(api, path.strip_prefix("/v1/")?, request).ok()?;
    if demand.fresh {
        return None;
    }
    let answer = api.reads.read_l1(entity, &key, &demand)?;
    Some(api.finish(render(entity, &key, answer, &demand, request), head, started))
}

/// Answers a read that [`hit`] did not. `path` is what follows `/v1/`.
pub async fn read<R: Reads>(api: &Api<R>, path: &str, head: bool, request: &HeaderMap) -> Response {
    let started = Instant::now();
    let response = match ask(api, path, request) {
        Err(problem) => problem.into_response(),
        Ok((entity, key, demand)) => match api.reads.read(entity, key.clone(), demand).await {
            Ok(answer) => render(entity, &key, answer, &demand, request),
            Err(error) => Problem::unanswered(&error).into_response(),
        },
    };
    api.finish(response, head, started)
}

fn ask<'a, R: Reads>(
    api: &'a Api<R>,
    path: &str,
    request: &HeaderMap,
) -> Result<(&'a Arc<Entity>, EntryKey, Demand), Problem> {
    let demand = headers::demand(request)?;
    let (name, key) = api.split(path)?;
    let entity = api.entity(name)?;
    if let Some(why) = entity.unreadable() {
        return Err(Problem::unreadable(entity, &why));
    }
    if key.contains('/') {
        return Err(Problem::malformed_key("a slash within a key is written %2F"));
    }
    if key.len() > 3 * MAX_KEY_BYTES {
        return Err(Problem::uri_too_long());
    }
    let key = entity.key(key).map_err(|error| match error {
        KeyError::TooLong => Problem::uri_too_long(),
        other => Problem::key(&other),
    })?;
    Ok((entity, key, demand))
}

fn render(entity: &Entity, key: &EntryKey, answer: Answer, demand: &Demand, request: &HeaderMap) -> Response {
    let provenance = Provenance::from(&answer);
    let mut response = match answer.value {
        None => Problem::absent(entity, key.key()).into_response(),
        Some(value) => {
            let mut response = Response::new(value);
            let headers = response.headers_mut();
            headers.reserve(HEADERS);
            let etag = headers::etag(answer.etag);
            let unchanged = headers::names_etag(request, &etag);
            headers.insert(ETAG, etag);
            if unchanged {
                *response.status_mut() = StatusCode::NOT_MODIFIED;
                *response.body_mut() = Bytes::new();
            } else {
                headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
            }
            response
        }
    };
    let headers = response.headers_mut();
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("private, no-cache"));
    provenance.write(headers, demand);
    response
}

impl<R: Reads> Api<R> {
    fn finish(&self, response: Response, head: bool, started: Instant) -> Response {
        self.metrics.observe(Route::Read, response.status(), started.elapsed());
        if head { headers::without_body(response) } else { response }
    }
}
