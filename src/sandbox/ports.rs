//! Ports for private servers.

use std::net::{Ipv4Addr, TcpListener};

use rand::Rng;

/// Where we choose from: below the ephemeral ranges of Linux (from 32768) and macOS (from 49152).
///
/// Not port 0: the kernel would choose from the ephemeral range, and while such a server is down (tests kill and
/// restart them) an outgoing connection may be given its port, or a client that keeps reconnecting even connects to
/// itself, and then the server cannot come back.
const RANGE: std::ops::Range<u16> = 16_000..32_000;

/// A TCP port on 127.0.0.1 that was free just now. Another process may still take it before it is used: whoever
/// starts a server on it tries again with another one.
pub fn free_port() -> u16 {
    let mut rng = rand::rng();
    loop {
        let port = rng.random_range(RANGE);
        if TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            return port;
        }
    }
}
