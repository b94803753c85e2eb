//! The table.

use std::fs;
use std::process::Command;

/// What is printed at the end.
#[derive(Default)]
pub struct Report {
    rows: Vec<[String; 6]>,
    missed: usize,
}

/// A figure to reach.
#[derive(Debug, Clone, Copy)]
pub enum Aim {
    /// The ratio to the limit.
    Ratio(f64),
    /// The ratio to the limit, where less is better.
    AtMost(f64),
    /// The figure itself, to stay below; with its unit.
    Below(f64, &'static str),
}

/// A figure with what it is measured against.
pub struct Figure<'a> {
    /// What was measured.
    pub what: &'a str,
    /// Of walcache.
    pub ours: f64,
    /// The same of the limit, and what that is.
    pub limit: Option<(f64, &'a str)>,
    /// Of both.
    pub unit: &'a str,
    /// What it should be.
    pub aim: Option<Aim>,
}

const HEAD: [&str; 6] = ["measure", "walcache", "limit", "ratio", "aim", ""];

impl Report {
    /// Adds a figure.
    pub fn figure(&mut self, figure: &Figure<'_>) {
        let Figure { what, ours, limit, unit, aim } = figure;
        let ratio = limit.map(|(limit, _)| ours / limit);
        let met = aim.map(|aim| match aim {
            Aim::Ratio(least) => ratio.is_some_and(|ratio| ratio >= least),
            Aim::AtMost(most) => ratio.is_some_and(|ratio| ratio <= most),
            Aim::Below(most, _) => *ours < most,
        });
        self.missed += usize::from(met == Some(false));
        self.rows.push([
            (*what).to_owned(),
            format!("{} {unit}", number(*ours)),
            limit.map(|(limit, of)| format!("{} {unit} ({of})", number(limit))).unwrap_or_default(),
            ratio.map(|ratio| format!("{ratio:.2}")).unwrap_or_default(),
            aim.map(|aim| aim.to_string()).unwrap_or_default(),
            met.map(|met| if met { "met" } else { "MISSED" }.to_owned()).unwrap_or_default(),
        ]);
    }

    /// Adds a line that explains figures: of walcache, and of the limit.
    pub fn detail(&mut self, what: &str, ours: String, limit: String) {
        self.rows.push([format!("  {what}"), ours, limit, String::new(), String::new(), String::new()]);
    }

    /// Prints the machine, then the table.
    pub fn print(&self, machine: &str) {
        println!("{machine}");
        let head = HEAD.map(str::to_owned);
        let width = |column: usize| {
            let cells = std::iter::once(&head).chain(&self.rows).map(|row| row[column].chars().count());
            cells.max().unwrap_or(0)
        };
        let widths: [usize; 6] = std::array::from_fn(width);
        let print = |row: &[String; 6]| {
            let cells: Vec<String> = row.iter().zip(widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
            println!("{}", cells.join("  ").trim_end());
        };
        print(&head);
        print(&widths.map(|width| "-".repeat(width)));
        self.rows.iter().for_each(print);
        if self.missed > 0 {
            println!("{} aim(s) missed", self.missed);
        }
    }
}

impl std::fmt::Display for Aim {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Aim::Ratio(least) => write!(f, "ratio >= {least:.2}"),
            Aim::AtMost(most) => write!(f, "ratio <= {most:.2}"),
            Aim::Below(most, unit) => write!(f, "< {most} {unit}"),
        }
    }
}

/// Two decimals of a small number; a larger one without, and with its thousands apart.
pub fn number(value: f64) -> String {
    if value < 100.0 {
        return format!("{value:.2}");
    }
    let digits = format!("{value:.0}");
    let groups: Vec<&str> = digits.as_bytes().rchunks(3).rev().filter_map(|g| std::str::from_utf8(g).ok()).collect();
    groups.join(",")
}

/// One line about what this ran on.
pub fn machine(servers: &[(String, &str)]) -> String {
    let read = |path| fs::read_to_string(path).unwrap_or_default();
    let field = |text: &str, name: &str| {
        let line = text.lines().find(|line| line.starts_with(name));
        line.and_then(|line| line.split_once(':')).map(|(_, value)| value.trim().to_owned()).unwrap_or_default()
    };
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let kib: f64 = field(&read("/proc/meminfo"), "MemTotal").trim_end_matches(" kB").parse().unwrap_or(0.0);
    let load = read("/proc/loadavg").split(' ').next().unwrap_or_default().to_owned();
    let mut line = format!(
        "{cores} cores ({}), {:.0} GiB, Linux {}, load before {load}",
        field(&read("/proc/cpuinfo"), "model name"),
        kib / 1048576.0,
        read("/proc/sys/kernel/osrelease").trim(),
    );
    for (program, argument) in servers {
        // nginx writes its version to standard error.
        let said = Command::new(program).arg(argument).output().map(|o| [o.stdout, o.stderr].concat());
        let said = String::from_utf8_lossy(&said.unwrap_or_default()).into_owned();
        line.push_str("; ");
        let said = said.lines().next().unwrap_or_default();
        // Redis goes on with how it was built.
        line.push_str(said.split(" sha=").next().unwrap_or_default().trim_start_matches("nginx version: "));
    }
    line
}
