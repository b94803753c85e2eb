//! Connecting to the walsender: socket, TLS, authentication, and the commands before the stream.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use pgwire_replication::auth::scram::ScramClient;
use pgwire_replication::protocol::framing::{
    read_backend_message, write_password_message, write_query, write_startup_message,
};
use pgwire_replication::protocol::messages::parse_auth_request;
use pgwire_replication::tls::rustls::{MaybeTlsStream, maybe_upgrade_to_tls};
use postgres_protocol::authentication::md5_hash;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream};

use super::{CaptureError, Config};
use crate::lsn::Lsn;

/// Protocol version 3.0.
const PROTOCOL: i32 = 196_608;
/// The kernel's receive buffer: room for the walsender to go on writing while a buffer is decoded.
const RECEIVE_BUFFER: usize = 4 << 20;

/// The socket under the stream.
pub enum Socket {
    /// TCP, with or without TLS.
    Tcp(MaybeTlsStream),
    /// A Unix socket.
    Unix(UnixStream),
}

/// A connection to a walsender that has not begun to stream.
pub struct Connection {
    socket: Socket,
    config: Config,
}

/// What IDENTIFY_SYSTEM says: LSNs can be compared only within one of these.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct System {
    /// The cluster's identifier.
    pub identifier: String,
    /// Its timeline.
    pub timeline: u32,
}

impl Connection {
    /// Connects and authenticates.
    ///
    /// # Errors
    /// If that fails or takes longer than the connect timeout.
    pub async fn open(config: &Config) -> Result<Connection, CaptureError> {
        within(config.connect_timeout, "connect for replication", async {
            let socket = open_socket(config).await?;
            let mut connection = Connection { socket, config: config.clone() };
            connection.log_in().await?;
            Ok(connection)
        })
        .await
    }

    async fn log_in(&mut self) -> Result<(), CaptureError> {
        const DOING: &str = "log in for replication";
        // The settings that change how values are written as text.
        let params = [
            ("user", self.config.user.as_str()),
            ("database", &self.config.database),
            ("replication", "database"),
            ("application_name", "walcache"),
            ("client_encoding", "UTF8"),
            ("TimeZone", "UTC"),
            ("DateStyle", "ISO, MDY"),
            ("IntervalStyle", "postgres"),
            ("extra_float_digits", "1"),
            ("bytea_output", "hex"),
        ];
        write_startup_message(&mut self.socket, PROTOCOL, &params).await.map_err(CaptureError::wire(DOING))?;
        let mut scram: Option<ScramClient> = None;
        let mut proof: Option<(String, Vec<u8>)> = None;
        loop {
            let message = read_backend_message(&mut self.socket).await.map_err(CaptureError::wire(DOING))?;
            match message.tag {
                b'R' => {
                    let (code, rest) = parse_auth_request(&message.payload).map_err(CaptureError::wire(DOING))?;
                    let password = self.config.password.as_deref().unwrap_or_default();
                    let text = || String::from_utf8_lossy(rest).into_owned();
                    let reply = match code {
                        0 => continue,
                        3 => [password.as_bytes(), b"\0"].concat(),
                        5 => {
                            let salt = rest.try_into().map_err(|_| malformed(DOING))?;
                            let hash = md5_hash(self.config.user.as_bytes(), password.as_bytes(), salt);
                            [hash.as_bytes(), b"\0"].concat()
                        }
                        10 => {
                            let client = ScramClient::new(&self.config.user);
                            let first = client.client_first.as_bytes();
                            let length = (first.len() as i32).to_be_bytes();
                            let reply = [b"SCRAM-SHA-256\0", &length[..], first].concat();
                            scram = Some(client);
                            reply
                        }
                        11 => {
                            let client = scram.take().ok_or_else(|| malformed(DOING))?;
                            let (last, auth_message, salted) =
                                client.client_final(password, &text()).map_err(CaptureError::wire(DOING))?;
                            proof = Some((auth_message, salted));
                            last.into_bytes()
                        }
                        12 => {
                            let (auth_message, salted) = proof.take().ok_or_else(|| malformed(DOING))?;
                            ScramClient::verify_server_final(&text(), &salted, &auth_message)
                                .map_err(CaptureError::wire(DOING))?;
                            continue;
                        }
                        _ => {
                            let what = format!("the server wants authentication method {code}, which is not supported");
                            return Err(CaptureError::wire(DOING)(pgwire_replication::PgWireError::Auth(what)));
                        }
                    };
                    write_password_message(&mut self.socket, &reply).await.map_err(CaptureError::wire(DOING))?;
                }
                b'E' => return Err(CaptureError::server(DOING, &message.payload)),
                b'Z' => return Ok(()),
                _ => {}
            }
        }
    }

