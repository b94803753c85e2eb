//! Sweeps patterns as they come: see [`crate::cache::sweep`].

use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;
use tracing::{debug, info};

use super::Context;
use crate::cache::sweep::ToSweep;

/// How often it is looked whether patterns are due, where nothing says so: the watermark has come to them, or L2 is back.
const POLL: Duration = Duration::from_secs(1);
/// After patterns have come, how long it is waited for more: one walk serves them all.
const GATHER: Duration = Duration::from_millis(50);

/// Sweeps until stopped. What fails is tried again: until then the patterns are matched by readers.
pub(super) async fn run(context: &Context, stop: &CancellationToken) {
    let voids = &context.hierarchy.voids;
    loop {
        context.sweeps.active(voids.active());
        let work = async {
            let _ = tokio::time::timeout(POLL, voids.added()).await;
            if voids.active() > 0 {
                tokio::time::sleep(GATHER).await;
                // A walk may take long.
                context.sweeps.active(voids.active());
                let due = context.hierarchy.due();
                // Whoever does not lead cannot take a pattern off L2's fence.
                if !due.is_empty() && context.orders.is_open() {
                    sweep(context, due).await;
                }
            }
        };
        tokio::select! {
            () = stop.cancelled() => return,
            () = work => {}
        }
    }
}

async fn sweep(context: &Context, due: Vec<ToSweep>) {
    let began = Instant::now();
    let rate = context.config.l2.as_ref().map_or(u32::MAX, |l2| l2.sweep_rate);
    let patterns: usize = due.iter().map(|due| due.patterns.len()).sum();
    let sweep = match context.hierarchy.sweep(due, rate).await {
        Ok(sweep) => sweep,
        Err(error) => return debug!(%error, "sweep what patterns have voided: later"),
    };
    let swept = sweep.removed;
    context.sweeps.swept(swept.l1, swept.l2);
    match context.orders.retire(sweep).await {
        Ok(()) => info!(
            patterns,
            from_l2 = swept.l2,
            from_l1 = swept.l1,
            seconds = began.elapsed().as_secs_f64(),
            "swept out what patterns have voided"
        ),
        Err(error) => debug!(%error, "retire patterns: later"),
    }
    context.sweeps.active(context.hierarchy.voids.active());
}
