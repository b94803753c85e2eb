//! The limit of draining: a client that reads the stream and does nothing with it.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use pgwire_replication::TlsConfig;
use pgwire_replication::tls::rustls::MaybeTlsStream;
use walcache::capture::connect::{Connection, Socket};
use walcache::capture::{self, Output};
use walcache::lsn::Lsn;

use crate::process;
use crate::shop::Shop;

/// What one read asks for at most.
const READ: usize = 256 << 10;
/// A read that brought this much says that the server is sending as fast as it can.
const LARGE: usize = 8 << 10;
/// Answers that no position is confirmed, so that the slot can be drained again: a status with three zero positions.
const STATUS: [u8; 39] = {
    let mut status = [0; 39];
    status[0] = b'd';
    status[4] = 38;
    status[5] = b'r';
    status
};

/// How a drain went.
pub struct Drained {
    /// From the start of the stream to the end that was asked for, in seconds.
    pub seconds: f64,
    /// CPU seconds of the walsender.
    pub walsender: f64,
    /// Bytes that were read.
    pub bytes: usize,
}

/// Reads the stream of `slot` up to `end`. With a pause after each large read, messages gather in the kernel: the
/// walsender is woken less often, which can be faster than reading at once.
pub async fn drain(shop: &Shop, slot: &str, end: Lsn, pause: Option<Duration>) -> Result<Drained> {
    let config = capture::Config {
        host: "127.0.0.1".to_owned(),
        port: shop.postgres.port(),
        user: "postgres".to_owned(),
        password: Some(shop.postgres.password().to_owned()),
        database: crate::shop::DATABASE.to_owned(),
        tls: TlsConfig::default(),
        search_path: String::new(),
        slot: slot.to_owned(),
        output: Output::Pgoutput { publications: vec![crate::shop::SLOT.to_owned()] },
        connect_timeout: Duration::from_secs(10),
        status_interval: Duration::from_secs(1),
        dead_after: Duration::from_secs(30),
        max_message: usize::MAX,
    };
    let socket = Connection::open(&config).await?.start(Lsn::ZERO).await?.socket;
    let began = Instant::now();
    let Socket::Tcp(MaybeTlsStream::Plain(tcp)) = socket else { bail!("a stream without TLS was expected") };
    let mut tcp = tcp.into_std()?;
    // A blocking read is the cheapest way to wait.
    tcp.set_nonblocking(false)?;
    let reading = tokio::task::spawn_blocking(move || {
        let bytes = read_to(&mut tcp, end, pause)?;
        Ok::<_, anyhow::Error>((began.elapsed(), bytes, tcp))
    });
    let (elapsed, bytes, tcp) = reading.await??;
    // While its connection is still open, so that it is still there.
    let walsender = walsender_cpu(shop, slot).await?;
    drop(tcp);
    shop.wait_inactive(slot).await?;
    Ok(Drained { seconds: elapsed.as_secs_f64(), walsender, bytes })
}

/// CPU seconds of the walsender that serves a slot.
pub async fn walsender_cpu(shop: &Shop, slot: &str) -> Result<f64> {
    let pid = "SELECT active_pid FROM pg_replication_slots WHERE slot_name = $1";
    let pid: Option<i32> = shop.sql.query_one(pid, &[&slot]).await?.get(0);
    process::cpu_seconds(u32::try_from(pid.context("nobody holds the slot")?)?)
}

/// Reads until a message names a position at or past `end`. Looks only at the heads of messages.
fn read_to(tcp: &mut TcpStream, end: Lsn, pause: Option<Duration>) -> Result<usize> {
    let mut buffer = vec![0; 2 * READ];
    let (mut filled, mut total) = (0, 0);
    loop {
        if buffer.len() - filled < READ {
            buffer.resize(filled + READ, 0);
        }
        let read = tcp.read(&mut buffer[filled..filled + READ]).context("read the stream")?;
        ensure!(read > 0, "the server ended the stream before {end}");
        (filled, total) = (filled + read, total + read);
        let mut at = 0;
        // The tag, the length (which counts itself), `w` or `k`, and the position.
        while let Some(head) = buffer[..filled].get(at..at + 14) {
            let length = u32::from_be_bytes([head[1], head[2], head[3], head[4]]) as usize;
            if at + 1 + length > filled {
                break;
            }
            ensure!(head[0] == b'd', "the server sent a message with tag {:?}", char::from(head[0]));
            let position = head[6..14].iter().fold(0, |n, b| n << 8 | u64::from(*b));
            if position >= end.as_u64() {
                return Ok(total);
            }
            if head[5] == b'k' && buffer[at + length] != 0 {
                reply(tcp).context("answer a keepalive")?;
            }
            at += 1 + length;
        }
        buffer.copy_within(at..filled, 0);
        filled -= at;
        if let Some(pause) = pause
            && read >= LARGE
        {
            std::thread::sleep(pause);
        }
    }
}

fn reply(tcp: &mut TcpStream) -> io::Result<()> {
    tcp.write_all(&STATUS)
}