    /// Asks which cluster and timeline this is.
    ///
    /// # Errors
    /// If the server does not say.
    pub async fn identify(&mut self) -> Result<System, CaptureError> {
        const DOING: &str = "identify the system";
        within(self.config.connect_timeout, DOING, async {
            write_query(&mut self.socket, "IDENTIFY_SYSTEM").await.map_err(CaptureError::wire(DOING))?;
            let mut system = None;
            loop {
                let message = read_backend_message(&mut self.socket).await.map_err(CaptureError::wire(DOING))?;
                match message.tag {
                    b'D' => {
                        let columns = data_row(&message.payload).ok_or_else(|| malformed(DOING))?;
                        let [Some(identifier), Some(timeline), ..] = &columns[..] else {
                            return Err(malformed(DOING));
                        };
                        let timeline = timeline.parse().map_err(|_| malformed(DOING))?;
                        system = Some(System { identifier: identifier.clone(), timeline });
                    }
                    b'E' => return Err(CaptureError::server(DOING, &message.payload)),
                    b'Z' => return system.ok_or_else(|| malformed(DOING)),
                    _ => {}
                }
            }
        })
        .await
    }

    /// Starts the stream after `from`, or after what the slot has confirmed if that is later. On return the slot is
    /// held by this connection.
    ///
    /// # Errors
    /// If the slot is missing, held by another, or cannot be read any more.
    pub async fn start(mut self, from: Lsn) -> Result<Socket, CaptureError> {
        const DOING: &str = "start replication";
        // The slot's name was validated; the publication's is quoted as a list of identifiers within a string.
        let publication = crate::sql::quote_ident(&self.config.publication).replace('\'', "''");
        let command = format!(
            "START_REPLICATION SLOT \"{}\" LOGICAL {from} (proto_version '1', publication_names '{publication}', messages 'true')",
            self.config.slot
        );
        within(self.config.connect_timeout, DOING, async {
            write_query(&mut self.socket, &command).await.map_err(CaptureError::wire(DOING))?;
            loop {
                let message = read_backend_message(&mut self.socket).await.map_err(CaptureError::wire(DOING))?;
                match message.tag {
                    b'W' => return Ok(self.socket),
                    b'E' => return Err(CaptureError::server(DOING, &message.payload)),
                    b'N' | b'S' => {}
                    _ => return Err(malformed(DOING)),
                }
            }
        })
        .await
    }
}

async fn open_socket(config: &Config) -> Result<Socket, CaptureError> {
    const DOING: &str = "connect for replication";
    if config.host.starts_with('/') {
        let path = format!("{}/.s.PGSQL.{}", config.host, config.port);
        return Ok(Socket::Unix(UnixStream::connect(path).await.map_err(CaptureError::io(DOING))?));
    }
    let tcp = TcpStream::connect((config.host.as_str(), config.port)).await.map_err(CaptureError::io(DOING))?;
    tcp.set_nodelay(true).map_err(CaptureError::io(DOING))?;
    let socket = socket2::SockRef::from(&tcp);
    // The kernel may grant less; what it grants is enough to go on.
    let _ = socket.set_recv_buffer_size(RECEIVE_BUFFER);
    let keepalive = socket2::TcpKeepalive::new()
        .with_time(Duration::from_secs(10))
        .with_interval(Duration::from_secs(5))
        .with_retries(3);
    socket.set_tcp_keepalive(&keepalive).map_err(CaptureError::io(DOING))?;
    let tls = maybe_upgrade_to_tls(tcp, &config.tls, &config.host).await;
    tls.map(Socket::Tcp).map_err(CaptureError::wire("negotiate TLS for replication"))
}

async fn within<T>(
    after: Duration,
    doing: &'static str,
    work: impl Future<Output = Result<T, CaptureError>>,
) -> Result<T, CaptureError> {
    tokio::time::timeout(after, work).await.unwrap_or(Err(CaptureError::Timeout { doing, after }))
}

fn malformed(doing: &'static str) -> CaptureError {
    CaptureError::wire(doing)(pgwire_replication::PgWireError::Protocol("malformed or unexpected message".into()))
}

/// The columns of a DataRow message as text.
fn data_row(payload: &[u8]) -> Option<Vec<Option<String>>> {
    let (count, mut rest) = payload.split_at_checked(2)?;
    let count = u16::from_be_bytes(count.try_into().ok()?);
    let mut columns = Vec::new();
    for _ in 0..count {
        let (length, after) = rest.split_at_checked(4)?;
        let length = i32::from_be_bytes(length.try_into().ok()?);
        if length < 0 {
            columns.push(None);
            rest = after;
        } else {
            let (text, after) = after.split_at_checked(length as usize)?;
            columns.push(Some(String::from_utf8(text.to_vec()).ok()?));
            rest = after;
        }
    }
    Some(columns)
}

impl AsyncRead for Socket {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<std::io::Result<()>> {
        match self.get_mut() {
            Socket::Tcp(s) => Pin::new(s).poll_read(cx, buf),
            Socket::Unix(s) => Pin::new(s).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Socket {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<std::io::Result<usize>> {
        match self.get_mut() {
            Socket::Tcp(s) => Pin::new(s).poll_write(cx, buf),
            Socket::Unix(s) => Pin::new(s).poll_write(cx, buf),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        match self.get_mut() {
            Socket::Tcp(s) => Pin::new(s).poll_flush(cx),
            Socket::Unix(s) => Pin::new(s).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        match self.get_mut() {
            Socket::Tcp(s) => Pin::new(s).poll_shutdown(cx),
            Socket::Unix(s) => Pin::new(s).poll_shutdown(cx),
        }
    }
}
