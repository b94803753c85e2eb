//! Visits every state that can be reached, breadth first: the first violation found has a shortest trace.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::fmt::Write as _;
use std::hash::{BuildHasherDefault, Hasher};
use std::panic::resume_unwind;
use std::rc::Rc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crate::properties::Violation;
use crate::scenario::Scenario;
use crate::world::{Step, World};

/// What an exploration found.
pub struct Report {
    pub states: usize,
    pub steps: usize,
    pub took: Duration,
    pub found: Option<CounterExample>,
}

/// The steps from the start to a violation.
pub struct CounterExample {
    pub violation: Violation,
    pub steps: Vec<Step>,
}

/// Explores everything that the scenario allows, or up to the first violation.
pub fn explore(s: &Scenario) -> Report {
    let started = Instant::now();
    let start = Rc::new(World::start(s));
    let mut numbers: HashMap<Rc<World>, u32, BuildHasherDefault<Mixer>> = HashMap::default();
    numbers.insert(Rc::clone(&start), 0);
    let mut worlds = vec![start];
    // How each state was first reached: from which, by what.
    let mut origins: Vec<Option<(u32, Step)>> = vec![None];
    let mut steps = Vec::new();
    let mut taken = 0;
    let mut at = 0;
    while at < worlds.len() {
        let world = Rc::clone(&worlds[at]);
        steps.clear();
        world.steps(s, |step| steps.push(step));
        for &step in &steps {
            taken += 1;
            match world.after(s, step) {
                Err(violation) => {
                    let steps = trace(&origins, at as u32, step);
                    return Report {
                        states: worlds.len(),
                        steps: taken,
                        took: started.elapsed(),
                        found: Some(CounterExample { violation, steps }),
                    };
                }
                Ok(next) => {
                    if let Entry::Vacant(vacant) = numbers.entry(Rc::new(next)) {
                        worlds.push(Rc::clone(vacant.key()));
                        origins.push(Some((at as u32, step)));
                        vacant.insert(worlds.len() as u32 - 1);
                    }
                }
            }
        }
        at += 1;
    }
    Report { states: worlds.len(), steps: taken, took: started.elapsed(), found: None }
}

/// Explores each of them, as many at a time as there are processors.
pub fn explore_all(scenarios: &[Scenario]) -> Vec<Report> {
    let next = AtomicUsize::new(0);
    let work = || {
        let mut mine = Vec::new();
        loop {
            let i = next.fetch_add(1, Ordering::Relaxed);
            match scenarios.get(i) {
                Some(s) => mine.push((i, explore(s))),
                None => return mine,
            }
        }
    };
    let mut done: Vec<(usize, Report)> = std::thread::scope(|scope| {
        let workers = std::thread::available_parallelism().map_or(1, usize::from).min(4);
        let running: Vec<_> = (0..workers).map(|_| scope.spawn(work)).collect();
        running.into_iter().flat_map(|worker| worker.join().unwrap_or_else(|panic| resume_unwind(panic))).collect()
    });
    done.sort_by_key(|(i, _)| *i);
    done.into_iter().map(|(_, report)| report).collect()
}

/// A line for each scenario, and their sum.
pub fn print_table(title: &str, scenarios: &[Scenario], reports: &[Report]) {
    let line = |name: &str, states: usize, steps: usize, took: Duration, found: String| {
        format!("{name:50} {states:9} states {steps:10} steps {:6.2} s  {found}\n", took.as_secs_f32())
    };
    let mut out = format!("\n--- {title}\n");
    for (s, r) in scenarios.iter().zip(reports) {
        let name = match s.without {
            Some(rule) => format!("{} without {rule:?}", s.name),
            None => s.name.to_owned(),
        };
        let found =
            r.found.as_ref().map_or("holds".to_owned(), |f| format!("{:2} steps to {}", f.steps.len(), f.violation));
        out += &line(&name, r.states, r.steps, r.took, found);
    }
    let (states, steps) = (reports.iter().map(|r| r.states).sum(), reports.iter().map(|r| r.steps).sum());
    let found = reports.iter().filter(|r| r.found.is_some()).count();
    let sum = format!("{found} of {} violated", reports.len());
    out += &line("in all", states, steps, reports.iter().map(|r| r.took).sum(), sum);
    println!("{out}");
}

fn trace(origins: &[Option<(u32, Step)>], last: u32, step: Step) -> Vec<Step> {
    let mut steps = vec![step];
    let mut at = last;
    while let Some((from, step)) = origins[at as usize] {
        steps.push(step);
        at = from;
    }
    steps.reverse();
    steps
}

impl CounterExample {
    /// The trace, a line for each step with the state after it.
    pub fn print(&self, s: &Scenario) -> String {
        let mut out = format!(
            "{}{}: {}\n",
            s.name,
            s.without.map_or(String::new(), |r| format!(" without {r:?}")),
            self.violation
        );
        let mut world = World::start(s);
        for (n, &step) in self.steps.iter().enumerate() {
            let _ = write!(out, "  {:2}. {:64}", n + 1, format!("{step:?}"));
            if let Ok(next) = world.after(s, step) {
                world = next;
                let _ = write!(out, " {world}");
            }
            out.push('\n');
        }
        out
    }
}

/// A plain multiplicative hasher: states are a hundred small numbers, and the default one is slow without optimization.
#[derive(Default)]
struct Mixer(u64);

impl Hasher for Mixer {
    fn finish(&self) -> u64 {
        let h = (self.0 ^ self.0 >> 32).wrapping_mul(0xD6E8_FEB8_6659_FD93);
        h ^ h >> 32
    }

    fn write(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.write_u8(byte);
        }
    }

    fn write_u8(&mut self, n: u8) {
        self.write_u64(u64::from(n));
    }

    fn write_u64(&mut self, n: u64) {
        self.0 = (self.0.rotate_left(5) ^ n).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    }

    fn write_usize(&mut self, n: usize) {
        self.write_u64(n as u64);
    }

    fn write_isize(&mut self, n: isize) {
        self.write_u64(n as u64);
    }
}
