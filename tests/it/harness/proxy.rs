//! A TCP proxy that breaks the network on request.

use std::future::pending;
use std::net::Ipv4Addr;
use std::time::Duration;

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

#[derive(Debug, Clone, Copy)]
struct Faults {
    mode: Mode,
    /// Added to every piece of data, in each direction.
    delay: Duration,
    /// Raised by each cut.
    cuts: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    Forward,
    /// Data is held back, and goes on when healed.
    Stall,
    /// Data is lost; a connection that lost some stays silent for ever, healed or not.
    BlackHole,
    /// Nobody listens.
    Refuse,
}

impl Proxy {
    /// Starts forwarding to `target`, in tasks of the current runtime.
    pub async fn start(target: u16) -> Proxy {
        let (faults, watching) = watch::channel(Faults { mode: Mode::Forward, delay: Duration::ZERO, cuts: 0 });
        // Not an ephemeral port, for `refuse`: see `free_port`.
        let (port, listener) = loop {
            let port = free_port();
            if let Ok(listener) = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).await {
                break (port, listener);
            }
        };
        tokio::spawn(accept(listener, port, target, watching));
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

    /// Swallows all data of existing and new connections, which stay open: a peer that is gone without a word.
    pub fn black_hole(&self) {
        self.faults.send_modify(|faults| faults.mode = Mode::BlackHole);
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

    /// Forwards again, without delay. Connections that lost data in a black hole stay silent until they are cut.
    pub fn heal(&self) {
        self.faults.send_modify(|faults| {
            faults.mode = Mode::Forward;
            faults.delay = Duration::ZERO;
        });
    }
}

/// Accepts until the [`Proxy`] is dropped.
async fn accept(listener: TcpListener, port: u16, target: u16, mut watching: watch::Receiver<Faults>) {
    let mut listener = Some(listener);
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
                tokio::spawn(connection(client, target, watching.clone()));
            }
        }
    }
}

/// Serves one client until both sides are done, or a cut.
async fn connection(mut client: TcpStream, target: u16, watching: watch::Receiver<Faults>) {
    let cuts = watching.borrow().cuts;
    let mut cut = watching.clone();
    let mut server = None;
    let end = tokio::select! {
        biased;
        // An error means that the proxy is dropped, which cuts too.
        _ = cut.wait_for(|faults| faults.cuts != cuts) => Err(Broken),
        end = relay(&mut client, &mut server, target, watching) => end,
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

/// Connects to `target`, and carries data both ways until both have ended.
async fn relay(
    client: &mut TcpStream,
    server: &mut Option<TcpStream>,
    target: u16,
    mut watching: watch::Receiver<Faults>,
) -> Result<(), Broken> {
    if watching.wait_for(|faults| faults.mode != Mode::Stall).await.map_err(|_| Broken)?.mode == Mode::BlackHole {
        // The kernel has accepted; nothing more comes.
        return pending().await;
    }
    let server = server.insert(TcpStream::connect((Ipv4Addr::LOCALHOST, target)).await.map_err(|_| Broken)?);
    client.set_nodelay(true).and_then(|()| server.set_nodelay(true)).map_err(|_| Broken)?;
    let (from_client, to_client) = client.split();
    let (from_server, to_server) = server.split();
    let there = forward(from_client, to_server, watching.clone());
    let back = forward(from_server, to_client, watching);
    tokio::try_join!(there, back).map(drop)
}

/// Carries data one way until its end.
async fn forward(
    mut from: ReadHalf<'_>,
    mut to: WriteHalf<'_>,
    mut watching: watch::Receiver<Faults>,
) -> Result<(), Broken> {
    let mut buffer = vec![0; 64 * 1024];
    let mut lost = false;
    loop {
        let read = from.read(&mut buffer).await;
        let delay = watching.borrow().delay;
        if !delay.is_zero() {
            sleep(delay).await;
        }
        let faults = *watching.wait_for(|faults| faults.mode != Mode::Stall).await.map_err(|_| Broken)?;
        lost |= faults.mode == Mode::BlackHole;
        match read {
            // The other side learns nothing of the end either.
            Ok(0) | Err(_) if lost => return pending().await,
            Ok(_) if lost => {}
            Ok(0) => return to.shutdown().await.map_err(|_| Broken),
            Ok(count) => to.write_all(&buffer[..count]).await.map_err(|_| Broken)?,
            Err(_) => return Err(Broken),
        }
    }
}
