//! What can go wrong with the source, and whether to try again or to call an operator.

use std::error::Error;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use deadpool_postgres::PoolError;

use super::url::SourceUrlError;

/// Exit code where the source cannot be reached: `EX_UNAVAILABLE`.
pub const EXIT_UNAVAILABLE: u8 = 69;
/// Exit code where a right or a valid password is missing: `EX_NOPERM`.
pub const EXIT_PERMISSION: u8 = 77;
/// Exit code where the configuration, of walcache or of the server, must be changed: `EX_CONFIG`.
pub const EXIT_CONFIG: u8 = 78;

/// A failure of a connection or a query. The text holds no password.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// The URL cannot be used.
    #[error("source.url: {0}")]
    Url(#[from] SourceUrlError),
    /// The file of `sslrootcert` cannot be used.
    #[error("source.url: sslrootcert {}: {why}", path.display())]
    Certificate {
        /// The file.
        path: PathBuf,
        /// Why.
        why: String,
    },
    /// The TLS library refuses our settings.
    #[error("set up TLS: {0}")]
    Tls(String),
    /// Took too long.
    #[error("{what}: not done within {after:?}")]
    Timeout {
        /// What was tried, as verb and object.
        what: &'static str,
        /// The limit.
        after: Duration,
    },
    /// Postgres, or the way to it, failed.
    #[error("{what}: {}", describe(error))]
    Postgres {
        /// What was tried, as verb and object.
        what: &'static str,
        /// The failure, with its SQLSTATE where the server gave one.
        error: tokio_postgres::Error,
    },
    /// Another kind of slot stands under the configured name.
    #[error("slot {slot} {what}")]
    ForeignSlot {
        /// The slot.
        slot: String,
        /// What it is, as the rest of the sentence.
        what: String,
    },
    /// The address leads to several servers.
    #[error("source.url leads to more than one server: the stream comes from {stream}, queries go to {queries}")]
    SeveralServers {
        /// Where the replication connection has come.
        stream: String,
        /// Where another connection has come.
        queries: String,
    },
    /// The address leads to a standby.
    #[error("source.url leads to {0}, whose primary is to be followed")]
    Standby(String),
    /// The address leads to another server than before.
    #[error("source.url leads to another server than the one that was followed")]
    Moved,
    /// The slot was dropped just after it was looked up.
    #[error("slot {0} is gone")]
    SlotGone(String),
    /// The pool of connections cannot be used.
    #[error("connection pool: {0}")]
    Pool(String),
}

/// What to do about a failure.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// It may pass by itself.
    Retry,
    /// Somebody must do something.
    Operator {
        /// What, naming the configuration's field where there is one.
        remedy: String,
        /// The process's exit code for it.
        exit_code: u8,
    },
}

impl Verdict {
    fn operator(exit_code: u8, remedy: &str) -> Verdict {
        Verdict::Operator { remedy: remedy.to_owned(), exit_code }
    }

    /// The verdict on a failure that the server reported with this SQLSTATE.
    pub fn of_sqlstate(code: &str) -> Verdict {
        let permission = |remedy| Verdict::operator(EXIT_PERMISSION, remedy);
        let config = |remedy| Verdict::operator(EXIT_CONFIG, remedy);
        match code {
            "28P01" => permission("correct the user or password in source.url (or in the file of source.url_file)"),
            "28000" => permission(
                "the server admits no such connection: the role in source.url must exist, have LOGIN and (for the stream) \
                 REPLICATION, and pg_hba.conf must have a line for it, the database and this address",
            ),
            "42501" => permission(
                "the role in source.url lacks a right: `walcache check` names it, `walcache setup` prints or applies the \
                 grants",
            ),
            "3D000" => {
                config("the database in source.url does not exist: create it, or correct the name in source.url")
            }
            "57P04" => config("the database in source.url was dropped: correct source.url"),
            "42704" => config(
                "the slot (source.slot) or publication (source.publication) does not exist: `walcache setup --apply` \
                 creates them; once the publication is there again, `walcache run` makes a new slot by itself",
            ),
            "42P01" | "3F000" | "42703" => config(
                "a table or column no longer exists: correct the [[entity]], or run `walcache setup --apply` if it is one of \
                 walcache's own",
            ),
            "55000" => config(
                "the server is not in the state that this needs (wal_level = logical, or a slot that is valid): \
                 `walcache check` says what is missing",
            ),
            "58P01" => config(
                "a file of the server is gone (the log that source.slot needs, or the plugin of source.plugin): \
                 `walcache check` says which",
            ),
            "0A000" => config("the server does not support this: walcache needs the primary of Postgres 14 or later"),
            // Syntax and type errors of a query that once was right: the schema has changed under it.
            _ if code.starts_with("42") => config("the tables differ from the configuration: run `walcache check`"),
            // 08 connection, 40 rollback, 53 resources, 55006 in use, 55P03 lock, 57 intervention, 25006 no longer the
            // primary; and whatever is unknown, since to stop for a passing fault is worse than to try once more.
            _ => Verdict::Retry,
        }
    }
}

