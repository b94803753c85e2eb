//! Faults, drawn from a seed: each blow says all that chance decides about it, so that the schedule does not depend on
//! how the run goes.

use std::fmt;
use std::time::Duration;

use rand::Rng;
use rand::rngs::StdRng;
use walcache::failpoint::Point;

/// What is done to the daemon, to a server or to the network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    Kill,
    /// Killed by itself at a failpoint.
    Failpoint(Point),
    Terminate,
    /// Paused; another takes over; then it is resumed.
    TakeOver,
    RedisEmptied,
    RedisOldDump,
    RedisPaused,
    RedisFlushed,
    RedisFull,
    RedisEvicting,
    RedisFenceLost,
    RedisEvicted,
    PostgresCrash,
    PostgresPaused,
    WalsendersEnded,
    Truncate,
    /// A column comes or goes.
    Ddl,
    Cut(Way),
    Stalled(Way),
    Delayed(Way),
    BlackHole(Way),
}

/// A network that the daemon needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    ToPostgres,
    ToRedis,
}

/// One fault and how it goes.
#[derive(Debug, Clone, Copy)]
pub struct Blow {
    pub fault: Fault,
    /// How long what lasts does.
    pub lasts: Duration,
    /// At which time a failpoint is the one.
    pub nth: u64,
    /// One of two ways to go on.
    pub coin: bool,
    /// Transactions and reads to wait for afterwards, where the next blow does not fall at once.
    pub respite: Option<u64>,
}

impl Fault {
    /// All of them, the failpoints counted as one.
    const KINDS: usize = 25;

    fn draw(kind: usize, rng: &mut StdRng) -> Fault {
        let point = Point::ALL[rng.random_range(0..Point::ALL.len())];
        let way = [Way::ToPostgres, Way::ToRedis][kind % 2];
        match kind {
            0 => Fault::Kill,
            1 => Fault::Terminate,
            2 => Fault::TakeOver,
            3 => Fault::RedisEmptied,
            4 => Fault::RedisOldDump,
            5 => Fault::RedisPaused,
            6 => Fault::RedisFlushed,
            7 => Fault::RedisFull,
            8 => Fault::RedisEvicting,
            9 => Fault::RedisFenceLost,
            10 => Fault::RedisEvicted,
            11 => Fault::PostgresCrash,
            12 => Fault::PostgresPaused,
            13 => Fault::WalsendersEnded,
            14 => Fault::Truncate,
            15 => Fault::Failpoint(point),
            16 | 17 => Fault::Cut(way),
            18 | 19 => Fault::Stalled(way),
            20 | 21 => Fault::Delayed(way),
            24 => Fault::Ddl,
            _ => Fault::BlackHole(way),
        }
    }

    /// Its kind, as the tally has it.
    pub fn name(self) -> String {
        format!("{self:?}")
    }
}

/// The blows to come: each kind once before any comes again, in an order of chance.
pub struct Schedule {
    rng: StdRng,
    left: Vec<usize>,
}

impl Schedule {
    /// The schedule of a seed.
    pub fn new(rng: StdRng) -> Self {
        Schedule { rng, left: Vec::new() }
    }

    /// How many blows until all is compared again.
    pub fn round(&mut self) -> usize {
        self.rng.random_range(3..7)
    }
}

impl Iterator for Schedule {
    type Item = Blow;

    fn next(&mut self) -> Option<Blow> {
        if self.left.is_empty() {
            self.left = (0..Fault::KINDS).collect();
        }
        let rng = &mut self.rng;
        let kind = self.left.swap_remove(rng.random_range(0..self.left.len()));
        Some(Blow {
            fault: Fault::draw(kind, rng),
            lasts: Duration::from_millis(rng.random_range(10..700)),
            nth: rng.random_range(1..12),
            coin: rng.random(),
            respite: rng.random_bool(0.6).then(|| rng.random_range(5..60)),
        })
    }
}

impl fmt::Display for Blow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:?} for {:?} (nth {}, coin {}, then {:?})",
            self.fault, self.lasts, self.nth, self.coin, self.respite
        )
    }
}

#[test]
fn a_seed_gives_its_schedule_and_every_kind_comes() {
    use rand::SeedableRng;
    let blows = |seed| -> Vec<String> {
        Schedule::new(StdRng::seed_from_u64(seed)).take(Fault::KINDS).map(|blow| blow.to_string()).collect()
    };
    assert_eq!(blows(7), blows(7));
    assert_ne!(blows(7), blows(8));
    let kinds: std::collections::HashSet<_> =
        Schedule::new(StdRng::seed_from_u64(7)).take(Fault::KINDS).map(|b| b.fault.name()).collect();
    assert_eq!(kinds.len(), Fault::KINDS);
}
