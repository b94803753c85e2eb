//! The source's URL, read as libpq reads it.

use std::path::PathBuf;

use percent_encoding::percent_decode_str;
use tokio_postgres::config::Host;

use crate::config::Secret;

/// How much TLS is wanted, with libpq's meanings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SslMode {
    /// None.
    Disable,
    /// If the server offers it; no certificate is checked.
    Prefer,
    /// Always; no certificate is checked.
    Require,
    /// Always, with a certificate of a known authority.
    VerifyCa,
    /// Always, with a certificate of a known authority for this very host.
    VerifyFull,
}

/// A URL that cannot be used. The text holds no password.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SourceUrlError {
    /// Another scheme, or none.
    #[error("must be a URL of the form postgres://user:password@host:port/database")]
    Scheme,
    /// A part that is needed is missing.
    #[error("must name a {0}: postgres://user:password@host:port/database")]
    Missing(&'static str),
    /// More than one host.
    #[error("must name one host: the primary, or an address that follows it")]
    SeveralHosts,
    /// `sslmode` with another value.
    #[error("sslmode must be disable, prefer, require, verify-ca or verify-full")]
    SslMode,
    /// What tokio-postgres says of it.
    #[error("not a valid connection URL: {0}")]
    Invalid(String),
}

/// The source's URL in its parts.
#[derive(Debug, Clone)]
pub struct SourceUrl {
    /// What tokio-postgres makes of it: hosts, user, password, database and options. TLS is decided by the two below.
    pub postgres: tokio_postgres::Config,
    /// How much TLS is wanted.
    pub ssl_mode: SslMode,
    /// The authorities to trust instead of the well-known ones, in PEM.
    pub ssl_root_cert: Option<PathBuf>,
}

impl SourceUrl {
    /// Reads a URL.
    ///
    /// # Errors
    /// [`SourceUrlError`], without the password.
    pub fn parse(url: &Secret) -> Result<SourceUrl, SourceUrlError> {
        let text = url.expose();
        if !text.starts_with("postgres://") && !text.starts_with("postgresql://") {
            return Err(SourceUrlError::Scheme);
        }
        // A question mark in the password is no query.
        let authority = text.find('@').unwrap_or(0);
        let (base, query) = match text[authority..].find('?') {
            Some(mark) => (&text[..authority + mark], &text[authority + mark + 1..]),
            None => (text, ""),
        };
        let mut ssl_mode = SslMode::Prefer;
        let mut ssl_root_cert = None;
        let mut rest = Vec::new();
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let value = percent_decode_str(value).decode_utf8_lossy();
            match name {
                "sslmode" => ssl_mode = parse_ssl_mode(&value)?,
                "sslrootcert" if value == "system" => ssl_root_cert = None,
                "sslrootcert" => ssl_root_cert = Some(PathBuf::from(value.into_owned())),
                _ => rest.push(pair),
            }
        }
        // As libpq does, for the sake of old configurations: an authority given is an authority checked.
        if ssl_mode == SslMode::Require && ssl_root_cert.is_some() {
            ssl_mode = SslMode::VerifyCa;
        }
        let stripped = if rest.is_empty() { base.to_owned() } else { format!("{base}?{}", rest.join("&")) };
        let mut postgres: tokio_postgres::Config = stripped.parse().map_err(|error| invalid(&error))?;
        postgres.ssl_mode(match ssl_mode {
            SslMode::Disable => tokio_postgres::config::SslMode::Disable,
            SslMode::Prefer => tokio_postgres::config::SslMode::Prefer,
            SslMode::Require | SslMode::VerifyCa | SslMode::VerifyFull => tokio_postgres::config::SslMode::Require,
        });
        let Some(user) = postgres.get_user().map(str::to_owned) else { return Err(SourceUrlError::Missing("user")) };
        if postgres.get_dbname().is_none_or(str::is_empty) {
            postgres.dbname(user);
        }
        match postgres.get_hosts().len() {
            0 => return Err(SourceUrlError::Missing("host")),
            1 => {}
            // The stream and the queries must reach one and the same server.
            _ => return Err(SourceUrlError::SeveralHosts),
        }
        Ok(SourceUrl { postgres, ssl_mode, ssl_root_cert })
    }

    /// The role.
    pub fn user(&self) -> &str {
        self.postgres.get_user().unwrap_or_default()
    }

    /// The password, if there is one.
    pub fn password(&self) -> Option<&[u8]> {
        self.postgres.get_password()
    }

    /// The database.
    pub fn dbname(&self) -> &str {
        self.postgres.get_dbname().unwrap_or_default()
    }

    /// The server, as host (or the directory of a Unix socket) and port.
    pub fn host(&self) -> (String, u16) {
        let host = match self.postgres.get_hosts().first() {
            Some(Host::Tcp(name)) => name.clone(),
            Some(Host::Unix(directory)) => directory.to_string_lossy().into_owned(),
            // A URL without a host was refused.
            None => String::new(),
        };
        (host, self.postgres.get_ports().first().copied().unwrap_or(5432))
    }
}