impl SourceError {
    /// A failure of tokio-postgres while doing `what` (verb and object).
    pub fn postgres(what: &'static str, error: tokio_postgres::Error) -> Self {
        SourceError::Postgres { what, error }
    }

    /// A failure to take a connection from the pool.
    pub fn pool(error: PoolError, waited: Duration) -> Self {
        match error {
            PoolError::Backend(error) => SourceError::postgres("connect", error),
            PoolError::Timeout(_) => SourceError::Timeout { what: "take a connection from the pool", after: waited },
            other => SourceError::Pool(other.to_string()),
        }
    }

    /// The five characters of the SQLSTATE, where the server gave one.
    pub fn sqlstate(&self) -> Option<&str> {
        match self {
            SourceError::Postgres { error, .. } => error.code().map(tokio_postgres::error::SqlState::code),
            _ => None,
        }
    }

    /// Whether to try again, or what somebody must do.
    pub fn verdict(&self) -> Verdict {
        if let Some(code) = self.sqlstate() {
            return Verdict::of_sqlstate(code);
        }
        match self {
            SourceError::Url(_) => {
                Verdict::operator(EXIT_CONFIG, "correct source.url (or the file of source.url_file)")
            }
            SourceError::Certificate { .. } => {
                Verdict::operator(EXIT_CONFIG, "correct sslrootcert in source.url: a file of certificates in PEM")
            }
            SourceError::Tls(_) => Verdict::operator(EXIT_CONFIG, "correct sslmode in source.url"),
            SourceError::ForeignSlot { .. } => Verdict::operator(
                EXIT_CONFIG,
                "choose another source.slot, or drop this one if nobody else reads it: `walcache run` makes another",
            ),
            SourceError::SeveralServers { .. } => Verdict::operator(
                EXIT_CONFIG,
                "let source.url lead to the primary alone, for replication connections, too: not through a pooler that \
                 spreads them, nor by a host name of several servers",
            ),
            SourceError::Timeout { .. }
            | SourceError::Pool(_)
            | SourceError::SlotGone(_)
            | SourceError::Standby(_)
            | SourceError::Moved => Verdict::Retry,
            SourceError::Postgres { error, .. } => of_connection(error),
        }
    }

    /// The process's exit code where nothing is tried again.
    pub fn exit_code(&self) -> u8 {
        match self.verdict() {
            Verdict::Retry => EXIT_UNAVAILABLE,
            Verdict::Operator { exit_code, .. } => exit_code,
        }
    }
}

/// The verdict on a failure that the server did not report itself.
fn of_connection(error: &tokio_postgres::Error) -> Verdict {
    // The kind is private; its text is fixed.
    let kind = error.to_string();
    if kind == "authentication error" || kind == "invalid configuration" {
        return Verdict::operator(
            EXIT_PERMISSION,
            "source.url must carry what the server's pg_hba.conf asks for: a password",
        );
    }
    if kind == "error performing TLS handshake" {
        return match error.source().and_then(|source| source.downcast_ref::<io::Error>()) {
            Some(io) if !is_certificate_refused(io) => Verdict::Retry,
            Some(_) => Verdict::operator(
                EXIT_CONFIG,
                "the server's certificate is refused: correct sslrootcert, the host name or sslmode in source.url, or renew \
                 the certificate",
            ),
            None => Verdict::operator(
                EXIT_CONFIG,
                "the server offers no TLS: enable it there, or change sslmode in source.url",
            ),
        };
    }
    Verdict::Retry
}

fn is_certificate_refused(error: &io::Error) -> bool {
    let cause = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
    matches!(cause, Some(rustls::Error::InvalidCertificate(_))) || error.kind() == io::ErrorKind::InvalidInput
}

/// One line: the server's own message with its SQLSTATE, or the chain of causes.
fn describe(error: &tokio_postgres::Error) -> String {
    if let Some(db) = error.as_db_error() {
        return format!("{}: {} (SQLSTATE {})", db.severity(), db.message(), db.code().code());
    }
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.ends_with(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        source = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn transient_faults_are_retried_and_others_name_the_remedy() {
        for code in ["08006", "57P01", "57P02", "57P03", "53300", "55006", "53100", "40001", "40P01", "57014", "25006"]
        {
            assert_eq!(Verdict::of_sqlstate(code), Verdict::Retry, "{code}");
        }
        for (code, wanted, field) in [
            ("28P01", EXIT_PERMISSION, "source.url"),
            ("28000", EXIT_PERMISSION, "source.url"),
            ("42501", EXIT_PERMISSION, "source.url"),
            ("3D000", EXIT_CONFIG, "source.url"),
            ("42704", EXIT_CONFIG, "source.slot"),
            ("55000", EXIT_CONFIG, "wal_level"),
            ("42P01", EXIT_CONFIG, "[[entity]]"),
        ] {
            let Verdict::Operator { remedy, exit_code } = Verdict::of_sqlstate(code) else { panic!("{code}") };
            assert!(exit_code == wanted && remedy.contains(field), "{code}: {remedy}");
        }
    }
}
