//! Applying what the stream brings, and what others order meanwhile.

use tokio::sync::mpsc;

use crate::apply::Applier;
use crate::apply::batch::Batch;
use crate::apply::lookup::Hold;
use crate::capture::stream::Progress;
use crate::daemon::error::SessionError;
use crate::daemon::orders::Order;
use crate::daemon::shapes::Catalog;

/// Applies batches until their sender is gone, and lets capture confirm them.
pub(super) async fn apply(
    mut applier: Applier<Catalog>,
    mut batches: mpsc::Receiver<Batch>,
    mut orders: mpsc::Receiver<Order>,
    progress: &Progress,
) -> Result<(), SessionError> {
    let mut ordered = false;
    loop {
        // Orders may come as fast as they are done: a batch that waits goes before the next one.
        if std::mem::take(&mut ordered)
            && let Ok(batch) = batches.try_recv()
        {
            if let Some(lsn) = applier.apply(batch).await? {
                progress.apply(lsn);
            }
            continue;
        }
        let hold = applier.hold();
        tokio::select! {
            biased;
            Some(order) = orders.recv() => {
                ordered = true;
                carry_out(&mut applier, order).await?;
            }
            connection = applier.l2_returned() => applier.rejoin(connection).await?,
            batch = batches.recv() => {
                let Some(batch) = batch else { return Ok(()) };
                if let Some(lsn) = applier.apply(batch).await? {
                    progress.apply(lsn);
                }
            }
            // Last: a batch that is there already may be all that it needs.
            () = wanted(hold) => if let Some(lsn) = applier.go_on(hold).await? {
                progress.apply(lsn);
            },
        }
    }
}

/// Does what somebody asks for between two batches.
async fn carry_out(applier: &mut Applier<Catalog>, order: Order) -> Result<(), SessionError> {
    match order {
        Order::Reshape(entity) => applier.reshape(entity).await?,
        Order::LookAround => applier.look_around().await?,
        Order::Retire(swept, reply) => {
            let done = applier.retire(&swept).await;
            let said = match &done {
                Ok(true) => Ok(()),
                Ok(false) => Err("L2 is not reached any more as it was when it was swept".to_owned()),
                Err(error) => Err(error.to_string()),
            };
            // Whoever asked may have gone away.
            let _ = reply.send(said);
            done?;
        }
        Order::Resync(entity, reply) => {
            let done = applier.resync(entity).await;
            // Whoever asked may have gone away.
            let _ = reply.send(done.as_ref().copied().map_err(ToString::to_string));
            done?;
        }
    }
    Ok(())
}

/// Waits until a round of lookups wants something.
async fn wanted(hold: Hold) {
    match hold {
        Hold::Never => std::future::pending().await,
        Hold::Nudge => {}
        Hold::Until(then) => tokio::time::sleep_until(then.into()).await,
    }
}
