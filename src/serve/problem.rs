//! Errors as `application/problem+json` (RFC 9457).

use std::time::Duration;

use bytes::Bytes;
use serde::ser::{Serialize, SerializeStruct, Serializer};
use warp::http::header::{ACCEPT, ALLOW, CACHE_CONTROL, CONTENT_TYPE, RETRY_AFTER};
use warp::http::{HeaderName, HeaderValue, StatusCode};

use super::Response;
use crate::cache::answer::ReadError;
use crate::entity::Entity;
use crate::key::{KeyError, MAX_KEY_BYTES};

/// How many entities a 404 names at most.
const NAMED_ENTITIES: usize = 20;

/// How many fields a 400 names at most.
const NAMED_FIELDS: usize = 100;

/// An error as the client sees it. Serializes to the members of a problem document.
#[derive(Debug, Clone)]
pub struct Problem {
    /// The status of the response, or of the item in a batch.
    pub status: StatusCode,
    kind: &'static str,
    title: &'static str,
    detail: String,
    /// A header that goes with this problem (`Allow`, `Retry-After`).
    header: Option<Box<(HeaderName, HeaderValue)>>,
}

impl Problem {
    fn new(status: StatusCode, kind: &'static str, title: &'static str, detail: impl Into<String>) -> Self {
        Problem { status, kind, title, detail: detail.into(), header: None }
    }

    fn retry_after(mut self, after: Duration) -> Self {
        self.header = Some(Box::new((RETRY_AFTER, HeaderValue::from(after.as_secs()))));
        self
    }

    /// The path is none of the API's.
    pub fn no_route(detail: impl Into<String>) -> Self {
        Problem::new(StatusCode::NOT_FOUND, "no-route", "No such resource", detail)
    }

    /// The path names no configured entity.
    pub fn unknown_entity(name: &str, configured: &[String]) -> Self {
        let name: String = name.chars().take(60).collect();
        let known = list(configured.iter().map(String::as_str), NAMED_ENTITIES);
        let detail = format!("there is no entity {name:?}; configured: {known}");
        Problem::new(StatusCode::NOT_FOUND, "unknown-entity", "Unknown entity", detail)
    }

    /// The row is known to be absent.
    pub fn absent(entity: &Entity, key: &str) -> Self {
        let key: String = key.chars().take(200).collect();
        let detail = format!("{} has no row with the key {key}", entity.name);
        Problem::new(StatusCode::NOT_FOUND, "absent", "No such row", detail)
    }

    /// The entity's rows cannot be read as it is configured. It takes somebody to mend the table or the configuration.
    pub fn unreadable(entity: &Entity, why: &str) -> Self {
        let detail = format!("{} cannot be read: {why}", entity.name);
        Problem::new(StatusCode::SERVICE_UNAVAILABLE, "entity-unavailable", "Entity unavailable", detail)
            .retry_after(Duration::from_secs(30))
    }

    /// The key is none of the entity's.
    pub fn key(error: &KeyError) -> Self {
        Problem::malformed_key(error.to_string())
    }

    /// The key cannot be one.
    pub fn malformed_key(detail: impl Into<String>) -> Self {
        Problem::new(StatusCode::BAD_REQUEST, "malformed-key", "Malformed key", detail)
    }

    /// The key in the path is longer than any key.
    pub fn uri_too_long() -> Self {
        let detail = format!("a key has at most {MAX_KEY_BYTES} bytes");
        Problem::new(StatusCode::URI_TOO_LONG, "uri-too-long", "Key too long", detail)
    }

    /// The wanted fields cannot be read.
    pub fn malformed_fields(detail: impl Into<String>) -> Self {
        Problem::new(StatusCode::BAD_REQUEST, "malformed-fields", "Malformed fields", detail)
    }

