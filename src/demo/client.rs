//! The HTTP client of the demo's readers.

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::{HeaderMap, Request};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use serde::Deserialize;
use serde_json::json;
use serde_json::value::RawValue;

use super::error::DemoError;
use crate::lsn::Lsn;

/// A client for one listener; clones share its connections.
#[derive(Debug, Clone)]
pub struct Http {
    base: String,
    client: Client<HttpConnector, Full<Bytes>>,
}

/// A response.
#[derive(Debug)]
pub struct Reply {
    /// The status code.
    pub status: u16,
    /// The body.
    pub body: Bytes,
    /// `X-Cache`.
    pub cache: String,
    /// `X-Applied-LSN`.
    pub applied: Option<Lsn>,
    /// `X-Read-LSN`.
    pub read: Option<Lsn>,
}

/// An item of a batch's answer.
#[derive(Debug, Deserialize)]
pub struct Item {
    /// As a read of it alone would have.
    pub status: u16,
    /// The row, with status 200.
    pub value: Option<Box<RawValue>>,
}

#[derive(Deserialize)]
struct Items {
    items: Vec<Item>,
}

impl Http {
    /// For `127.0.0.1:port`.
    pub fn new(address: impl std::fmt::Display) -> Self {
        let mut connector = HttpConnector::new();
        connector.set_nodelay(true);
        Http { base: format!("http://{address}"), client: Client::builder(TokioExecutor::new()).build(connector) }
    }

    /// `GET path`, with `X-Min-LSN` where one is given.
    ///
    /// # Errors
    /// If there is no response.
    pub async fn get(&self, path: &str, min_lsn: Option<Lsn>) -> Result<Reply, DemoError> {
        self.send("GET", path, min_lsn, Bytes::new()).await
    }

    /// A row of an entity.
    ///
    /// # Errors
    /// As [`Http::get`].
    pub async fn row(&self, entity: &str, key: &str, min_lsn: Option<Lsn>) -> Result<Reply, DemoError> {
        self.get(&format!("/v1/{entity}/{key}"), min_lsn).await
    }

    /// Rows of an entity, in the order of the keys; `None` instead of them where the whole batch was refused.
    ///
    /// # Errors
    /// As [`Http::get`].
    pub async fn rows(
        &self,
        entity: &str,
        keys: &[String],
        min_lsn: Option<Lsn>,
    ) -> Result<(Reply, Option<Vec<Item>>), DemoError> {
        let body = json!({ "keys": keys }).to_string().into();
        let reply = self.send("POST", &format!("/v1/{entity}/batch"), min_lsn, body).await?;
        let items = (reply.status == 200).then(|| serde_json::from_slice::<Items>(&reply.body).ok()).flatten();
        Ok((reply, items.map(|items| items.items).filter(|items| items.len() == keys.len())))
    }

    async fn send(&self, method: &str, path: &str, min_lsn: Option<Lsn>, body: Bytes) -> Result<Reply, DemoError> {
        let mut request = Request::builder().method(method).uri(format!("{}{path}", self.base));
        if let Some(lsn) = min_lsn {
            request = request.header("x-min-lsn", lsn.to_string()).header("prefer", "wait=5000");
        }
        if !body.is_empty() {
            request = request.header("content-type", "application/json");
        }
        let failed = |error: &dyn std::error::Error| DemoError::Http(format!("{method} {path}: {error}"));
        let request = request.body(Full::new(body)).map_err(|e| failed(&e))?;
        let response = self.client.request(request).await.map_err(|e| failed(&e))?;
        let status = response.status().as_u16();
        let cache = response.headers().get("x-cache").and_then(|v| v.to_str().ok()).unwrap_or("none").to_owned();
        let (applied, read) = (lsn(response.headers(), "x-applied-lsn"), lsn(response.headers(), "x-read-lsn"));
        let body = response.into_body().collect().await.map_err(|e| failed(&e))?.to_bytes();
        Ok(Reply { status, body, cache, applied, read })
    }
}

fn lsn(headers: &HeaderMap, name: &str) -> Option<Lsn> {
    headers.get(name)?.to_str().ok()?.parse().ok()
}
