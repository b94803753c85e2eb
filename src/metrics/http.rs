//! Metrics of the HTTP API.

use std::sync::OnceLock;
use std::time::Duration;

use metrics::{Counter, Histogram, Unit, counter, describe_counter, describe_histogram, histogram};
use warp::http::StatusCode;

use super::label::Route;

const HTTP_REQUESTS: &str = "walcache_http_requests_total";
const HTTP_REQUEST_DURATION_SECONDS: &str = "walcache_http_request_duration_seconds";

const HTTP_BUCKETS: &[f64] = &[
    0.00001, 0.000025, 0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0,
    2.5, 5.0, 10.0,
];

/// What the histograms count by.
pub(super) const BUCKETS: &[(&str, &[f64])] = &[(HTTP_REQUEST_DURATION_SECONDS, HTTP_BUCKETS)];

pub(super) fn describe() {
    describe_counter!(HTTP_REQUESTS, "HTTP requests answered, by route and status code.");
    describe_histogram!(HTTP_REQUEST_DURATION_SECONDS, Unit::Seconds, "Time to answer an HTTP request, by route.");
}

/// The status codes that the API answers with.
const CODES: [u16; 11] = [200, 304, 400, 404, 405, 408, 413, 414, 415, 431, 503];

/// Metrics of the HTTP API. A handle is made when its first request is answered: most combinations never occur.
#[derive(Default)]
pub struct HttpMetrics {
    requests: [[OnceLock<Counter>; CODES.len()]; Route::ALL.len()],
    duration: [OnceLock<Histogram>; Route::ALL.len()],
}

impl HttpMetrics {
    /// Counts an answered request.
    pub fn observe(&self, route: Route, status: StatusCode, elapsed: Duration) {
        let label = Route::ALL[route as usize].1;
        let request = || counter!(HTTP_REQUESTS, "route" => label, "code" => status.as_str().to_owned());
        match CODES.iter().position(|code| *code == status.as_u16()) {
            Some(code) => self.requests[route as usize][code].get_or_init(request).increment(1),
            None => request().increment(1),
        }
        self.duration[route as usize]
            .get_or_init(|| histogram!(HTTP_REQUEST_DURATION_SECONDS, "route" => label))
            .record(elapsed.as_secs_f64());
    }
}
