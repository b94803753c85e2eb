//! `POST /v1/{entity}/batch`.

use std::borrow::Cow;
use std::io::Write;
use std::pin::pin;
use std::time::Instant;

use bytes::{Buf, Bytes};
use futures_util::{Stream, StreamExt};
use serde::Deserialize;
use serde_json::value::RawValue;
use warp::http::header::{CACHE_CONTROL, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE};
use warp::http::{HeaderMap, HeaderValue};

use super::headers::{self, Provenance};
use super::problem::Problem;
use super::projection::Projection;
use super::shared::Api;
use super::{Limits, Reads, Response};
use crate::entity::{Entity, EntryKey};
use crate::metrics::Route;

/// The body of a batch request. Keys stay as they were sent, since each item of the answer repeats its own.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Batch<'a> {
    #[serde(borrow)]
    keys: Vec<&'a RawValue>,
    /// The members that are wanted of each value; all of them, if the request names none.
    fields: Option<Vec<String>>,
}

/// Answers a batch. `path` is what follows `/v1/`.
pub async fn batch<R: Reads>(
    api: &Api<R>,
    target: (&str, Option<&str>),
    request: HeaderMap,
    body: impl Stream<Item = Result<impl Buf, warp::Error>>,
) -> Response {
    let started = Instant::now();
    let answered = answer(api, target, &request, body).await;
    let response = answered.unwrap_or_else(Problem::into_response);
    api.metrics.observe(Route::Batch, response.status(), started.elapsed());
    response
}

async fn answer<R: Reads>(
    api: &Api<R>,
    (path, query): (&str, Option<&str>),
    request: &HeaderMap,
    body: impl Stream<Item = Result<impl Buf, warp::Error>>,
) -> Result<Response, Problem> {
    let demand = headers::demand(request)?;
    let (name, resource) = api.split(path)?;
    let entity = api.entity(name)?;
    if resource != "batch" {
        return Err(Problem::method_not_allowed("GET, HEAD"));
    }
    if let Some(why) = entity.unreadable() {
        return Err(Problem::unreadable(entity, &why));
    }
    if let Some(query) = query.filter(|query| !query.is_empty()) {
        return Err(Problem::parameter_of_batch(query));
    }
    expect_json(request)?;
    let body = collect(request, body, &api.limits).await?;
    let batch: Batch = serde_json::from_slice(&body)
        .map_err(|error| Problem::malformed_body(format!("expected {{\"keys\":[...]}}: {error}")))?;
    if batch.keys.len() > api.limits.max_batch {
        return Err(Problem::batch_too_large(batch.keys.len(), api.limits.max_batch));
    }
    let projection = batch.fields.map(|fields| Projection::of(fields, entity)).transpose()?;

    let mut keys = Vec::with_capacity(batch.keys.len());
    // Each item is either refused here or takes the next answer.
    let items: Vec<(&RawValue, Option<Problem>)> = batch
        .keys
        .into_iter()
        .map(|raw| match entry_key(entity, raw) {
            Ok(key) => {
                keys.push(key);
                (raw, None)
            }
            Err(problem) => (raw, Some(problem)),
        })
        .collect();
    let answers = if keys.is_empty() { Vec::new() } else { api.reads.read_many(entity, keys, demand).await };

    let values: usize = answers.iter().flatten().filter_map(|answer| answer.value.as_ref()).map(Bytes::len).sum();
    let mut out = Vec::with_capacity(values + body.len() + 64 * items.len() + 16);
    let mut provenance: Option<Provenance> = None;
    let mut answers = answers.into_iter();
    out.extend_from_slice(b"{\"items\":[");
    for (i, (raw, refused)) in items.into_iter().enumerate() {
        if i > 0 {
            out.push(b',');
        }
        out.extend_from_slice(b"{\"key\":");
        out.extend_from_slice(raw.get().as_bytes());
        let problem = match refused {
            Some(problem) => problem,
            // Never short of answers: there is one for each key that was not refused.
            None => match answers.next() {
                Some(Ok(answer)) => {
                    let this = Provenance::from(&answer);
                    provenance = Some(provenance.map_or(this, |others| others.and(this)));
                    match answer.value {
                        Some(whole) => {
                            let value = match &projection {
                                None => whole,
                                Some(projection) => projection.of_value(&whole),
                            };
                            out.extend_from_slice(b",\"status\":200,\"value\":");
                            out.extend_from_slice(&value);
                            out.push(b'}');
                            continue;
                        }
                        None => Problem::absent(entity, &key_text(raw).unwrap_or_else(|| raw.get().into())),
                    }
                }
                Some(Err(error)) => Problem::unanswered(&error),
                None => Problem::unanswered(&crate::cache::answer::ReadError::Overloaded),
            },
        };
        // Writing to memory cannot fail, and a problem always serializes.
        let _ = write!(out, ",\"status\":{},\"problem\":", problem.status.as_u16());
        let _ = serde_json::to_writer(&mut out, &problem);
        out.push(b'}');
    }
    out.extend_from_slice(b"]}");

    let mut response = Response::new(Bytes::from(out));
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("private, no-cache"));
    if let Some(provenance) = provenance {
        provenance.write(headers, &demand);
    }
    Ok(response)
}

