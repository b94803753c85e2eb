//! The routes of the `[http]` listener.

use std::convert::Infallible;
use std::future::Ready;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use futures_util::future::{BoxFuture, Either};
use http_body_util::Full;
use hyper::service::Service;
use hyper_util::service::TowerToHyperService;
use warp::http::{self, Method};
use warp::path::Tail;
use warp::{Filter, Rejection};

use super::problem::Problem;
pub use super::shared::Api;
use super::{Reads, Response, batch, headers, read};
use crate::metrics::Route;

impl<R: Reads> Api<R> {
    /// The answer to what is no read and no batch.
    fn refuse(&self, path: &str, method: &Method) -> Response {
        let started = Instant::now();
        let problem = match self.split(path).and_then(|(name, rest)| self.entity(name).map(|_| rest)) {
            Ok("batch") => Problem::method_not_allowed("GET, HEAD, POST"),
            Ok(_) => Problem::method_not_allowed("GET, HEAD"),
            Err(problem) => problem,
        };
        self.finish_other(problem, method, started)
    }

    fn finish_other(&self, problem: Problem, method: &Method, started: Instant) -> Response {
        let response = problem.into_response();
        self.metrics.observe(Route::Other, response.status(), started.elapsed());
        if method == Method::HEAD { headers::without_body(response) } else { response }
    }
}

/// The service of one connection.
pub fn service<R: Reads, I: RequestBody>(api: &Arc<Api<R>>) -> Hits<R, impl Routed<I> + use<R, I>> {
    Hits { api: api.clone(), routes: TowerToHyperService::new(warp::service(routes(api))) }
}

/// Answers what L1 has, and leaves everything else to the routes.
///
/// It stands in front of them because a hit costs so little: passing through warp, which boxes both bodies and copies
/// the headers, costs more than the lookup and the rendering of the answer together.
pub struct Hits<R, S> {
    api: Arc<Api<R>>,
    routes: S,
}

/// A hit's body, or the routes'.
type Body<B> = http_body_util::Either<Full<Bytes>, B>;

impl<R, S, I, B> Service<http::Request<I>> for Hits<R, S>
where
    R: Reads,
    S: Service<http::Request<I>, Response = http::Response<B>, Error = Infallible>,
    S::Future: Send + 'static,
{
    type Response = http::Response<Body<B>>;
    type Error = Infallible;
    type Future =
        Either<Ready<Result<Self::Response, Infallible>>, BoxFuture<'static, Result<Self::Response, Infallible>>>;

    fn call(&self, request: http::Request<I>) -> Self::Future {
        if let Some(response) = read::hit(&self.api, request.method(), request.uri(), request.headers()) {
            let response = response.map(|body| http_body_util::Either::Left(Full::new(body)));
            return Either::Left(std::future::ready(Ok(response)));
        }
        let response = self.routes.call(request);
        Either::Right(Box::pin(async move { Ok(response.await?.map(http_body_util::Either::Right)) }))
    }
}

/// A body that warp takes: hyper's, or a test's.
pub trait RequestBody: hyper::body::Body<Data: Send, Error: Into<BoxError>> + Send + Sync + 'static {}

impl<B: hyper::body::Body<Data: Send, Error: Into<BoxError>> + Send + Sync + 'static> RequestBody for B {}

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Routes as a service.
pub trait Routed<I>:
    Service<http::Request<I>, Response = warp::reply::Response, Error = Infallible, Future: Send + 'static> + Send + 'static
{
}

impl<I, S> Routed<I> for S where
    S: Service<http::Request<I>, Response = warp::reply::Response, Error = Infallible, Future: Send + 'static>
        + Send
        + 'static
{
}

/// A filter that answers every request.
pub trait Routes: Filter<Extract = (Response,), Error = Infallible> + Clone + Send + Sync + 'static {}

impl<F> Routes for F where F: Filter<Extract = (Response,), Error = Infallible> + Clone + Send + Sync + 'static {}

fn routes<R: Reads>(api: &Arc<Api<R>>) -> impl Routes + use<R> {
    let read = {
        let api = api.clone();
        v1().and(reading()).and(query()).and(warp::header::headers_cloned()).then(
            move |path: Tail, head, query: Option<String>, request| {
                let api = Arc::clone(&api);
                async move { read::read(&api, path.as_str(), query.as_deref(), head, &request).await }
            },
        )
    };
    let batch = {
        let api = api.clone();
        v1().and(warp::post()).and(query()).and(warp::header::headers_cloned()).and(warp::body::stream()).then(
            move |path: Tail, query: Option<String>, request, body| {
                let api = Arc::clone(&api);
                async move { batch::batch(&api, (path.as_str(), query.as_deref()), request, body).await }
            },
        )
    };
    let refuse = {
        let api = api.clone();
        v1().and(warp::method()).map(move |path: Tail, method: Method| api.refuse(path.as_str(), &method))
    };
    let api = api.clone();
    let unknown = warp::method().map(move |method: Method| {
        let detail = "the API has GET /v1/{entity}/{key} and POST /v1/{entity}/batch";
        api.finish_other(Problem::no_route(detail), &method, Instant::now())
    });
    read.or(batch).unify().or(refuse).unify().or(unknown).unify()
}

/// Passes GET as `false` and HEAD as `true`.
pub(super) fn reading() -> impl Filter<Extract = (bool,), Error = Rejection> + Copy {
    warp::method().and_then(|method: Method| {
        std::future::ready(match method {
            Method::GET => Ok(false),
            Method::HEAD => Ok(true),
            _ => Err(warp::reject()),
        })
    })
}

/// The query string, raw, if there is one.
fn query() -> impl Filter<Extract = (Option<String>,), Error = Infallible> + Copy {
    warp::query::raw().map(Some).or(warp::any().map(|| None)).unify()
}

/// What follows `/v1/`, raw: `path::param` would take the empty key for none.
///
/// `path::tail` panics on a target without a path (`CONNECT host:port`), but such a target has no segment `v1`, so it
/// never gets there.
fn v1() -> impl Filter<Extract = (Tail,), Error = Rejection> + Copy {
    warp::path("v1").and(warp::path::tail())
}
