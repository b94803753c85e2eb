//! The routes of the `[admin]` listener.

mod operate;
mod warm;

use std::sync::Arc;

use bytes::Bytes;
use hyper_util::service::TowerToHyperService;
use serde_json::json;
use warp::http::header::{CACHE_CONTROL, CONTENT_TYPE};
use warp::http::{HeaderMap, HeaderValue, Method, StatusCode};
use warp::path::Tail;
use warp::{Filter, Rejection};

use super::api::{RequestBody, Routed, Routes, reading};
use super::problem::Problem;
use super::{Limits, Response, headers};

pub use operate::{Operate, Refusal, Verify, VerifyScope, Warm};

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

/// What the routes share.
pub struct Admin<H, O> {
    health: Arc<H>,
    operator: Arc<O>,
    limits: Limits,
}

impl<H: Health, O: Operate> Admin<H, O> {
    /// Routes to these.
    pub fn new(health: Arc<H>, operator: Arc<O>, limits: Limits) -> Arc<Self> {
        Arc::new(Admin { health, operator, limits })
    }
}

/// The paths that are read and those that are posted to, for whoever asks otherwise.
const ROUTES: &str = "the admin listener has GET /livez, /readyz, /metrics, /v1/status, /v1/tap, /v1/warm and \
                      /v1/explain/{entity}/{key}, and POST /v1/verify, /v1/resync, /v1/invalidate and /v1/warm";

/// All of [`ROUTES`], as the service of one connection.
pub fn service<H: Health, O: Operate, I: RequestBody>(admin: &Arc<Admin<H, O>>) -> impl Routed<I> + use<H, O, I> {
    TowerToHyperService::new(warp::service(routes(admin)))
}

fn routes<H: Health, O: Operate>(admin: &Arc<Admin<H, O>>) -> impl Routes + use<H, O> {
    let asked = explained(&admin.operator).or(tapped(&admin.operator)).unify().or(warming(&admin.operator)).unify();
    let told = told(&admin.health).or(asked).unify();
    let get =
        reading().and(told).map(|head: bool, response| if head { headers::without_body(response) } else { response });
    let post = posted(admin);
    let path = warp::path::full();
    let other = warp::method().and(path).map(|method: Method, path: warp::path::FullPath| {
        let response = match path.as_str() {
            "/livez" | "/readyz" | "/metrics" | "/v1/status" | "/v1/tap" => Problem::method_not_allowed("GET, HEAD"),
            path if path.starts_with("/v1/explain/") => Problem::method_not_allowed("GET, HEAD"),
            "/v1/verify" | "/v1/resync" | "/v1/invalidate" => Problem::method_not_allowed("POST"),
            "/v1/warm" => Problem::method_not_allowed("GET, HEAD, POST"),
            _ => Problem::no_route(ROUTES),
        }
        .into_response();
        if method == Method::HEAD { headers::without_body(response) } else { response }
    });
    get.or(post).unify().or(other).unify()
}

/// What is told at once.
fn told<H: Health>(health: &Arc<H>) -> impl Filter<Extract = (Response,), Error = Rejection> + Clone + use<H> {
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
    live.or(ready).unify().or(metrics).unify().or(status).unify()
}

fn explained<O: Operate>(operator: &Arc<O>) -> impl Filter<Extract = (Response,), Error = Rejection> + Clone + use<O> {
    let operator = operator.clone();
    warp::path("v1").and(warp::path("explain")).and(warp::path::tail()).then(move |path: Tail| {
        let operator = operator.clone();
        async move {
            let explained = operate::explain(&*operator, path.as_str()).await;
            explained.map_or_else(Problem::into_response, |body| plain(StatusCode::OK, "application/json", body))
        }
    })
}

fn tapped<O: Operate>(operator: &Arc<O>) -> impl Filter<Extract = (Response,), Error = Rejection> + Clone + use<O> {
    let operator = operator.clone();
    // A filter on the query refuses requests without one.
    let query = warp::query::raw().or(warp::any().map(String::new)).unify();
    warp::path!("v1" / "tap").and(query).then(move |query: String| {
        let operator = operator.clone();
        async move {
            let events = operate::tap(&*operator, &query).await;
            events.map_or_else(Problem::into_response, |body| plain(StatusCode::OK, "application/json", body))
        }
    })
}

fn warming<O: Operate>(operator: &Arc<O>) -> impl Filter<Extract = (Response,), Error = Rejection> + Clone + use<O> {
    let operator = operator.clone();
    warp::path!("v1" / "warm").map(move || match operator.warming() {
        Ok(body) => plain(StatusCode::OK, "application/json", body),
        Err(refusal) => refusal.into_problem().into_response(),
    })
}

fn posted<H: Health, O: Operate>(
    admin: &Arc<Admin<H, O>>,
) -> impl Filter<Extract = (Response,), Error = Rejection> + Clone + use<H, O> {
    let sent = || warp::post().and(warp::header::headers_cloned()).and(warp::body::stream());
    let verify = {
        let admin = admin.clone();
        warp::path!("v1" / "verify").and(sent()).then(move |request: HeaderMap, body| {
            let admin = admin.clone();
            async move {
                let report = operate::verify(&*admin.operator, &request, body, &admin.limits).await;
                report.map_or_else(Problem::into_response, |body| plain(StatusCode::OK, "application/json", body))
            }
        })
    };
    let resync = {
        let admin = admin.clone();
        warp::path!("v1" / "resync").and(sent()).then(move |request: HeaderMap, body| {
            let admin = admin.clone();
            async move {
                let done = operate::resync(&*admin.operator, &request, body, &admin.limits).await;
                done.map_or_else(Problem::into_response, |body| document(StatusCode::OK, &body))
            }
        })
    };
    let invalidate = {
        let admin = admin.clone();
        warp::path!("v1" / "invalidate").and(sent()).then(move |request: HeaderMap, body| {
            let admin = admin.clone();
            async move {
                let done = operate::invalidate(&*admin.operator, &request, body, &admin.limits).await;
                done.map_or_else(Problem::into_response, |(body, done)| {
                    let status = if done { StatusCode::OK } else { StatusCode::ACCEPTED };
                    plain(status, "application/json", body)
                })
            }
        })
    };
    let warm = {
        let admin = admin.clone();
        warp::path!("v1" / "warm").and(sent()).then(move |request: HeaderMap, body| {
            let admin = admin.clone();
            async move {
                let begun = warm::warm(&*admin.operator, &request, body, &admin.limits).await;
                begun.map_or_else(Problem::into_response, |body| plain(StatusCode::OK, "application/json", body))
            }
        })
    };
    verify.or(resync).unify().or(invalidate).unify().or(warm).unify()
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