    /// No value of the entity has this field.
    pub fn unknown_field<'a>(entity: &Entity, field: &str, known: impl Iterator<Item = &'a str>) -> Self {
        let field: String = field.chars().take(60).collect();
        let known = list(known, NAMED_FIELDS);
        let detail = format!("{} has no field {field:?}; it has: {known}", entity.name);
        Problem::new(StatusCode::BAD_REQUEST, "unknown-field", "Unknown field", detail)
    }

    /// The query string of a read has a parameter that reads do not have.
    pub fn unknown_parameter(name: &str) -> Self {
        let name: String = name.chars().take(60).collect();
        let detail = format!("there is no parameter {name:?}; a read has fields=a,b, and nothing else");
        Problem::new(StatusCode::BAD_REQUEST, "unknown-parameter", "Unknown parameter", detail)
    }

    /// A batch has its parameters in its body.
    pub fn parameter_of_batch(query: &str) -> Self {
        let query: String = query.chars().take(60).collect();
        let detail = format!(
            "a batch has no parameters, but {query:?} is given; its fields go into its body: \"fields\":[\"a\",\"b\"]"
        );
        Problem::new(StatusCode::BAD_REQUEST, "unknown-parameter", "Unknown parameter", detail)
    }

    /// A request header has no valid value.
    pub fn malformed_header(detail: impl Into<String>) -> Self {
        Problem::new(StatusCode::BAD_REQUEST, "malformed-header", "Malformed header", detail)
    }

    /// The headers are longer than allowed.
    pub fn headers_too_large(limit: usize) -> Self {
        let detail = format!("the request's header fields may have {limit} bytes in total");
        let status = StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE;
        Problem::new(status, "headers-too-large", "Headers too large", detail)
    }

    /// The resource has other methods only.
    pub fn method_not_allowed(allowed: &'static str) -> Self {
        let detail = format!("this resource allows {allowed}");
        let mut problem =
            Problem::new(StatusCode::METHOD_NOT_ALLOWED, "method-not-allowed", "Method not allowed", detail);
        problem.header = Some(Box::new((ALLOW, HeaderValue::from_static(allowed))));
        problem
    }

    /// The query string of an operator's request cannot be read.
    pub fn malformed_query(detail: impl Into<String>) -> Self {
        Problem::new(StatusCode::BAD_REQUEST, "malformed-query", "Malformed query", detail)
    }

    /// The body is no batch request.
    pub fn malformed_body(detail: impl Into<String>) -> Self {
        Problem::new(StatusCode::BAD_REQUEST, "malformed-body", "Malformed body", detail)
    }

    /// The body is not declared as JSON.
    pub fn unsupported_media_type(detail: impl Into<String>) -> Self {
        let status = StatusCode::UNSUPPORTED_MEDIA_TYPE;
        let mut problem = Problem::new(status, "unsupported-media-type", "Unsupported media type", detail);
        // RFC 9110, section 12.5.1: in a 415 it says what a request may contain.
        problem.header = Some(Box::new((ACCEPT, HeaderValue::from_static("application/json"))));
        problem
    }

    /// The body is longer than allowed.
    pub fn body_too_large(limit: usize) -> Self {
        let detail = format!("a body may have {limit} bytes");
        Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "body-too-large", "Body too large", detail)
    }

    /// The batch has more keys than allowed.
    pub fn batch_too_large(found: usize, limit: usize) -> Self {
        let detail = format!("the batch has {found} keys, {limit} are allowed");
        Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "batch-too-large", "Batch too large", detail)
    }

    /// The body did not arrive in time.
    pub fn body_timeout(limit: Duration) -> Self {
        let detail = format!("the body did not arrive within {limit:?}");
        Problem::new(StatusCode::REQUEST_TIMEOUT, "body-timeout", "Body timeout", detail)
    }

    /// The read has no answer for now.
    pub fn unanswered(error: &ReadError) -> Self {
        let (kind, title, after) = match error {
            ReadError::SourceUnavailable => ("source-unavailable", "Database unavailable", 2),
            ReadError::SourceTimeout(_) | ReadError::Contended(_) => ("source-timeout", "Database timeout", 1),
            ReadError::Overloaded => ("overloaded", "Overloaded", 1),
            ReadError::TooStale { .. } => ("too-stale", "Too stale, and the database cannot be read", 2),
            ReadError::LsnAhead { .. } => ("lsn-ahead", "LSN ahead of the database", 1),
            // It takes somebody to grant a right or to mend the table.
            ReadError::Refused(_) => ("query-refused", "Query refused by the database", 30),
            // To mend the query, or the rows.
            ReadError::SeveralRows => ("several-rows", "More than one row", 30),
        };
        Problem::new(StatusCode::SERVICE_UNAVAILABLE, kind, title, error.to_string())
            .retry_after(Duration::from_secs(after))
    }

    /// The operator's request does not go together with what is under way.
    pub fn conflict(detail: impl Into<String>) -> Self {
        Problem::new(StatusCode::CONFLICT, "conflict", "Conflict", detail)
    }

    /// The operator's request cannot be carried out now.
    pub fn not_now(kind: &'static str, title: &'static str, detail: impl Into<String>) -> Self {
        Problem::new(StatusCode::SERVICE_UNAVAILABLE, kind, title, detail).retry_after(Duration::from_secs(2))
    }

    /// The response. It is not to be stored: whatever is wrong may be right the next time.
    pub fn into_response(self) -> Response {
        // A struct of strings and a number always serializes.
        let body = serde_json::to_vec(&self).unwrap_or_default();
        let mut response = Response::new(Bytes::from(body));
        *response.status_mut() = self.status;
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        if let Some((name, value)) = self.header.map(|header| *header) {
            headers.insert(name, value);
        }
        response
    }
}

/// Names in a row, `most` of them.
fn list<'a>(mut names: impl Iterator<Item = &'a str>, most: usize) -> String {
    let mut text = names.by_ref().take(most).collect::<Vec<_>>().join(", ");
    let more = names.count();
    if more > 0 {
        text.push_str(&format!(" and {more} more"));
    }
    text
}

impl Serialize for Problem {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut out = serializer.serialize_struct("Problem", 4)?;
        out.serialize_field("type", &format_args!("urn:walcache:problem:{}", self.kind))?;
        out.serialize_field("title", self.title)?;
        out.serialize_field("status", &self.status.as_u16())?;
        out.serialize_field("detail", &self.detail)?;
        out.end()
    }
}
