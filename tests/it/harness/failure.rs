//! Why a test fails, told at once.

use std::io::{Write, stderr};
use std::panic;
use std::sync::Once;
use std::thread;

/// How much of a message is told at once; a log of a daemon may be part of it.
const MOST_CHARACTERS: usize = 2000;

/// Begins the message where an answer, or what is cached, was wrong. `scripts/test-it` tries no such test again.
pub const INCONSISTENT: &str = "INCONSISTENT: ";

/// From now on, a line on standard error says where and why a test panics. The test runner shows that only when all tests
/// are over, some ten minutes later, or never, if it is stopped before.
pub fn tell_at_once() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let usual = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            let thread = thread::current();
            let place = info.location().map(ToString::to_string).unwrap_or_default();
            let payload = info.payload();
            let message = payload.downcast_ref::<&str>().copied().or_else(|| Some(payload.downcast_ref::<String>()?));
            let message: String = message.unwrap_or("no message").chars().take(MOST_CHARACTERS).collect();
            // Written in one piece, and not by `eprintln`: what that prints is kept by the test runner.
            let line = format!("{}: panicked at {place}: {message}\n", thread.name().unwrap_or("a thread"));
            let _ = stderr().write_all(line.as_bytes());
            usual(info);
        }));
    });
}
