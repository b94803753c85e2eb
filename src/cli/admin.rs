//! A client for the admin listener of a running daemon.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use bytes::Bytes;
use clap::Args;
use http_body_util::{BodyExt, Full};
use hyper::{Method, Request, StatusCode};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use percent_encoding::{AsciiSet, CONTROLS, utf8_percent_encode};
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::failure::Failure;
use super::{Cli, load};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// The daemon itself waits for a minute at most before it says why it cannot.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(300);

/// What a URL's path must not hold as it is; `%` stays, since keys are spelled as in the URL of a read.
const PATH: &AsciiSet =
    &CONTROLS.add(b' ').add(b'"').add(b'#').add(b'<').add(b'>').add(b'?').add(b'`').add(b'{').add(b'}');

/// Which daemon is meant.
#[derive(Debug, Args)]
pub(super) struct Target {
    /// The daemon's admin listener (http://HOST:PORT), instead of admin.listen of the configuration.
    #[arg(long, value_name = "URL")]
    admin: Option<String>,
}

impl Target {
    /// A client for it; nothing is sent yet.
    pub(super) fn connect(&self, cli: &Cli) -> Result<Admin, Failure> {
        let base = match &self.admin {
            Some(url) => base(url)?,
            None => format!("http://{}", reachable(load(cli)?.admin.listen)?),
        };
        let mut connector = HttpConnector::new();
        connector.set_connect_timeout(Some(CONNECT_TIMEOUT));
        Ok(Admin { base, client: Client::builder(TokioExecutor::new()).build(connector) })
    }
}

fn base(url: &str) -> Result<String, Failure> {
    let bare = url.strip_prefix("http://").unwrap_or(url).trim_end_matches('/');
    let usage = || Failure::usage(format!("--admin {url}: not of the form http://HOST:PORT"));
    let authority: warp::http::uri::Authority = bare.parse().map_err(|_| usage())?;
    if bare.contains("://") || authority.host().is_empty() {
        return Err(usage());
    }
    Ok(format!("http://{authority}"))
}

/// Where a listener is reached from the same machine.
fn reachable(listen: SocketAddr) -> Result<SocketAddr, Failure> {
    if listen.port() == 0 {
        let what = "admin.listen has port 0, so the daemon took any free one: its log says which".to_owned();
        return Err(Failure::usage(what).or_remedy("give its address with --admin"));
    }
    let ip = match listen.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    Ok(SocketAddr::new(ip, listen.port()))
}

/// The admin listener of a daemon.
pub(super) struct Admin {
    base: String,
    client: Client<HttpConnector, Full<Bytes>>,
}

impl Admin {
    /// `GET path`, which is encoded as far as it must be.
    pub(super) async fn get(&self, path: &str) -> Result<Bytes, Failure> {
        self.send(Method::GET, &utf8_percent_encode(path, PATH).to_string(), None).await
    }

    /// `GET path?query`, as they are.
    pub(super) async fn query(&self, path: &str, query: &str) -> Result<Bytes, Failure> {
        self.send(Method::GET, &format!("{path}?{query}"), None).await
    }

    /// `POST path` with a JSON body.
    pub(super) async fn post(&self, path: &str, body: &Value) -> Result<Bytes, Failure> {
        self.send(Method::POST, path, Some(body)).await
    }

    /// Reads an answer.
    pub(super) fn parse<T: DeserializeOwned>(&self, body: &[u8]) -> Result<T, Failure> {
        serde_json::from_slice(body).map_err(|error| {
            let what = format!("{} answered in a form that this version does not know: {error}", self.base);
            Failure::unavailable(what, "is it a walcache of the same version?".to_owned())
        })
    }

    async fn send(&self, method: Method, path: &str, body: Option<&Value>) -> Result<Bytes, Failure> {
        let mut request = Request::builder().method(method).uri(format!("{}{path}", self.base));
        if body.is_some() {
            request = request.header("content-type", "application/json");
        }
        let body = Full::new(body.map(Value::to_string).unwrap_or_default().into());
        let request = request.body(body).map_err(|error| Failure::usage(format!("{path}: {error}")))?;
        let exchange = async {
            let response = self.client.request(request).await.map_err(|error| self.silent(&error))?;
            let (head, body) = response.into_parts();
            let body = body.collect().await.map_err(|error| self.silent(&error))?.to_bytes();
            Ok::<_, Failure>((head.status, body))
        };
        let late = |_| self.silent(&std::io::Error::other(format!("no answer within {ANSWER_TIMEOUT:?}")));
        let (status, body) = tokio::time::timeout(ANSWER_TIMEOUT, exchange).await.map_err(late)??;
        if status.is_success() { Ok(body) } else { Err(self.refused(status, &body)) }
    }

    fn silent(&self, error: &dyn std::error::Error) -> Failure {
        // The innermost cause is what helps: "connection refused".
        let mut cause = error;
        while let Some(inner) = cause.source() {
            cause = inner;
        }
        let what = format!("no daemon answers at {}: {cause}", self.base);
        Failure::unavailable(what, "is `walcache run` up there? --admin names another address".to_owned())
    }

    fn refused(&self, status: StatusCode, body: &[u8]) -> Failure {
        let problem: Option<Value> = serde_json::from_slice(body).ok();
        let detail = problem.as_ref().and_then(|p| p["detail"].as_str());
        let known =
            problem.as_ref().is_some_and(|p| p["type"].as_str().is_some_and(|t| t.starts_with("urn:walcache:")));
        let what = detail.map_or_else(|| format!("{} answered {status}", self.base), str::to_owned);
        match status {
            _ if !known => Failure::unavailable(what, "is it the admin listener of a walcache? see --admin".to_owned()),
            StatusCode::SERVICE_UNAVAILABLE => Failure::unavailable(
                what,
                format!("try again; {}/readyz and /v1/status say what is missing", self.base),
            ),
            _ => Failure::usage(what),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_of_daemons() {
        for (given, wanted) in [
            ("http://127.0.0.1:9090", "http://127.0.0.1:9090"),
            ("db.example:9090/", "http://db.example:9090"),
            ("[::1]:1", "http://[::1]:1"),
        ] {
            assert_eq!(base(given).unwrap(), wanted);
        }
        for bad in ["", "https://h:1", "http://", "h:1/path", "a b"] {
            assert!(base(bad).is_err(), "{bad}");
        }
        let at = |text: &str| reachable(text.parse().unwrap()).map(|a| a.to_string()).ok();
        assert_eq!(at("0.0.0.0:9").as_deref(), Some("127.0.0.1:9"));
        assert_eq!(at("[::]:9").as_deref(), Some("[::1]:9"));
        assert_eq!(at("10.0.0.1:9").as_deref(), Some("10.0.0.1:9"));
        assert_eq!(at("10.0.0.1:0"), None);
    }
}
