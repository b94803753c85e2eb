//! Batches that go through rounds, and rounds that want something without a batch.

use std::time::Instant;

use tokio::time::timeout;

use super::Hold;
use crate::apply::batch::Batch;
use crate::apply::{Applier, ApplyError, LookUpShape};
use crate::failpoint::{self, Point};
use crate::lsn::Lsn;

/// Waits for ever where there is no such time.
pub(in crate::apply) async fn until(then: Option<Instant>) {
    match then {
        Some(then) => tokio::time::sleep_until(then.into()).await,
        None => std::future::pending().await,
    }
}

impl<L: LookUpShape> Applier<L> {
    /// Applies a batch with lookups, or one while a round is open; gives what may be confirmed.
    pub(in crate::apply) async fn apply_in_round(&mut self, mut batch: Batch) -> Result<Option<Lsn>, ApplyError> {
        let mut published = None;
        loop {
            let cancel = self.cancel.clone();
            let answer = self.lookups.answer(&mut batch, &self.hierarchy, &self.metrics.apply);
            tokio::select! {
                () = answer => {}
                () = cancel.cancelled() => return Err(ApplyError::Cancelled),
            }
            published = self.perform(&mut batch).await?.or(published);
            failpoint::reached(Point::Held);
            self.lookups.close(&self.metrics.apply).await;
            batch = Batch::default();
            if self.lookups.deadline().is_some_and(|then| then <= Instant::now()) {
                // Batches keep coming, so nobody else looks at the clock.
                self.lookups.void_round(&mut batch, &self.hierarchy, &self.metrics.apply);
            } else if !self.lookups.are_due() {
                return Ok(published);
            }
            // What has waited is visible by now: the next round sees it all.
        }
    }

    /// When a round wants something without a batch.
    pub fn hold(&self) -> Hold {
        self.lookups.hold()
    }

    /// Does what a round wants; gives what may be confirmed.
    ///
    /// # Errors
    /// As [`Applier::apply`].
    pub async fn go_on(&mut self, hold: Hold) -> Result<Option<Lsn>, ApplyError> {
        let Some(round) = &mut self.lookups.round else { return Ok(None) };
        match hold {
            Hold::Never => Ok(None),
            Hold::Nudge => {
                round.nudged = true;
                // Else an idle server's stream would reach what the round sees only with the next heartbeat.
                let beat = self.source.query_one(include_str!("../../../sql/heartbeat.sql"), &[]);
                if let Ok(Err(e)) = timeout(self.lookups.limits.timeout, beat).await {
                    return Err(ApplyError::Source(e));
                }
                Ok(None)
            }
            Hold::Until(_) => self.give_up_round().await,
        }
    }

    /// Voids what depends on the round that is open, so that it need not be waited for; gives what may be confirmed.
    pub(in crate::apply) async fn give_up_round(&mut self) -> Result<Option<Lsn>, ApplyError> {
        if self.lookups.round.is_none() {
            return Ok(None);
        }
        let mut batch = Batch::default();
        self.lookups.void_round(&mut batch, &self.hierarchy, &self.metrics.apply);
        self.apply_in_round(batch).await
    }
}
