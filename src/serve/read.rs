//! `GET` and `HEAD /v1/{entity}/{key}`, of the whole value or with `?fields=` of parts of it.

use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use warp::http::header::{CACHE_CONTROL, CONTENT_TYPE, ETAG};
use warp::http::{HeaderMap, HeaderValue, Method, StatusCode, Uri};

use super::headers::{self, Provenance};
use super::problem::Problem;
use super::projection::Projection;
use super::shared::Api;
use super::{Reads, Response};
use crate::cache;
use crate::cache::answer::{Answer, Demand};
use crate::entity::{Entity, EntryKey};
use crate::key::{KeyError, MAX_KEY_BYTES};
use crate::metrics::Route;

/// How many headers a 200 has at most, apart from those that hyper adds.
const HEADERS: usize = 9;

/// What is read, and what of it is wanted.
struct Asked<'a> {
    entity: &'a Arc<Entity>,
    key: EntryKey,
    demand: Demand,
    projection: Option<Projection>,
}

/// Answers a read that L1 has, without waiting; `None` for whatever else may become of it.
///
/// The path is the request's, as it was sent: keys are percent-decoded once, by [`crate::key::Key::from_request`].
pub fn hit<R: Reads>(api: &Api<R>, method: &Method, uri: &Uri, request: &HeaderMap) -> Option<Response> {
    let started = Instant::now();
    let head = match *method {
        Method::GET => false,
        Method::HEAD => true,
        _ => return None,
    };
    let asked = ask(api, uri.path().strip_prefix("/v1/")?, uri.query(), request).ok()?;
    if asked.demand.fresh {
        return None;
    }
    let answer = api.reads.read_l1(asked.entity, &asked.key, &asked.demand)?;
    Some(api.finish(render(&asked, answer, request), head, started))
}

/// Answers a read that [`hit`] did not. `path` is what follows `/v1/`.
pub async fn read<R: Reads>(
    api: &Api<R>,
    path: &str,
    query: Option<&str>,
    head: bool,
    request: &HeaderMap,
) -> Response {
    let started = Instant::now();
    let response = match ask(api, path, query, request) {
        Err(problem) => problem.into_response(),
        Ok(asked) => match api.reads.read(asked.entity, asked.key.clone(), asked.demand).await {
            Ok(answer) => render(&asked, answer, request),
            Err(error) => Problem::unanswered(&error).into_response(),
        },
    };
    api.finish(response, head, started)
}

fn ask<'a, R: Reads>(
    api: &'a Api<R>,
    path: &str,
    query: Option<&str>,
    request: &HeaderMap,
) -> Result<Asked<'a>, Problem> {
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
    let projection = query.map_or(Ok(None), |query| Projection::of_query(query, entity))?;
    Ok(Asked { entity, key, demand, projection })
}

fn render(asked: &Asked, answer: Answer, request: &HeaderMap) -> Response {
    let provenance = Provenance::from(&answer);
    let mut response = match answer.value {
        None => Problem::absent(asked.entity, asked.key.key()).into_response(),
        Some(whole) => {
            let (value, hash) = match &asked.projection {
                None => (whole, answer.etag),
                Some(projection) => {
                    let part = projection.of_value(&whole);
                    let hash = cache::etag(Some(&part));
                    (part, hash)
                }
            };
            let mut response = Response::new(value);
            let headers = response.headers_mut();
            headers.reserve(HEADERS);
            let etag = headers::etag(hash);
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
    provenance.write(headers, &asked.demand);
    response
}

impl<R: Reads> Api<R> {
    fn finish(&self, response: Response, head: bool, started: Instant) -> Response {
        self.metrics.observe(Route::Read, response.status(), started.elapsed());
        if head { headers::without_body(response) } else { response }
    }
}
