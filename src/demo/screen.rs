//! What is shown: a block that is drawn anew each second on a terminal, lines elsewhere.

use std::io::{self, IsTerminal, Write};
use std::time::Duration;

use super::meter::Span;

/// Characters of the bar that stands for all reads.
const BAR: usize = 32;

/// Rows of the table under one head.
const HEAD_EVERY: usize = 20;

const EVENTS: &str = "walcache_replication_events_total";
const VISIBLE: &str = "walcache_commit_to_visible_seconds";
const LAG_BYTES: &str = "walcache_replication_lag_bytes";
const LAG_SECONDS: &str = "walcache_replication_lag_seconds";
const LOOKUPS: &str = "walcache_cache_requests_total";
const FILLS: &str = "walcache_fills_total";
const REQUESTS: &str = "walcache_http_requests_total";

/// Standard output.
pub struct Screen {
    /// Draw in place.
    live: bool,
    color: bool,
    utf8: bool,
    /// Lines of the block that is drawn.
    drawn: usize,
    /// Rows of the table that are printed.
    drawn_lines: usize,
}

/// One second.
pub struct Second<'a> {
    /// Since the writers started.
    pub elapsed: Duration,
    /// The last second.
    pub now: Span<'a>,
    /// Enough of the past for quantiles.
    pub recent: Span<'a>,
    /// Since the start.
    pub all: Span<'a>,
    /// Transactions of the writer, in the last second and in all.
    pub transactions: (f64, u64),
    /// Checks: reads of one's own writes, reads in order, and how many did not hold.
    pub checks: (u64, u64, u64),
    /// The row that is left to whoever watches.
    pub yours: String,
}

impl Screen {
    /// `lines` keeps from drawing in place.
    pub fn new(lines: bool) -> Self {
        let terminal = io::stdout().is_terminal() && std::env::var_os("TERM").is_none_or(|term| term != "dumb");
        let locale =
            ["LC_ALL", "LC_CTYPE", "LANG"].iter().find_map(|name| std::env::var(name).ok().filter(|v| !v.is_empty()));
        let utf8 = locale.is_some_and(|locale| locale.to_lowercase().replace('-', "").contains("utf8"));
        let color = terminal && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
        Screen { live: terminal && !lines, color, utf8, drawn: 0, drawn_lines: 0 }
    }

    /// Prints a line that stays. Whoever has closed our output does not read it.
    pub fn say(&mut self, line: &str) {
        self.drawn = 0;
        // Ctrl-C leaves its echo at the beginning of the line.
        let clear = if self.live { "\r\x1b[K" } else { "" };
        let _ = writeln!(io::stdout(), "{clear}{line}");
    }

    /// A label and a command, which may have several lines.
    pub fn command(&mut self, label: &str, command: &str) {
        let mut label = label;
        for part in command.lines() {
            let line = format!("  {}  {}", self.dim(&format!("{label:<8}")), self.bold(part));
            self.say(&line);
            label = "";
        }
    }

    /// Text in bold.
    pub fn bold(&self, text: &str) -> String {
        self.styled("1", text)
    }

    /// Text that recedes.
    pub fn dim(&self, text: &str) -> String {
        self.styled("2", text)
    }

    /// Text that says that all is well, or that it is not.
    pub fn verdict(&self, well: bool, text: &str) -> String {
        self.styled(if well { "1;32" } else { "1;31" }, text)
    }

