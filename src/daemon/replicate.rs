//! Keeps the stream going: one session after the other, with pauses that grow while it fails.

use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use super::error::DaemonError;
use super::session::Session;
use super::{Context, session};
use crate::source::Verdict;

const FIRST_PAUSE: Duration = Duration::from_millis(100);

/// Runs sessions until stopped.
///
/// # Errors
/// What only an operator can mend, if no session has run before. Later the same is logged and tried again: what is
/// cached is still served, marked as stale, as long as the configuration allows.
pub(super) async fn replicate(context: Arc<Context>, stop: CancellationToken) -> Result<(), DaemonError> {
    let mut backoff = crate::retry::forever(FIRST_PAUSE, context.config.source.reconnect_max);
    let mut session = Session::default();
    let mut waiting_for_slot = false;
    loop {
        let streamed_before = session.streamed();
        let ended = session::run(&mut session, &context, &stop).await;
        context.metrics.replication.connected(false);
        context.instance.leader(false);
        context.status.set_connected(false);
        context.orders.close();
        if stop.is_cancelled() {
            if let Err(error) = ended.or_else(|e| if e.is_cancelled() { Ok(()) } else { Err(e) }) {
                warn!(%error, "the stream ended with an error while stopping");
            }
            return Ok(());
        }
        if let Some(streamed) = session.take_streamed_for() {
            waiting_for_slot = false;
            if streamed >= context.config.source.reconnect_max {
                // What ends a session as soon as it streams would else be met again many times a second.
                backoff.reset();
            }
        }
        if let Err(ended) = ended {
            let lacks_publication = ended.is_publication_missing();
            if lacks_publication {
                session.lacked_publication(context.hierarchy.watermark.load());
            }
            match ended.verdict() {
                // What the catalog lacked at the start would have been found then: it was there, and is again, or is not now.
                Verdict::Operator { .. } if !streamed_before && !session.streamed() && !lacks_publication => {
                    return Err(DaemonError::Session(ended));
                }
                Verdict::Operator { remedy, .. } => {
                    error!(error = %ended, %remedy, "the stream has ended; trying again");
                }
                Verdict::Retry if ended.is_slot_in_use() => {
                    context.orders.slot_in_use();
                    // Whoever holds it tells nobody of the generations that it starts.
                    if let Some(l2) = &context.hierarchy.l2 {
                        l2.distrust();
                    }
                    if !waiting_for_slot {
                        info!(slot = context.config.source.slot, "another consumer holds the slot; waiting for it");
                        waiting_for_slot = true;
                    }
                }
                Verdict::Retry => warn!(error = %ended, "the stream has ended; trying again"),
            }
            context.status.set_problem(Some(ended.to_string()));
        }
        context.metrics.replication.reconnects.increment(1);
        tokio::select! {
            () = tokio::time::sleep(backoff.next()) => {}
            () = stop.cancelled() => return Ok(()),
        }
    }
}
