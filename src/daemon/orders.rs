//! What operators and upkeep want of the leader, carried out between two batches.

use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::sync::{mpsc, oneshot};

use crate::cache::sweep::Sweep;
use crate::entity::Generation;

/// One thing to do between two batches.
pub(super) enum Order {
    /// Look an entity's shape up.
    Reshape(usize),
    /// Look which entities have changed.
    LookAround,
    /// Match patterns no more that were swept.
    Retire(Sweep, oneshot::Sender<Result<(), String>>),
    /// Make everything unservable that is cached of an entity, or of all.
    Resync(Option<usize>, oneshot::Sender<Result<Generation, String>>),
}

/// Why an order was not carried out. Each may go better later.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OrderError {
    /// Only the instance that holds the slot and streams can do it.
    #[error("this instance does not apply changes now: it waits for the slot, or for the source database")]
    NotLeading,
    /// It was begun.
    #[error("{0}")]
    Failed(String),
}

/// The way to the session that streams, if one does.
#[derive(Default)]
pub(super) struct Orders(Mutex<Option<mpsc::Sender<Order>>>, Mutex<Option<Instant>>);

/// So long the slot is in use before it counts as another instance's: the server may not have noticed yet that a
/// connection of our own is gone.
const GHOST: Duration = Duration::from_secs(3);

impl Orders {
    /// Whether a session takes them: this instance applies changes.
    pub(super) fn is_open(&self) -> bool {
        self.0.lock().is_some()
    }

    /// The slot is in use, and not by this instance.
    pub(super) fn slot_in_use(&self) {
        self.1.lock().get_or_insert_with(Instant::now);
    }

    /// Whether another instance applies changes.
    pub(super) fn is_superseded(&self) -> bool {
        self.1.lock().is_some_and(|since| since.elapsed() >= GHOST)
    }

    /// A session takes orders from now on.
    pub(super) fn open(&self, sender: mpsc::Sender<Order>) {
        *self.1.lock() = None;
        *self.0.lock() = Some(sender);
    }

    /// No session does.
    pub(super) fn close(&self) {
        *self.0.lock() = None;
    }

    /// Has an entity's shape looked up soon, if a session streams and has nothing else to do.
    pub(super) fn reshape(&self, entity: usize) {
        if let Some(sender) = &*self.0.lock() {
            // If it is full, what is in it comes first; whoever asks will ask again.
            let _ = sender.try_send(Order::Reshape(entity));
        }
    }

    /// Makes everything unservable that is cached of an entity, or of all; says in which generation they are now.
    pub(super) async fn resync(&self, entity: Option<usize>) -> Result<Generation, OrderError> {
        self.ask(|reply| Order::Resync(entity, reply)).await
    }

    /// Takes swept patterns off the list, and off L2's fence.
    pub(super) async fn retire(&self, swept: Sweep) -> Result<(), OrderError> {
        self.ask(|reply| Order::Retire(swept, reply)).await
    }

    async fn ask<T>(&self, order: impl FnOnce(oneshot::Sender<Result<T, String>>) -> Order) -> Result<T, OrderError> {
        let sender = self.0.lock().clone().ok_or(OrderError::NotLeading)?;
        let (reply, answer) = oneshot::channel();
        sender.send(order(reply)).await.map_err(|_| OrderError::NotLeading)?;
        match answer.await {
            Ok(done) => done.map_err(OrderError::Failed),
            // The session ended before it came to it.
            Err(_) => Err(OrderError::NotLeading),
        }
    }
}
