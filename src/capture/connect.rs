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

use super::{CaptureError, Config, options};
use crate::lsn::Lsn;
use crate::source::{APPLICATION_NAME, SESSION, Server, System, WHICH_SERVER};

/// Protocol version 3.0.
const PROTOCOL: i32 = 196_608;
/// The kernel's receive buffer: room for the walsender to go on writing while a buffer is decoded.
const RECEIVE_BUFFER: usize = 4 << 20;

const START: &str = "start replication";
/// SQLSTATE `invalid_parameter_value`.
const UNKNOWN_OPTION: &str = "22023";

/// A stream that has begun.
pub struct Started {
    /// The stream.
    pub socket: Socket,
    /// Whether wal2json quotes numbers, so that NaN and the infinities are told apart from null.
    pub numbers_as_text: bool,
}

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
        let mut params = vec![
            ("user", self.config.user.as_str()),
            ("database", self.config.database.as_str()),
            ("replication", "database"),
            ("application_name", APPLICATION_NAME),
            ("client_encoding", "UTF8"),
            // wal2json warns of changes that it leaves out.
            ("client_min_messages", "warning"),
        ];
        // Values are to have the text here that fills read.
        params.extend(SESSION);
        if !self.config.search_path.is_empty() {
            params.push(("search_path", &self.config.search_path));
        }
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
        let row = self.query(DOING, "IDENTIFY_SYSTEM").await?;
        let Some([Some(identifier), Some(timeline), ..]) = row.as_deref() else { return Err(malformed(DOING)) };
        let timeline = timeline.parse().map_err(|_| malformed(DOING))?;
        Ok(System { identifier: identifier.clone(), timeline })
    }

    /// Asks which server this is, to compare it with those of other connections; `None` where it does not tell.
    ///
    /// # Errors
    /// If the connection fails.
    pub async fn which_server(&mut self) -> Result<Option<Server>, CaptureError> {
        match self.query("ask which server this is", WHICH_SERVER).await {
            Ok(row) => Ok(row.as_deref().and_then(Server::parse)),
            Err(CaptureError::Server { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Says whether standbys are to keep the slot in step; from Postgres 17 on. The slot must be free.
    ///
    /// # Errors
    /// If the server refuses.
    pub async fn set_failover(&mut self, failover: bool) -> Result<(), CaptureError> {
        let command = format!("ALTER_REPLICATION_SLOT \"{}\" (FAILOVER {failover})", self.config.slot);
        self.query("alter the slot", &command).await.map(drop)
    }

    /// Sends a command or a query in text; gives the last row of its answer.
    async fn query(&mut self, doing: &'static str, text: &str) -> Result<Option<Vec<Option<String>>>, CaptureError> {
        within(self.config.connect_timeout, doing, async {
            write_query(&mut self.socket, text).await.map_err(CaptureError::wire(doing))?;
            let mut answer = Ok(None);
            loop {
                let message = match read_backend_message(&mut self.socket).await {
                    // It has said why it hangs up.
                    Err(_) if answer.is_err() => return answer,
                    message => message.map_err(CaptureError::wire(doing))?,
                };
                match message.tag {
                    b'D' => answer = Ok(Some(data_row(&message.payload).ok_or_else(|| malformed(doing))?)),
                    // What follows is that the server is ready for the next one.
                    b'E' => answer = Err(CaptureError::server(doing, &message.payload)),
                    b'Z' => return answer,
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
    pub async fn start(mut self, from: Lsn) -> Result<Started, CaptureError> {
        within(self.config.connect_timeout, START, async {
            let mut sets = options::of(&self.config.output).into_iter();
            loop {
                let Some(set) = sets.next() else { return Err(malformed(START)) };
                match self.try_start(from, &set.text).await {
                    Ok(()) => return Ok(Started { socket: self.socket, numbers_as_text: set.numbers_as_text }),
                    // An older version of the plugin, which does not know an option, may know all of the next set.
                    Err(error) if error.sqlstate() == Some(UNKNOWN_OPTION) && sets.len() > 0 => {}
                    Err(error) => return Err(error),
                }
            }
        })
        .await
    }

    async fn try_start(&mut self, from: Lsn, options: &str) -> Result<(), CaptureError> {
        // The slot's name was validated.
        let command = format!("START_REPLICATION SLOT \"{}\" LOGICAL {from} ({options})", self.config.slot);
        write_query(&mut self.socket, &command).await.map_err(CaptureError::wire(START))?;
        let mut refused = None;
        loop {
            let message = read_backend_message(&mut self.socket).await.map_err(CaptureError::wire(START))?;
            match (message.tag, refused) {
                (b'W', None) => return Ok(()),
                (b'E', None) => refused = Some(CaptureError::server(START, &message.payload)),
                // Ready for another command.
                (b'Z', Some(error)) => return Err(error),
                (b'N' | b'S', before) => refused = before,
                _ => return Err(malformed(START)),
            }
        }
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
