//! The one place that knows the `backoff` crate: jittered exponential pauses between tries.
//!
//! The crate is no longer maintained (RUSTSEC-2025-0012); what is used of it is this small and has no successor.

use std::time::Duration;

use backoff::backoff::Backoff as _;
use backoff::{ExponentialBackoff, ExponentialBackoffBuilder};

/// Pauses that grow from one try to the next, without end.
#[derive(Debug)]
pub struct Backoff(ExponentialBackoff);

/// Pauses from `least` to `most`, doubled each time and jittered by half, for loops that never give up.
pub fn forever(least: Duration, most: Duration) -> Backoff {
    Backoff(
        ExponentialBackoffBuilder::new()
            .with_initial_interval(least)
            .with_max_interval(most)
            .with_multiplier(2.0)
            .with_randomization_factor(0.5)
            .with_max_elapsed_time(None)
            .build(),
    )
}

impl Backoff {
    /// The pause before the next try.
    #[allow(clippy::should_implement_trait, reason = "it is no iterator: it never ends")]
    pub fn next(&mut self) -> Duration {
        // Without a limit of elapsed time there is always a next one.
        self.0.next_backoff().unwrap_or(self.0.max_interval)
    }

    /// Starts over after a success.
    pub fn reset(&mut self) {
        self.0.reset();
    }
}
