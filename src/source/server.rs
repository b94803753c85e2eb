//! Which server a connection has reached, and which one is followed.
//!
//! The gate vouches for commits only on the server whose log is streamed, fills are current only there, and LSNs compare
//! only within one timeline. An address may lead elsewhere: to two servers in turn (a host name of several, a pooler that
//! spreads connections), or to another one than before (a promoted standby, while the old primary goes on unaware). So
//! every connection is asked whom it has reached.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use tokio::sync::Notify;
use tokio_postgres::Client;
use tokio_postgres::error::SqlState;

use super::{SourceError, within};

/// What tells; four columns of text.
pub const WHICH_SERVER: &str = include_str!("../../sql/which_server.sql");

/// LSNs can be compared only within one of these.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct System {
    /// The cluster's identifier.
    pub identifier: String,
    /// Its timeline.
    pub timeline: u32,
}

impl fmt::Display for System {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "system {}, timeline {}", self.identifier, self.timeline)
    }
}

/// A running server.
#[derive(Debug, Clone)]
pub struct Server {
    /// What it writes; `None` on a standby, which writes nothing.
    pub system: Option<System>,
    identifier: String,
    /// When it started, in microseconds since 1970: no two servers of one cluster start in the same one.
    started: String,
    /// Where a connection has reached it.
    address: String,
}

impl Server {
    /// From the columns of [`WHICH_SERVER`].
    pub fn parse(columns: &[Option<String>]) -> Option<Server> {
        let [Some(identifier), timeline, Some(started), Some(address)] = columns else { return None };
        let system = match timeline {
            Some(timeline) => Some(System { identifier: identifier.clone(), timeline: timeline.parse().ok()? }),
            None => None,
        };
        Some(Server { system, identifier: identifier.clone(), started: started.clone(), address: address.clone() })
    }

    /// Whether both are one and the same process, not just the same data.
    pub fn is(&self, other: &Server) -> bool {
        self.identifier == other.identifier && self.started == other.started
    }
}

impl fmt::Display for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.system {
            Some(system) => write!(f, "{} ({system})", self.address),
            None => write!(f, "{} (a standby of system {})", self.address, self.identifier),
        }
    }
}

/// Asks a connection which server it has reached; `None` where the server does not tell, as some managed ones.
///
/// # Errors
/// If the connection fails, or nothing comes within `patience`.
pub async fn which_server(client: &Client, patience: Duration) -> Result<Option<Server>, SourceError> {
    const WHAT: &str = "ask which server this is";
    match within(WHAT, patience, client.query_one(WHICH_SERVER, &[])).await? {
        Ok(row) => Ok(Server::parse(&[0, 1, 2, 3].map(|column| row.get(column)))),
        Err(error) if error.code().is_some_and(is_withheld) => Ok(None),
        Err(error) => Err(SourceError::postgres(WHAT, error)),
    }
}

/// Whether the server refuses to tell, rather than to work.
fn is_withheld(code: &SqlState) -> bool {
    [SqlState::INSUFFICIENT_PRIVILEGE, SqlState::UNDEFINED_FUNCTION, SqlState::FEATURE_NOT_SUPPORTED].contains(code)
}

/// The server that is followed: where the stream comes from. Shared by the stream and all who connect beside it.
#[derive(Debug, Default)]
pub struct Followed {
    system: ArcSwapOption<System>,
    /// Somebody has reached another one.
    moved: AtomicBool,
    notify: Notify,
}

impl Followed {
    /// Whether it is another than this one.
    pub fn is_other(&self, system: &System) -> bool {
        self.system.load().as_deref().is_some_and(|followed| followed != system)
    }

    /// From now on it is this one.
    pub fn follow(&self, system: &System) {
        self.system.store(Some(system.clone().into()));
        self.moved.store(false, Ordering::Release);
    }

    /// Whether a connection to `found` may be used. If it leads to another server that writes, the one that is followed
    /// is not the one at that address any more: [`Followed::moved`] returns.
    pub fn admits(&self, found: Option<&Server>) -> bool {
        let system = self.system.load();
        // Nothing is known of one of them: as good as it gets.
        let (Some(followed), Some(found)) = (system.as_deref(), found) else { return true };
        match &found.system {
            Some(system) if system == followed => true,
            Some(_) => {
                self.moved.store(true, Ordering::Release);
                self.notify.notify_waiters();
                false
            }
            None => false,
        }
    }

    /// Waits until somebody has reached another server than the one that is followed.
    pub async fn moved(&self) {
        loop {
            let notified = self.notify.notified();
            tokio::pin!(notified);
            notified.as_mut().enable();
            if self.moved.load(Ordering::Acquire) {
                return;
            }
            notified.await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn server(timeline: Option<&str>) -> Server {
        let columns = [Some("7"), timeline, Some("1700000000000000"), Some("10.0.0.1:5432")];
        Server::parse(&columns.map(|text| text.map(str::to_owned))).unwrap()
    }

    #[tokio::test]
    async fn a_connection_to_another_server_is_refused_and_told() {
        let followed = Followed::default();
        assert!(followed.admits(Some(&server(Some("1")))), "nobody is followed yet");
        let system = |timeline| System { identifier: "7".into(), timeline };
        assert!(!followed.is_other(&system(1)));
        followed.follow(&system(1));
        assert!(followed.admits(Some(&server(Some("1")))));
        assert!(followed.admits(None), "a server that does not tell");
        assert!(!followed.admits(Some(&server(None))), "a standby, which is no sign of a failover");
        let quiet = tokio::time::timeout(Duration::from_millis(1), followed.moved()).await;
        assert!(quiet.is_err());
        assert!(!followed.admits(Some(&server(Some("2")))));
        followed.moved().await;
        assert!(followed.is_other(&system(2)));
        followed.follow(&system(2));
        assert!(tokio::time::timeout(Duration::from_millis(1), followed.moved()).await.is_err(), "followed now");
    }

    #[test]
    fn says_where_and_what_it_is() {
        assert_eq!(server(Some("2")).to_string(), "10.0.0.1:5432 (system 7, timeline 2)");
        assert_eq!(server(None).to_string(), "10.0.0.1:5432 (a standby of system 7)");
        assert!(Server::parse(&[None, None, None, None]).is_none());
    }
}