fn parse_ssl_mode(value: &str) -> Result<SslMode, SourceUrlError> {
    match value {
        "disable" => Ok(SslMode::Disable),
        "allow" | "prefer" => Ok(SslMode::Prefer),
        "require" => Ok(SslMode::Require),
        "verify-ca" => Ok(SslMode::VerifyCa),
        "verify-full" => Ok(SslMode::VerifyFull),
        _ => Err(SourceUrlError::SslMode),
    }
}

/// tokio-postgres names the option that it does not know, but repeats no value.
fn invalid(error: &tokio_postgres::Error) -> SourceUrlError {
    use std::error::Error;
    SourceUrlError::Invalid(error.source().map_or_else(|| error.to_string(), ToString::to_string))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(url: &str) -> Result<SourceUrl, SourceUrlError> {
        SourceUrl::parse(&Secret::from(url))
    }

    #[test]
    fn a_url_splits_into_what_each_connection_needs() {
        let url = parse("postgres://u:p%3Fw@h1:5433/shop?sslmode=verify-full&sslrootcert=%2Fetc%2Fca.pem").unwrap();
        assert_eq!((url.user(), url.password(), url.dbname()), ("u", Some(&b"p?w"[..]), "shop"));
        assert_eq!(url.host(), ("h1".to_owned(), 5433));
        assert_eq!((url.ssl_mode, url.ssl_root_cert), (SslMode::VerifyFull, Some("/etc/ca.pem".into())));
        let url = parse("postgresql://u:a?b@h").unwrap();
        assert_eq!((url.dbname(), url.host()), ("u", ("h".to_owned(), 5432)));
        assert_eq!(parse("postgres://u@%2Ftmp:5433/d").unwrap().host(), ("/tmp".to_owned(), 5433));
        assert_eq!(parse("postgres://u@h/d?sslmode=require&sslrootcert=a").unwrap().ssl_mode, SslMode::VerifyCa);
    }

    #[test]
    fn what_cannot_be_used_is_named_without_the_password() {
        for (url, wanted) in [
            ("mysql://u:secret@h/d", "must be a URL of the form"),
            ("host=h password=secret", "must be a URL of the form"),
            ("postgres://h/d", "must name a user"),
            ("postgres://u:secret@h1,h2/d", "must name one host"),
            ("postgres://u:secret@h/d?sslmode=on", "sslmode must be"),
            ("postgres://u:secret@h:port/d", "not a valid connection URL"),
            ("postgres://u:secret@h/d?sslcert=a", "unknown option `sslcert`"),
        ] {
            let text = parse(url).unwrap_err().to_string();
            assert!(text.contains(wanted) && !text.contains("secret"), "{url}: {text}");
        }
    }
}
