//! The stream itself: reading, handing on, reporting what was applied.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime};

use bytes::BytesMut;
use pgwire_replication::protocol::replication::{encode_standby_status_update, unix_to_pg_timestamp};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use super::connect::Socket;
use super::frames::{Chunk, Scanner};
use super::{CaptureError, Config};
use crate::failpoint::{self, Point};
use crate::lsn::Lsn;

/// What one read asks for at least.
const READ: usize = 256 << 10;
/// A read of at least this many bytes says that more is coming: some 30 small transactions within one wake-up.
const HOT: usize = 8 << 10;
/// Bytes of chunks that wait or are decoded; a larger chunk waits until it is alone.
const ROOM: usize = 4 * READ;
/// How long to let more gather then.
const GATHER: Duration = Duration::from_millis(1);
/// How long the server may take to see the last status before the connection is closed.
const FAREWELL: Duration = Duration::from_secs(1);

/// How far the stream has come. Each position only moves forward, and received >= applied >= confirmed.
#[derive(Debug, Default)]
pub struct Progress {
    received: AtomicU64,
    applied: AtomicU64,
    confirmed: AtomicU64,
}

impl Progress {
    /// Progress of a stream that starts after `from`.
    pub fn new(from: Lsn) -> Self {
        let at = || AtomicU64::new(from.as_u64());
        Progress { received: at(), applied: at(), confirmed: at() }
    }

    /// The newest position that was received.
    pub fn received(&self) -> Lsn {
        Lsn::from_u64(self.received.load(Ordering::Acquire))
    }

    /// The position up to which everything was applied.
    pub fn applied(&self) -> Lsn {
        Lsn::from_u64(self.applied.load(Ordering::Acquire))
    }

    /// The position that the server was told.
    pub fn confirmed(&self) -> Lsn {
        Lsn::from_u64(self.confirmed.load(Ordering::Acquire))
    }

    /// Everything up to `lsn` was applied to L2: it may be confirmed.
    pub fn apply(&self, lsn: Lsn) {
        self.receive(lsn);
        self.applied.fetch_max(lsn.as_u64(), Ordering::AcqRel);
    }

    fn receive(&self, lsn: Lsn) {
        self.received.fetch_max(lsn.as_u64(), Ordering::AcqRel);
    }
}

/// Streams until cancelled (then `Ok`, after the last status was sent) or until the stream breaks. Chunks go to
/// `chunks`; while its receiver is behind, nothing more is read, and the server waits.
///
/// # Errors
/// Whatever ended the stream.
pub async fn stream(
    mut socket: Socket,
    config: &Config,
    progress: Arc<Progress>,
    chunks: mpsc::Sender<Chunk>,
    cancel: CancellationToken,
) -> Result<(), CaptureError> {
    let mut buffer = BytesMut::with_capacity(READ);
    let mut scanner = Scanner::new(config.max_message);
    let room = Arc::new(Semaphore::new(ROOM));
    let mut ready: Option<Chunk> = None;
    let mut last_received = Instant::now();
    let mut heard = false;
    let mut wanted = true;
    let mut hot = false;
    let mut status = tokio::time::interval(config.status_interval);
    status.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let size = ready.as_ref().map_or(0, Chunk::len);
        tokio::select! {
            biased;
            () = cancel.cancelled() => return farewell(socket, &progress).await,
            _ = status.tick() => {
                let silence = last_received.elapsed();
                // While a chunk waits nothing is read, so silence then says nothing about the server.
                if ready.is_none() && wanted && silence >= config.dead_after {
                    return Err(CaptureError::Dead(config.dead_after));
                }
                // At first and after a silence an answer is asked for: it proves the connection and tells how far the
                // server has read.
                report(&mut socket, &progress, !heard || silence >= config.status_interval).await?;
            }
            permit = reserve(&chunks, &room, size), if ready.is_some() => match (permit, ready.take()) {
                (Some((permit, share)), Some(chunk)) => {
                    permit.send(chunk.in_room(share));
                    // Nothing was read while it waited: silence is counted anew.
                    last_received = Instant::now();
                    ready = take(&mut socket, &mut buffer, &mut scanner, &progress).await?;
                }
                // Whoever decodes has stopped. What it took may still be applied, and is to be confirmed.
                _ => wanted = false,
            },
            read = read(&mut socket, &mut buffer, hot), if ready.is_none() && wanted => {
                let count = read.map_err(CaptureError::io("stream changes"))?;
                if count == 0 {
                    return Err(CaptureError::Ended);
                }
                hot = count >= HOT;
                last_received = Instant::now();
                heard = true;
                ready = take(&mut socket, &mut buffer, &mut scanner, &progress).await?;
            }
        }
    }
}

