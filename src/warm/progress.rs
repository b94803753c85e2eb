//! How far warming has come, as operators see it.

use serde::{Deserialize, Serialize};

use crate::cache::fill::Ahead;

/// Why an entity is warmed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Trigger {
    /// This instance has begun to apply changes.
    Start,
    /// A new generation of the entity has begun.
    Generation,
    /// It is time again.
    Schedule,
    /// An application asked for it, in the log.
    Command,
    /// An operator asked for it.
    Operator,
}

/// Where a job stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// It is under way, or waits.
    Running,
    /// All is warmed.
    Done,
    /// It could not go on.
    Failed,
    /// An operator has ended it, or the daemon stops.
    Cancelled,
}

/// What a job is at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// Keys that were read most.
    Hot,
    /// Keys in their order.
    Keys,
}

/// How far one job has come. All counts are of keys, since the generation began that is being warmed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Progress {
    /// The job's number, which no other one has, of another process neither.
    pub job: u64,
    /// The entity's name.
    pub entity: String,
    /// Why it is warmed.
    pub trigger: Trigger,
    /// Where it stands.
    pub state: State,
    /// What it is at.
    pub phase: Phase,
    /// What it waits for.
    pub waits_for: Option<String>,
    /// Why it failed.
    pub error: Option<String>,
    /// Whether it goes on from where another one was interrupted.
    pub resumed: bool,
    /// How many keys are to be warmed in all, as Postgres' planner estimates them; not known at first.
    pub total: Option<u64>,
    /// How many were.
    pub done: u64,
    /// Read from Postgres and cached.
    pub filled: u64,
    /// Those of them that have no row.
    pub absent: u64,
    /// Cached already.
    pub present: u64,
    /// Read, and not cached.
    pub unkept: u64,
    /// Not read.
    pub failed: u64,
    /// That can be no keys of the entity.
    pub strange: u64,
    /// How long it has run, in seconds.
    pub seconds: f64,
}

impl Progress {
    /// Of a job that begins.
    pub fn new(job: u64, entity: &str, trigger: Trigger) -> Self {
        Progress {
            job,
            entity: entity.to_owned(),
            trigger,
            state: State::Running,
            phase: Phase::Keys,
            waits_for: None,
            error: None,
            resumed: false,
            total: None,
            done: 0,
            filled: 0,
            absent: 0,
            present: 0,
            unkept: 0,
            failed: 0,
            strange: 0,
            seconds: 0.0,
        }
    }

    /// Adds what became of keys.
    pub fn add(&mut self, ahead: &Ahead) {
        let Ahead { filled, absent, present, unkept, failed, .. } = ahead;
        self.done += filled + present + unkept + failed;
        self.filled += filled;
        self.absent += absent;
        self.present += present;
        self.unkept += unkept;
        self.failed += failed;
    }

    /// How many are still to come, as far as that is known.
    pub fn remaining(&self) -> u64 {
        self.total.map_or(0, |total| total.saturating_sub(self.done))
    }
}
