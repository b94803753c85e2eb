//! Failpoints, where a test kills the process, and switches that take a rule of the protocol away, to see that the
//! checks find it missing.
//!
//! Both exist only where debug assertions are on. A release build holds neither: [`reached`] and [`is_off`] compile to
//! nothing there, and a daemon for which either is configured refuses to start.
//!
//! - [`KILLS`]: a list of `name=kill@N`, `name=stop@N` or `name=wait@N`, comma-separated: the process sends itself SIGKILL,
//!   or SIGSTOP, when it reaches that point for the N-th time; or the task that reaches it waits while the file [`HOLD`]
//!   is there, and all others go on.
//! - [`WITHOUT`]: a list of rules to leave out, comma-separated.

use std::fmt::Display;

/// The environment variable that says where to die: `WALCACHE_FAILPOINTS=before-write=kill@3,leased=kill@1`.
pub const KILLS: &str = "WALCACHE_FAILPOINTS";
/// The environment variable that names the file whose removal ends a `wait`.
pub const HOLD: &str = "WALCACHE_FAILPOINT_HOLD";
/// The environment variable that says what to leave out: `WALCACHE_WITHOUT=gate,lease`.
pub const WITHOUT: &str = "WALCACHE_WITHOUT";

/// A place where the order of effects matters to what a crash leaves behind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Point {
    /// A batch has passed the gate, and none of it is in L2.
    BeforeWrite,
    /// Some scripts of a batch were acknowledged, others are still to come.
    BetweenScripts,
    /// All scripts of a batch were acknowledged; that it is done is still to be written.
    BeforeDone,
    /// A batch is done in L2, and was not confirmed to the slot.
    BeforeConfirm,
    /// A new position was confirmed.
    AfterConfirm,
    /// A batch with lookups is in L2, published or not.
    Held,
    /// A fill has not asked L2 for its leases.
    BeforeLease,
    /// A fill holds leases, and has not read Postgres.
    Leased,
    /// A fill has read Postgres, and has not published.
    BeforePublish,
    /// A fill has published.
    AfterPublish,
    /// The slot's position was read, and the slot is not held yet.
    SlotRead,
    /// The fence bears a new epoch, and the generation of before.
    Claimed,
    /// A generation was drawn, and is not in the fence.
    BeforeRaise,
    /// A generation is in the fence, and not in force in this process.
    AfterRaise,
    /// What a batch voids by tags and patterns is in the fence, and nothing else of it.
    Voided,
    /// Patterns are due to be swept, and nothing was removed for them.
    BeforeSweep,
    /// What patterns have voided is out of L2, and the patterns stand.
    Swept,
}

impl Point {
    /// All of them.
    pub const ALL: [Point; 17] = [
        Point::BeforeWrite,
        Point::BetweenScripts,
        Point::BeforeDone,
        Point::BeforeConfirm,
        Point::AfterConfirm,
        Point::Held,
        Point::BeforeLease,
        Point::Leased,
        Point::BeforePublish,
        Point::AfterPublish,
        Point::SlotRead,
        Point::Claimed,
        Point::BeforeRaise,
        Point::AfterRaise,
        Point::Voided,
        Point::BeforeSweep,
        Point::Swept,
    ];

    /// As it is written in [`KILLS`].
    pub fn name(self) -> &'static str {
        match self {
            Point::BeforeWrite => "before-write",
            Point::BetweenScripts => "between-scripts",
            Point::BeforeDone => "before-done",
            Point::BeforeConfirm => "before-confirm",
            Point::AfterConfirm => "after-confirm",
            Point::Held => "held",
            Point::BeforeLease => "before-lease",
            Point::Leased => "leased",
            Point::BeforePublish => "before-publish",
            Point::AfterPublish => "after-publish",
            Point::SlotRead => "slot-read",
            Point::Claimed => "claimed",
            Point::BeforeRaise => "before-raise",
            Point::AfterRaise => "after-raise",
            Point::Voided => "voided",
            Point::BeforeSweep => "before-sweep",
            Point::Swept => "swept",
        }
    }
}

