//! What verbs print.
//!
//! Whoever reads it may go before all is written: `walcache tap | head`. That is no failure, and changes nothing of what a
//! verb does or how it ends; `println!` would panic. Output that is lost otherwise, as on a full disk, is a failure.

use std::fmt;
use std::io::{self, ErrorKind, Write};

use parking_lot::Mutex;

/// Why standard output could not be written, if not because nobody reads it.
static LOST: Mutex<Option<io::Error>> = Mutex::new(None);

/// Prints a line to standard output, as `println!` does; `false` if nobody reads it any more.
macro_rules! say {
    ($($text:tt)*) => { $crate::cli::output::line(format_args!($($text)*)) };
}

/// Prints a line to standard error, as `eprintln!` does.
macro_rules! note {
    ($($text:tt)*) => { $crate::cli::output::note(format_args!($($text)*)) };
}

/// See `say!`.
pub(super) fn line(text: fmt::Arguments<'_>) -> bool {
    match writeln!(io::stdout().lock(), "{text}") {
        Ok(()) => true,
        Err(error) => {
            if error.kind() != ErrorKind::BrokenPipe {
                LOST.lock().get_or_insert(error);
            }
            false
        }
    }
}

/// See `note!`.
pub(super) fn note(text: fmt::Arguments<'_>) {
    // There is no other place to complain in.
    let _ = writeln!(io::stderr().lock(), "{text}");
}

/// Why something of what was to be printed is lost, if it is.
pub(super) fn lost() -> Option<io::Error> {
    LOST.lock().take()
}
