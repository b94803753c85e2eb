//! A TCP proxy that breaks the network on request.
//!
//! It does what networks, and the boxes in them, do to a connection: hold data back or delay it, lose everything from
//! some moment on (in both directions, or in one: a half-open connection), cut a message in half, end the connection in
//! order or with a reset, refuse new ones, or replace bytes. A gap in the middle of a connection that goes on is not
//! among it: TCP itself rules that out, and neither Postgres' nor Redis' protocol could tell.

use std::future::pending;
use std::net::Ipv4Addr;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngCore, SeedableRng};
use socket2::SockRef;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::time::sleep;
use walcache::sandbox::free_port;

/// Forwards connections on a port of its own to a port on 127.0.0.1; dropping it cuts them.
#[derive(Debug)]
pub struct Proxy {
    port: u16,
    faults: watch::Sender<Faults>,
}

/// A direction of data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// From whoever connected to the proxy.
    ToServer,
    /// From whom the proxy leads to.
    ToClient,
}

/// Both directions.
pub const WAYS: [Way; 2] = [Way::ToServer, Way::ToClient];

#[derive(Debug, Clone, Copy)]
struct Faults {
    target: u16,
    /// Every second connection is led there instead.
    by_turns: Option<u16>,
    mode: Mode,
    /// Added to every piece of data, in each direction.
    delay: Duration,
    /// Raised by each cut.
    cuts: u64,
    /// Raised by each closing.
    closings: u64,
    /// By direction: raised by each tear.
    tears: [u64; 2],
    /// By direction: raised by each garbling.
    noises: [u64; 2],
    /// After so many pieces of data from the server, a connection made now loses all that follow.
    mute_after: Option<usize>,
    /// What the server is sent from a piece on that has this in it is lost.
    mute_at: Option<&'static str>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    Forward,
    /// Data is held back, and goes on when healed.
    Stall,
    /// Data is lost; a connection that lost some stays silent for ever, healed or not.
    BlackHole,
    /// As [`Mode::BlackHole`] in one direction; the other goes on.
    Halve(Way),
    /// Nobody listens.
    Refuse,
}

impl Mode {
    fn swallows(self, way: Way) -> bool {
        self == Mode::BlackHole || self == Mode::Halve(way)
    }
}

impl Proxy {
    /// Starts forwarding to `target`, in tasks of the current runtime.
    pub async fn start(target: u16) -> Proxy {
        let faults = Faults {
            target,
            by_turns: None,
            mode: Mode::Forward,
            delay: Duration::ZERO,
            cuts: 0,
            closings: 0,
            tears: [0; 2],
            noises: [0; 2],
            mute_after: None,
            mute_at: None,
        };
        let (faults, watching) = watch::channel(faults);
        // Not an ephemeral port, for `refuse`: see `free_port`.
        let (port, listener) = loop {
            let port = free_port();
            if let Ok(listener) = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).await {
                break (port, listener);
            }
        };
        tokio::spawn(accept(listener, port, watching));
        Proxy { port, faults }
    }

    /// The port to connect to, on 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Resets all connections (RST); new ones are possible.
    pub fn cut(&self) {
        self.faults.send_modify(|faults| faults.cuts += 1);
    }

    /// Ends all connections in order (FIN), at whatever byte they are; new ones are possible.
    pub fn close(&self) {
        self.faults.send_modify(|faults| faults.closings += 1);
    }

    /// Passes on half of each connection's next piece of data in this direction, then resets it; new ones are possible.
    pub fn tear(&self, way: Way) {
        self.faults.send_modify(|faults| faults.tears[way as usize] += 1);
    }

    /// Replaces each connection's next piece of data in this direction by noise; it goes on afterwards.
    pub fn garble(&self, way: Way) {
        self.faults.send_modify(|faults| faults.noises[way as usize] += 1);
    }

    /// Swallows all data of existing and new connections, which stay open: a peer that is gone without a word.
    pub fn black_hole(&self) {
        self.faults.send_modify(|faults| faults.mode = Mode::BlackHole);
    }

    /// Swallows the data of one direction, while the other goes on: connections are half open.
    pub fn halve(&self, way: Way) {
        self.faults.send_modify(|faults| faults.mode = Mode::Halve(way));
    }

    /// Lets each connection made from now on have so many pieces of data from the server, and swallows all that follow:
    /// silence at a certain step of a dialogue.
    pub fn mute_after(&self, pieces: usize) {
        self.faults.send_modify(|faults| faults.mute_after = Some(pieces));
    }

    /// Each connection over which the server is sent this text loses it, and whatever it is sent afterwards: silence at a
    /// certain step of a dialogue, of whichever connection comes to it.
    pub fn mute_at(&self, text: &'static str) {
        self.faults.send_modify(|faults| faults.mute_at = Some(text));
    }

    /// Holds back all data until [`Proxy::heal`]: a partition that TCP survives.
    pub fn stall(&self) {
        self.faults.send_modify(|faults| faults.mode = Mode::Stall);
    }

    /// Refuses new connections; existing ones go on until [`Proxy::cut`].
    pub fn refuse(&self) {
        self.faults.send_modify(|faults| faults.mode = Mode::Refuse);
    }

    /// Delays all data by this much in each direction.
    pub fn delay(&self, delay: Duration) {
        self.faults.send_modify(|faults| faults.delay = delay);
    }

    /// Leads new connections to another port; existing ones stay where they are until they are cut.
    pub fn lead_to(&self, target: u16) {
        self.faults.send_modify(|faults| faults.target = target);
    }

    /// Leads every second new connection to another port, as a host name of two servers may.
    pub fn lead_by_turns_to(&self, other: u16) {
        self.faults.send_modify(|faults| faults.by_turns = Some(other));
    }

    /// Forwards again, without delay. Connections that lost data stay silent until they are cut.
    pub fn heal(&self) {
        self.faults.send_modify(|faults| {
            faults.mode = Mode::Forward;
            faults.delay = Duration::ZERO;
            faults.mute_after = None;
            faults.mute_at = None;
        });
    }
}