fn entry_key(entity: &Entity, raw: &RawValue) -> Result<EntryKey, Problem> {
    let malformed = || {
        let form = "a string in the form of a URL, a JSON integer, or an array of the key columns' values";
        Problem::malformed_key(format!("a key in a batch is {form}"))
    };
    let key = match raw.get().starts_with('[') {
        true => entity.key_of(&parts(raw).ok_or_else(malformed)?),
        false => entity.key(&key_text(raw).ok_or_else(malformed)?),
    };
    key.map_err(|error| Problem::key(&error))
}

/// The values of a key's columns, one by one, as they are.
fn parts(raw: &RawValue) -> Option<Vec<Cow<'_, str>>> {
    let values: Vec<&RawValue> = serde_json::from_str(raw.get()).ok()?;
    values.into_iter().map(part).collect()
}

/// The text of a string, number, true or false. A number stays as it is written: its scale may matter.
fn part(value: &RawValue) -> Option<Cow<'_, str>> {
    match value.get().as_bytes() {
        [b'"', ..] => key_text(value),
        [b'-' | b'0'..=b'9' | b't' | b'f', ..] => Some(value.get().into()),
        _ => None,
    }
}

/// A string's text, or an integer's digits.
fn key_text(raw: &RawValue) -> Option<Cow<'_, str>> {
    let text = raw.get();
    if let Some(plain) = text.strip_prefix('"').and_then(|rest| rest.strip_suffix('"'))
        && !plain.contains('\\')
    {
        return Some(plain.into());
    }
    let digits = text.strip_prefix('-').unwrap_or(text);
    if digits.bytes().all(|b| b.is_ascii_digit()) {
        return Some(text.into());
    }
    serde_json::from_str::<String>(text).ok().map(Cow::from)
}

/// A body without a type is taken for JSON; anything else must say that it is.
pub(super) fn expect_json(request: &HeaderMap) -> Result<(), Problem> {
    if let Some(coding) = request.get(CONTENT_ENCODING)
        && !coding.as_bytes().eq_ignore_ascii_case(b"identity")
    {
        return Err(Problem::unsupported_media_type("the body must not be compressed (Content-Encoding)"));
    }
    let Some(value) = request.get(CONTENT_TYPE) else { return Ok(()) };
    let essence = value.as_bytes().split(|b| *b == b';').next().unwrap_or_default().trim_ascii();
    if essence.eq_ignore_ascii_case(b"application/json") {
        return Ok(());
    }
    let sent: String = String::from_utf8_lossy(value.as_bytes()).chars().take(100).collect();
    Err(Problem::unsupported_media_type(format!("Content-Type must be application/json, not {sent:?}")))
}

/// Reads the body, but never more of it than is allowed, nor for longer.
pub(super) async fn collect(
    request: &HeaderMap,
    body: impl Stream<Item = Result<impl Buf, warp::Error>>,
    limits: &Limits,
) -> Result<Vec<u8>, Problem> {
    let declared = request.get(CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
    let max = limits.max_body;
    if declared.is_some_and(|length| length > max as u64) {
        return Err(Problem::body_too_large(max));
    }
    let read = async {
        let mut body = pin!(body);
        let mut out = Vec::new();
        while let Some(piece) = body.next().await {
            let mut piece = piece
                .map_err(|error| Problem::malformed_body(format!("the body could not be read to its end: {error}")))?;
            if out.len() + piece.remaining() > max {
                return Err(Problem::body_too_large(max));
            }
            while piece.has_remaining() {
                let chunk = piece.chunk();
                out.extend_from_slice(chunk);
                let n = chunk.len();
                piece.advance(n);
            }
        }
        Ok(out)
    };
    let limit = limits.header_timeout;
    tokio::time::timeout(limit, read).await.unwrap_or_else(|_| Err(Problem::body_timeout(limit)))
}
