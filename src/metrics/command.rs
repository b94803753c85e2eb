//! Metrics of the application's commands.

use metrics::{Counter, counter, describe_counter};

use super::label::{Command, Commanded};

const COMMANDS: &str = "walcache_commands_total";

pub(super) fn describe() {
    describe_counter!(COMMANDS, "Keys (or whole entities) in applications' commands, by what became of them.");
}

/// Metrics of the application's commands.
#[derive(Clone)]
pub struct CommandMetrics([[Counter; Commanded::ALL.len()]; Command::ALL.len()]);

impl CommandMetrics {
    /// Handles.
    #[allow(clippy::new_without_default, reason = "it registers metrics, which a default should not")]
    pub fn new() -> Self {
        let count = |command, result| counter!(COMMANDS, "command" => command, "result" => result);
        CommandMetrics(Command::ALL.map(|(_, command)| Commanded::ALL.map(|(_, result)| count(command, result))))
    }

    /// Counts a key that a command names, or a command without one.
    pub fn count(&self, command: Command, result: Commanded) {
        self.0[command as usize][result as usize].increment(1);
    }
}