/// A rule of the protocol that can be left out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rule {
    /// Transactions are applied only once new snapshots see them.
    Gate,
    /// A fill is published only under a lease that no event has voided.
    Lease,
    /// A value in L1 is served only if it is at or after the last event on its cell of the fence.
    L1Fence,
    /// Nothing is published before all is applied that a lookup's snapshot sees.
    Hold,
}

impl Rule {
    /// All of them.
    pub const ALL: [Rule; 4] = [Rule::Gate, Rule::Lease, Rule::L1Fence, Rule::Hold];

    /// As it is written in [`WITHOUT`].
    pub fn name(self) -> &'static str {
        match self {
            Rule::Gate => "gate",
            Rule::Lease => "lease",
            Rule::L1Fence => "fence",
            Rule::Hold => "hold",
        }
    }
}

/// Why a configuration is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FailpointError {
    /// A part that does not parse.
    #[error("{variable}: {part:?} is not of the form {form}, where the name is one of {}", .names.join(", "))]
    Form {
        /// The variable.
        variable: &'static str,
        /// What was found.
        part: String,
        /// What it should look like.
        form: &'static str,
        /// The names there are.
        names: Vec<&'static str>,
    },
    /// Only builds with debug assertions have failpoints.
    #[error("{0} is set, and this is a release build, which has no failpoints: unset it")]
    Absent(&'static str),
}

/// Takes the two variables from the environment; once, before anything runs.
///
/// # Errors
/// If one is malformed, or this build has no failpoints.
pub fn configure() -> Result<(), FailpointError> {
    for variable in [KILLS, WITHOUT] {
        let Ok(text) = std::env::var(variable) else { continue };
        if !cfg!(debug_assertions) {
            return Err(FailpointError::Absent(variable));
        }
        if variable == KILLS {
            for (point, action, nth) in parse_kills(&text)? {
                state::arm(point, action, nth);
            }
        } else {
            for rule in parse_without(&text)? {
                tracing::warn!(rule = rule.name(), "A RULE OF THE PROTOCOL IS SWITCHED OFF: answers may be stale");
                state::leave_out(rule);
            }
        }
    }
    Ok(())
}

/// Says that a point was reached. Does not return when it is the time to die there.
#[inline]
pub fn reached(point: Point) {
    if cfg!(debug_assertions) {
        state::reached(point);
    }
}

/// Whether a rule is left out.
#[inline]
pub fn is_off(rule: Rule) -> bool {
    cfg!(debug_assertions) && state::is_off(rule)
}

fn parts(text: &str) -> impl Iterator<Item = &str> {
    text.split(',').map(str::trim).filter(|part| !part.is_empty())
}

/// What the process does to itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Action {
    Kill,
    Stop,
    Wait,
}

fn parse_kills(text: &str) -> Result<Vec<(Point, Action, u64)>, FailpointError> {
    let parse = |part: &str| {
        let (name, action) = part.split_once('=')?;
        let (action, nth) = action.split_once('@')?;
        let action = match action {
            "kill" => Action::Kill,
            "stop" => Action::Stop,
            "wait" => Action::Wait,
            _ => return None,
        };
        let nth = nth.parse().ok().filter(|nth| *nth > 0)?;
        Some((Point::ALL.into_iter().find(|point| point.name() == name)?, action, nth))
    };
    let form = "name=kill@N, name=stop@N or name=wait@N with N from 1";
    parts(text)
        .map(|part| parse(part).ok_or_else(|| malformed(KILLS, part, form, Point::ALL.map(Point::name).into())))
        .collect()
}

fn parse_without(text: &str) -> Result<Vec<Rule>, FailpointError> {
    let parse = |part: &str| Rule::ALL.into_iter().find(|rule| rule.name() == part);
    parts(text)
        .map(|part| parse(part).ok_or_else(|| malformed(WITHOUT, part, "name", Rule::ALL.map(Rule::name).into())))
        .collect()
}

fn malformed(
    variable: &'static str,
    part: impl Display,
    form: &'static str,
    names: Vec<&'static str>,
) -> FailpointError {
    FailpointError::Form { variable, part: part.to_string(), form, names }
}