/// Reads what is there. While much is coming, it lets more gather first: each read wakes the walsender, and each chunk
/// makes a batch, which costs round trips.
async fn read(socket: &mut Socket, buffer: &mut BytesMut, hot: bool) -> std::io::Result<usize> {
    if hot {
        tokio::time::sleep(GATHER).await;
    }
    socket.read_buf(buffer).await
}

/// Waits for a place for a chunk of so many bytes; `None` once nobody takes chunks any more.
async fn reserve<'c>(
    chunks: &'c mpsc::Sender<Chunk>,
    room: &Arc<Semaphore>,
    size: usize,
) -> Option<(mpsc::Permit<'c, Chunk>, OwnedSemaphorePermit)> {
    let permit = chunks.reserve().await.ok()?;
    tokio::select! {
        share = room.clone().acquire_many_owned(size.min(ROOM) as u32) => Some((permit, share.ok()?)),
        () = chunks.closed() => None,
    }
}

/// Takes the whole messages that were read, and answers the server if it asked.
async fn take(
    socket: &mut Socket,
    buffer: &mut BytesMut,
    scanner: &mut Scanner,
    progress: &Progress,
) -> Result<Option<Chunk>, CaptureError> {
    let scan = scanner.scan(buffer)?;
    scan.make_room(buffer, READ);
    if scan.reply_requested {
        report(socket, progress, false).await?;
    }
    progress.receive(scan.sent);
    Ok(scan.chunk)
}

async fn report(socket: &mut Socket, progress: &Progress, ask: bool) -> Result<(), CaptureError> {
    let applied = progress.applied();
    let micros = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_micros();
    let now = unix_to_pg_timestamp(micros as i64);
    let status = encode_standby_status_update(pgwire_replication::Lsn::from_u64(applied.as_u64()), now, ask);
    let mut message = Vec::with_capacity(status.len() + 5);
    message.push(b'd');
    message.extend_from_slice(&(status.len() as u32 + 4).to_be_bytes());
    message.extend_from_slice(&status);
    socket.write_all(&message).await.map_err(CaptureError::io("report the applied position"))?;
    socket.flush().await.map_err(CaptureError::io("report the applied position"))?;
    if progress.confirmed.fetch_max(applied.as_u64(), Ordering::AcqRel) < applied.as_u64() {
        failpoint::reached(Point::AfterConfirm);
    }
    Ok(())
}

/// Sends the last status and ends the stream in order, so that the server has seen it before the slot is free.
async fn farewell(mut socket: Socket, progress: &Progress) -> Result<(), CaptureError> {
    const DOING: &str = "end the stream";
    const COPY_DONE: &[u8] = b"c\0\0\0\x04";
    const TERMINATE: &[u8] = b"X\0\0\0\x04";
    let goodbye = async {
        report(&mut socket, progress, false).await?;
        socket.write_all(COPY_DONE).await.map_err(CaptureError::io(DOING))?;
        socket.write_all(TERMINATE).await.map_err(CaptureError::io(DOING))?;
        socket.flush().await.map_err(CaptureError::io(DOING))?;
        // What is still under way is dropped: it was not applied and comes again.
        let mut sink = vec![0; READ];
        while socket.read(&mut sink).await.map_err(CaptureError::io(DOING))? > 0 {}
        Ok(())
    };
    match tokio::time::timeout(FAREWELL, goodbye).await {
        Ok(done) => done,
        Err(_) => Err(CaptureError::Timeout { doing: DOING, after: FAREWELL }),
    }
}