/// Accepts until the [`Proxy`] is dropped.
async fn accept(listener: TcpListener, port: u16, mut watching: watch::Receiver<Faults>) {
    let mut listener = Some(listener);
    let mut count = 0_u64;
    loop {
        let refusing = watching.borrow_and_update().mode == Mode::Refuse;
        if refusing {
            listener = None;
        } else if listener.is_none() {
            listener = Some(TcpListener::bind((Ipv4Addr::LOCALHOST, port)).await.expect("bind the proxy's port again"));
        }
        tokio::select! {
            changed = watching.changed() => if changed.is_err() { return },
            Some(Ok((client, _))) = async { Some(listener.as_ref()?.accept().await) } => {
                count += 1;
                tokio::spawn(connection(client, count, watching.clone()));
            }
        }
    }
}

/// Serves one client until both sides are done, or a fault ends it.
async fn connection(mut client: TcpStream, number: u64, watching: watch::Receiver<Faults>) {
    let born = *watching.borrow();
    let mut ending = watching.clone();
    let mut server = None;
    let end = tokio::select! {
        biased;
        ended = ending.wait_for(|faults| faults.cuts != born.cuts || faults.closings != born.closings) => match ended {
            Ok(faults) if faults.cuts == born.cuts => Ok(()),
            // An error means that the proxy is dropped, which cuts too.
            _ => Err(Broken),
        },
        end = relay(&mut client, &mut server, (number, born), watching) => end,
    };
    if let Err(Broken) = end {
        for stream in [Some(client), server].into_iter().flatten() {
            // With no time to linger, closing sends RST instead of FIN. On a closed connection there is nothing to reset.
            let _ = SockRef::from(&stream).set_linger(Some(Duration::ZERO));
        }
    }
}

/// A side is gone, or should look so: both are reset.
struct Broken;

/// Connects to the target, and carries data both ways until both have ended.
async fn relay(
    client: &mut TcpStream,
    server: &mut Option<TcpStream>,
    (number, born): (u64, Faults),
    mut watching: watch::Receiver<Faults>,
) -> Result<(), Broken> {
    let faults = *watching.wait_for(|faults| faults.mode != Mode::Stall).await.map_err(|_| Broken)?;
    if faults.mode == Mode::BlackHole {
        // The kernel has accepted; nothing more comes.
        return pending().await;
    }
    let target = faults.by_turns.filter(|_| number.is_multiple_of(2)).unwrap_or(faults.target);
    let server = TcpStream::connect((Ipv4Addr::LOCALHOST, target)).await.map(|stream| server.insert(stream));
    let server = server.map_err(|_| Broken)?;
    client.set_nodelay(true).and_then(|()| server.set_nodelay(true)).map_err(|_| Broken)?;
    let (from_client, to_client) = client.split();
    let (from_server, to_server) = server.split();
    let there = forward(Way::ToServer, from_client, to_server, born, watching.clone());
    let back = forward(Way::ToClient, from_server, to_client, born, watching);
    tokio::try_join!(there, back).map(drop)
}

/// Carries data one way until its end.
async fn forward(
    way: Way,
    mut from: ReadHalf<'_>,
    mut to: WriteHalf<'_>,
    born: Faults,
    mut watching: watch::Receiver<Faults>,
) -> Result<(), Broken> {
    let mut buffer = vec![0; 64 * 1024];
    let mut lost = false;
    let mut left = born.mute_after.filter(|_| way == Way::ToClient);
    let (tears, mut noises) = (born.tears[way as usize], born.noises[way as usize]);
    loop {
        let read = from.read(&mut buffer).await;
        let delay = watching.borrow().delay;
        if !delay.is_zero() {
            sleep(delay).await;
        }
        let faults = *watching.wait_for(|faults| faults.mode != Mode::Stall).await.map_err(|_| Broken)?;
        lost |= faults.mode.swallows(way) || left == Some(0);
        left = left.map(|left| left.saturating_sub(1));
        if let (Way::ToServer, Some(text), Ok(count)) = (way, faults.mute_at, &read) {
            lost |= buffer[..*count].windows(text.len()).any(|part| part == text.as_bytes());
        }
        match read {
            // The other side learns nothing of the end either.
            Ok(0) | Err(_) if lost => return pending().await,
            Ok(_) if lost => {}
            Ok(0) => return to.shutdown().await.map_err(|_| Broken),
            Ok(count) => {
                let piece = &mut buffer[..count];
                if faults.tears[way as usize] > tears {
                    // Whether it arrives before the reset does not matter.
                    let _ = to.write_all(&piece[..count / 2]).await;
                    return Err(Broken);
                }
                if faults.noises[way as usize] > noises {
                    noises = faults.noises[way as usize];
                    garble(piece);
                }
                to.write_all(piece).await.map_err(|_| Broken)?;
            }
            Err(_) => return Err(Broken),
        }
    }
}

/// Nothing that any of our protocols could mean: no byte is ASCII.
fn garble(piece: &mut [u8]) {
    StdRng::seed_from_u64(piece.len() as u64).fill_bytes(piece);
    piece.iter_mut().for_each(|byte| *byte |= 0x80);
}