    fn styled(&self, code: &str, text: &str) -> String {
        if self.color { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }

    /// Shows a second.
    pub fn show(&mut self, second: &Second<'_>) {
        if !self.live {
            return self.line(second);
        }
        let block = self.block(second);
        // Up to where the last one began. No wrapping while it is drawn: a wrapped line would be counted as one.
        let mut text = String::from("\x1b[?7l\r");
        if self.drawn > 0 {
            text.push_str(&format!("\x1b[{}A", self.drawn));
        }
        for line in &block {
            text.push_str(&format!("\x1b[K{line}\n"));
        }
        text.push_str("\x1b[J\x1b[?7h");
        self.drawn = block.len();
        let mut out = io::stdout();
        let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
    }

    fn block(&self, s: &Second<'_>) -> Vec<String> {
        let row = |label: &str, text: String| format!("  {}  {text}", self.dim(&format!("{label:<8}")));
        let rated = |rate: f64, text: String| format!("{:<9}  {text}", format!("{}/s", thousands(rate)));
        let kinds = ["insert", "update", "delete", "truncate"]
            .map(|op| format!("{op} {}", self.bold(&thousands(s.all.grown(EVENTS, &[("op", op)])))));
        let total = |name, labels: &[(&str, &str)]| self.bold(&thousands(s.all.grown(name, labels)));
        let mut lines = vec![
            row(
                "written",
                rated(
                    s.transactions.0,
                    format!(
                        "{} transactions in {} s",
                        self.bold(&thousands(s.transactions.1 as f64)),
                        s.elapsed.as_secs()
                    ),
                ),
            ),
            row("events", rated(per_second(s, EVENTS), kinds.join("  "))),
            row("visible", format!("{}  from commit until every read shows it", self.bold(&visible(&s.recent)))),
            row("lag", lag(s)),
            String::new(),
            row("read", rated(per_second(s, REQUESTS), format!("{} requests", total(REQUESTS, &[])))),
        ];
        for (name, share) in ["memory", "Redis", "Postgres"].into_iter().zip(shares(&s.now)) {
            let bar = if self.utf8 { "█" } else { "#" }.repeat((share * BAR as f64).round() as usize);
            lines.push(row("", format!("{name:<9}  {:>5.1} %  {}", share * 100.0, self.styled("36", &bar))));
        }
        let fills = format!(
            "{} rows from Postgres; {} overtaken by a change, not kept",
            total(FILLS, &[]),
            total(FILLS, &[("result", "voided")])
        );
        let (own, order, violated) = s.checks;
        let held = if violated == 0 { "none violated".to_owned() } else { format!("{violated} VIOLATED") };
        let checks = format!(
            "{} reads of own writes, {} reads that must not go backwards: {}",
            thousands(own as f64),
            thousands(order as f64),
            self.verdict(violated == 0, &held)
        );
        lines.extend([
            row("filled", rated(per_second(s, FILLS), fills)),
            String::new(),
            row("checked", checks),
            row("yours", s.yours.clone()),
        ]);
        lines
    }

    /// One row of a table, under its head now and then.
    fn line(&mut self, s: &Second<'_>) {
        if self.drawn_lines.is_multiple_of(HEAD_EVERY) {
            self.say(
                "   s   tx/s  events/s  visible p50       p99  lag bytes  reads/s  memory  Redis  Postgres  fills/s",
            );
        }
        self.drawn_lines += 1;
        let [memory, redis, postgres] = shares(&s.now).map(|share| format!("{:.1}%", share * 100.0));
        let [p50, p99] = quantiles(&s.recent);
        let line = format!(
            "{:>4}  {:>5}  {:>8}  {p50:>11}  {p99:>8}  {:>9}  {:>7}  {memory:>6}  {redis:>5}  {postgres:>8}  {:>7}",
            s.elapsed.as_secs(),
            thousands(s.transactions.0),
            thousands(per_second(s, EVENTS)),
            thousands(lag_bytes(s)),
            thousands(per_second(s, REQUESTS)),
            thousands(per_second(s, FILLS)),
        );
        self.say(&line);
    }
}

/// By how much a counter grew in the last second, per second.
fn per_second(s: &Second<'_>, name: &str) -> f64 {
    let from = s.now.from.map_or(s.elapsed, |from| s.now.to.at.duration_since(from.at));
    s.now.grown(name, &[]) / from.as_secs_f64().max(0.001)
}

/// The shares of memory, Redis and Postgres in the answers; zeros without any.
pub fn shares(span: &Span<'_>) -> [f64; 3] {
    let hits =
        |tier| ["hit", "stale"].map(|result| span.grown(LOOKUPS, &[("tier", tier), ("result", result)])).iter().sum();
    let answers: [f64; 3] = [hits("l1"), hits("l2"), span.grown(LOOKUPS, &[("tier", "source")])];
    let all: f64 = answers.iter().sum();
    answers.map(|answers| if all > 0.0 { answers / all } else { 0.0 })
}

/// Quantiles of the time from commit to visibility.
pub fn visible(span: &Span<'_>) -> String {
    let [p50, p99] = quantiles(span);
    format!("p50 {p50}  p99 {p99}")
}

fn quantiles(span: &Span<'_>) -> [String; 2] {
    [0.5, 0.99].map(|share| span.quantile(VISIBLE, share).map_or("-".to_owned(), milliseconds))
}

/// Requests answered.
pub fn requests(span: &Span<'_>) -> f64 {
    span.grown(REQUESTS, &[])
}

/// Row changes and truncations received.
pub fn events(span: &Span<'_>) -> f64 {
    span.grown(EVENTS, &[])
}

fn lag_bytes(s: &Second<'_>) -> f64 {
    s.now.to.sum(LAG_BYTES, &[("kind", "applied")])
}

fn lag(s: &Second<'_>) -> String {
    let seconds = Duration::from_secs_f64(s.now.to.sum(LAG_SECONDS, &[]).max(0.0));
    format!("{} bytes of log, {}", thousands(lag_bytes(s)), milliseconds(seconds))
}

/// A duration in milliseconds.
pub fn milliseconds(duration: Duration) -> String {
    let ms = duration.as_secs_f64() * 1000.0;
    if ms < 10.0 { format!("{ms:.1} ms") } else { format!("{ms:.0} ms") }
}

/// A count with its thousands apart.
pub fn thousands(count: f64) -> String {
    let digits = format!("{:.0}", count.max(0.0));
    let mut text = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i) % 3 == 0 {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_readable() {
        let texts = [0.0, 999.4, 1000.0, 1_234_567.0].map(thousands);
        assert_eq!(texts, ["0", "999", "1,000", "1,234,567"]);
        assert_eq!(milliseconds(Duration::from_micros(1240)), "1.2 ms");
        assert_eq!(milliseconds(Duration::from_micros(15_600)), "16 ms");
    }
}
