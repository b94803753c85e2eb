//! What is wrong with a configuration.

use std::time::Duration;

use super::error::Violation;

/// The violations so far.
#[derive(Default)]
pub(super) struct Violations(pub(super) Vec<Violation>);

impl Violations {
    pub(super) fn add(&mut self, field: &str, constraint: impl Into<String>) {
        self.0.push(Violation { field: field.to_owned(), constraint: constraint.into() });
    }

    pub(super) fn require(&mut self, holds: bool, field: &str, constraint: impl FnOnce() -> String) {
        if !holds {
            self.add(field, constraint());
        }
    }

    pub(super) fn positive(&mut self, field: &str, value: Duration) {
        self.require(value > Duration::ZERO, field, || "must be longer than zero".to_owned());
    }

    pub(super) fn at_least_one(&mut self, field: &str, value: usize) {
        self.require(value >= 1, field, || "must be at least 1".to_owned());
    }
}
