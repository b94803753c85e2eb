//! The routes of the `[admin]` listener.

use std::sync::Arc;

use bytes::Bytes;
use hyper_util::service::TowerToHyperService;
use serde_json::json;
use warp::Filter;
use warp::http::header::{CACHE_CONTROL, CONTENT_TYPE};
use warp::http::{HeaderValue, Method, StatusCode};

use super::api::{RequestBody, Routed, Routes, reading};
use super::problem::Problem;
use super::{Response, headers};

/// What the daemon says of itself.
pub trait Health: Send + Sync + 'static {
    /// Whether reads can be served.
    ///
    /// # Errors
    /// The reasons why not, each a sentence without secrets.
    fn ready(&self) -> Result<(), Vec<String>>;

    /// The status document.
    fn status(&self) -> serde_json::Value;

    /// All metrics in Prometheus' text format.
    fn metrics(&self) -> String;
}

/// `/livez`, `/readyz`, `/metrics` and `/v1/status`, as the service of one connection.
pub fn service<H: Health, I: RequestBody>(health: &Arc<H>) -> impl Routed<I> + use<H, I> {
    TowerToHyperService::new(warp::service(routes(health)))
}

fn routes<H: Health>(health: &Arc<H>) -> impl Routes + use<H> {
    let live = warp::path!("livez").map(|| plain(StatusCode::OK, "text/plain; charset=utf-8", "ok\n"));
    let ready = {
        let health = health.clone();
        warp::path!("readyz").map(move || match health.ready() {
            Ok(()) => document(StatusCode::OK, &json!({ "ready": true })),
            Err(reasons) => document(StatusCode::SERVICE_UNAVAILABLE, &json!({ "ready": false, "reasons": reasons })),
        })
    };
    let metrics = {
        let health = health.clone();
        warp::path!("metrics")
            .map(move || plain(StatusCode::OK, "text/plain; version=0.0.4; charset=utf-8", health.metrics()))
    };
    let status = {
        let health = health.clone();
        warp::path!("v1" / "status").map(move || document(StatusCode::OK, &health.status()))
    };

    let known = live.or(ready).unify().or(metrics).unify().or(status).unify();
    let get =
        reading().and(known).map(|head: bool, response| if head { headers::without_body(response) } else { response });
    let other_method = warp::path!("livez")
        .or(warp::path!("readyz"))
        .unify()
        .or(warp::path!("metrics"))
        .unify()
        .or(warp::path!("v1" / "status"))
        .unify()
        .map(|| Problem::method_not_allowed("GET, HEAD").into_response());
    let unknown = warp::method().map(|method: Method| {
        let detail = "the admin listener has /livez, /readyz, /metrics and /v1/status";
        let response = Problem::no_route(detail).into_response();
        if method == Method::HEAD { headers::without_body(response) } else { response }
    });
    get.or(other_method).unify().or(unknown).unify()
}

fn document(status: StatusCode, value: &serde_json::Value) -> Response {
    plain(status, "application/json", value.to_string())
}

fn plain(status: StatusCode, content_type: &'static str, body: impl Into<Bytes>) -> Response {
    let mut response = Response::new(body.into());
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}
