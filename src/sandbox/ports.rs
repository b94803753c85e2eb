//! Ports for private servers.

use std::net::{Ipv4Addr, TcpListener};
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU32, Ordering};

use rand::Rng;

/// Where we choose from: below the ephemeral ranges of Linux (from 32768) and macOS (from 49152).
///
/// Not port 0: the kernel would choose from the ephemeral range, and while such a server is down (tests kill and
/// restart them) an outgoing connection may be given its port, or a client that keeps reconnecting even connects to
/// itself, and then the server cannot come back.
const RANGE: std::ops::Range<u16> = 16_000..32_000;

/// A TCP port on 127.0.0.1 that was free just now, and that this process was not given before: servers that are down for
/// a moment find theirs again. Another process may still take it before it is used: whoever starts a server on it tries
/// again with another one.
pub fn free_port() -> u16 {
    /// How far we have come; every process begins somewhere else.
    static NEXT: LazyLock<AtomicU32> =
        LazyLock::new(|| AtomicU32::new(rand::rng().random_range(0..u32::from(u16::MAX))));
    loop {
        let nth = NEXT.fetch_add(1, Ordering::Relaxed) % RANGE.len() as u32;
        let port = RANGE.start + nth as u16;
        if TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            return port;
        }
    }
}
