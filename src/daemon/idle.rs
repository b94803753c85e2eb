//! What operators are told while this instance applies no changes.

use super::Context;
use super::orders::OrderError;
use crate::serve::admin::Refusal;

impl Context {
    /// Why changes are not applied here now; or, where they are, what is not applied yet.
    pub(super) fn waits_for(&self, leads: bool) -> String {
        let why = "this instance follows another one, or waits for the slot or for the source database";
        let behind = "this instance is behind";
        self.status.held_up().unwrap_or_else(|| if leads { behind } else { why }.to_owned())
    }

    /// What an operator is told who asks for what only an instance can do that applies changes.
    pub(super) fn not_leading(&self) -> Refusal {
        let why = self.status.held_up().map(|why| format!("this instance does not apply changes now: {why}"));
        Refusal::NotLeading(why.unwrap_or_else(|| OrderError::NotLeading.to_string()))
    }
}