/// What was configured. Nothing is locked; while nothing is, a point or a rule costs one relaxed load.
mod state {
    use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};

    use super::{Action, Point, Rule};

    static ARMED: AtomicBool = AtomicBool::new(false);
    /// By point, at which time to die; 0: never.
    static NTH: [AtomicU64; Point::ALL.len()] = [const { AtomicU64::new(0) }; Point::ALL.len()];
    /// By point, the [`Action`].
    static ACTION: [AtomicU8; Point::ALL.len()] = [const { AtomicU8::new(Action::Kill as u8) }; Point::ALL.len()];
    /// By point, how often it was reached.
    static REACHED: [AtomicU64; Point::ALL.len()] = [const { AtomicU64::new(0) }; Point::ALL.len()];
    /// A bit for each rule.
    static LEFT_OUT: AtomicU8 = AtomicU8::new(0);

    pub(super) fn arm(point: Point, action: Action, nth: u64) {
        ACTION[point as usize].store(action as u8, Ordering::Relaxed);
        NTH[point as usize].store(nth, Ordering::Relaxed);
        ARMED.store(true, Ordering::Release);
    }

    pub(super) fn leave_out(rule: Rule) {
        LEFT_OUT.fetch_or(1 << rule as u8, Ordering::Relaxed);
    }

    pub(super) fn is_off(rule: Rule) -> bool {
        LEFT_OUT.load(Ordering::Relaxed) & (1 << rule as u8) != 0
    }

    pub(super) fn reached(point: Point) {
        if !ARMED.load(Ordering::Relaxed) {
            return;
        }
        let count = REACHED[point as usize].fetch_add(1, Ordering::Relaxed) + 1;
        if count == NTH[point as usize].load(Ordering::Relaxed) {
            end(point, count);
        }
    }

    fn end(point: Point, count: u64) {
        let action = ACTION[point as usize].load(Ordering::Relaxed);
        if action == Action::Wait as u8 {
            let hold = std::env::var_os(super::HOLD).map(std::path::PathBuf::from);
            tracing::warn!(point = point.name(), count, ?hold, "failpoint: this task waits");
            let there = || hold.as_ref().is_some_and(|hold| hold.exists());
            // Other tasks of this thread move on to another one.
            tokio::task::block_in_place(|| {
                while there() {
                    std::thread::sleep(std::time::Duration::from_millis(10));
                }
            });
            tracing::warn!(point = point.name(), "failpoint: it goes on");
            return;
        }
        if action == Action::Stop as u8 {
            tracing::warn!(point = point.name(), count, "failpoint: stopping this process");
            let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::STOP);
            // It may reach another thread first: this one must not go on before all are stopped.
            std::thread::sleep(std::time::Duration::from_millis(100));
            return;
        }
        tracing::warn!(point = point.name(), count, "failpoint: killing this process");
        let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
        // Not reached: the signal is delivered before the call returns. In another way the test would notice.
        std::process::abort();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_where_to_die_and_what_to_leave_out() {
        assert_eq!(
            parse_kills("before-write=kill@3, leased=stop@1,swept=wait@2").unwrap(),
            [(Point::BeforeWrite, Action::Kill, 3), (Point::Leased, Action::Stop, 1), (Point::Swept, Action::Wait, 2)]
        );
        assert_eq!(parse_kills("").unwrap(), []);
        assert_eq!(parse_without("fence,gate").unwrap(), [Rule::L1Fence, Rule::Gate]);
    }

    #[test]
    fn refuses_what_it_does_not_know_and_lists_the_names() {
        for bad in ["before-write", "before-write=kill", "before-write=kill@0", "nowhere=kill@1", "leased=hang@1"] {
            let error = parse_kills(bad).unwrap_err().to_string();
            for point in Point::ALL {
                assert!(error.contains(point.name()) && error.contains(bad), "{error}");
            }
        }
        let error = parse_without("gate,lock").unwrap_err().to_string();
        assert!(error.contains("\"lock\"") && error.contains("gate, lease, fence"), "{error}");
    }

    #[test]
    fn names_and_places_are_distinct() {
        let names: std::collections::HashSet<_> = Point::ALL.iter().map(|point| point.name()).collect();
        assert_eq!(names.len(), Point::ALL.len());
        for (i, point) in Point::ALL.into_iter().enumerate() {
            assert_eq!(point as usize, i);
        }
    }
}
