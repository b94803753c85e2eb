//! A small HTTP client.

use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::{HeaderMap, Method, Request, StatusCode};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use serde_json::Value;
use tokio::time::timeout;

use super::wait::{WAIT_LIMIT, eventually};

/// A client for one listener, with kept-alive connections; clones share them.
#[derive(Debug, Clone)]
pub struct Http {
    base: String,
    client: Client<HttpConnector, Full<Bytes>>,
}

/// A whole response.
#[derive(Debug, Clone)]
pub struct Response {
    /// The status code.
    pub status: StatusCode,
    /// The header fields.
    pub headers: HeaderMap,
    /// The body.
    pub body: Bytes,
}

impl Http {
    /// A client for `address` (`127.0.0.1:1234`).
    pub fn new(address: &str) -> Self {
        // A connection that the server is about to end, idle for too long, is not taken for a request.
        let client = Client::builder(TokioExecutor::new()).pool_idle_timeout(Duration::from_millis(200)).build_http();
        Http { base: format!("http://{address}"), client }
    }

    /// `GET path`; panics when there is no response.
    pub async fn get(&self, path: &str) -> Response {
        self.get_with(path, &[]).await
    }

    /// `GET path` with header fields.
    pub async fn get_with(&self, path: &str, headers: &[(&str, &str)]) -> Response {
        self.send(Method::GET, path, headers, Bytes::new()).await.unwrap_or_else(|e| panic!("GET {path}: {e}"))
    }

    /// `HEAD path` with header fields.
    pub async fn head(&self, path: &str, headers: &[(&str, &str)]) -> Response {
        self.send(Method::HEAD, path, headers, Bytes::new()).await.unwrap_or_else(|e| panic!("HEAD {path}: {e}"))
    }

    /// `POST path` with a JSON body.
    pub async fn post(&self, path: &str, body: &Value, headers: &[(&str, &str)]) -> Response {
        let mut all = vec![("content-type", "application/json")];
        all.extend(headers);
        let body = Bytes::from(body.to_string());
        self.send(Method::POST, path, &all, body).await.unwrap_or_else(|e| panic!("POST {path}: {e}"))
    }

    /// Any request; an error when there is no whole response within [`WAIT_LIMIT`].
    pub async fn send(
        &self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: Bytes,
    ) -> Result<Response, String> {
        let mut request = Request::builder().method(method).uri(format!("{}{path}", self.base));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(Full::new(body)).map_err(|e| e.to_string())?;
        let exchange = async {
            // The client's own text is "client error (Connect)": the cause is what helps.
            let response =
                self.client.request(request).await.map_err(|e| format!("{e}: {:?}", std::error::Error::source(&e)))?;
            let (head, body) = response.into_parts();
            let body = body.collect().await.map_err(|e| e.to_string())?.to_bytes();
            Ok(Response { status: head.status, headers: head.headers, body })
        };
        timeout(WAIT_LIMIT, exchange).await.unwrap_or_else(|_| Err(format!("no response within {WAIT_LIMIT:?}")))
    }
}

impl Http {
    /// Reads until there is an answer: a limit that is short for what a test is about is short on a busy machine, too.
    pub async fn warm(&self, path: &str) -> Response {
        eventually("be answered", || async {
            let response = self.get(path).await;
            if response.status == 200 { Ok(response) } else { Err(format!("{response:?}")) }
        })
        .await
    }
}

impl Response {
    /// A header field's value; panics when it is missing or no text.
    #[track_caller]
    pub fn header(&self, name: &str) -> &str {
        self.find_header(name).unwrap_or_else(|| panic!("no header {name} in {self:?}"))
    }

    /// A header field's value, where there is one.
    pub fn find_header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).and_then(|value| value.to_str().ok())
    }

    /// The body as JSON.
    #[track_caller]
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|e| panic!("no JSON ({e}): {self:?}"))
    }

    /// The body as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// Panics unless the status is this one.
    #[track_caller]
    pub fn expect(self, status: u16) -> Self {
        assert_eq!(self.status.as_u16(), status, "{} {:?}", self.text(), self.headers);
        self
    }
}
