//! Looking for input that a decoder or the renderer cannot take: valid input, mutated.
//!
//! `cargo test` tries some hundred cases of each property; with `PROPTEST_CASES` as many as that, and with
//! `WALCACHE_FUZZ_SECONDS` as many as come in that time, which are counted on standard output.

use std::cell::Cell;
use std::time::{Duration, Instant};

use proptest::prelude::*;
use proptest::sample::Index;
use proptest::test_runner::{Config, TestCaseError, TestRunner};

/// Something done to the messages of a stream.
#[derive(Debug, Clone)]
pub(crate) enum Edit {
    /// One bit is another.
    Flip(Index, Index, u8),
    /// One byte is another.
    Set(Index, Index, u8),
    /// What may be a length or a count is another: as many of the bytes as the flag says.
    Length(Index, Index, i32, bool),
    /// Bytes come in between.
    Insert(Index, Index, Vec<u8>),
    /// Bytes are missing.
    Remove(Index, Index, usize),
    /// The end is missing.
    Cut(Index, Index),
    /// The end is that of another message.
    Splice(Index, Index, Index, Index),
    /// A message comes twice.
    Double(Index),
    /// A message is missing.
    Drop(Index),
    /// Two messages change places.
    Swap(Index, Index),
}

/// Edits; `words` are what the format has a meaning for.
pub(crate) fn edits(words: &'static [&'static [u8]]) -> impl Strategy<Value = Vec<Edit>> {
    let index = any::<Index>;
    let byte = || prop_oneof![any::<u8>(), proptest::sample::select(b"\0\x01\x7f\x80\xff\"\\{}()[],:".to_vec())];
    let length = proptest::sample::select(vec![-1, 0, 1, 2, 255, 256, 0x7FFF, 0x8000, 0xFFFF, i32::MAX, i32::MIN]);
    let bytes = proptest::collection::vec(byte(), 0..8);
    let bytes = prop_oneof![bytes, proptest::sample::select(words).prop_map(<[u8]>::to_vec)];
    let edit = prop_oneof![
        4 => (index(), index(), 0..8u8).prop_map(|(m, at, bit)| Edit::Flip(m, at, bit)),
        4 => (index(), index(), byte()).prop_map(|(m, at, byte)| Edit::Set(m, at, byte)),
        4 => (index(), index(), length, any::<bool>()).prop_map(|(m, at, n, wide)| Edit::Length(m, at, n, wide)),
        4 => (index(), index(), bytes).prop_map(|(m, at, bytes)| Edit::Insert(m, at, bytes)),
        2 => (index(), index(), 1..9usize).prop_map(|(m, at, n)| Edit::Remove(m, at, n)),
        2 => (index(), index()).prop_map(|(m, at)| Edit::Cut(m, at)),
        2 => (index(), index(), index(), index()).prop_map(|(m, at, n, from)| Edit::Splice(m, at, n, from)),
        1 => index().prop_map(Edit::Double),
        1 => index().prop_map(Edit::Drop),
        1 => (index(), index()).prop_map(|(m, n)| Edit::Swap(m, n)),
    ];
    // None at all, too: what is valid is accepted.
    proptest::collection::vec(edit, 0..10)
}

/// The messages with the edits done to them.
pub(crate) fn edited(mut stream: Vec<Vec<u8>>, edits: &[Edit]) -> Vec<Vec<u8>> {
    for edit in edits {
        if stream.is_empty() {
            return stream;
        }
        let count = stream.len();
        // A place in a message, its end included.
        let place = |message: &[u8], at: &Index| at.index(message.len() + 1);
        match edit {
            Edit::Flip(m, at, bit) => {
                let message = &mut stream[m.index(count)];
                let at = place(message, at);
                message.iter_mut().skip(at).take(1).for_each(|byte| *byte ^= 1u8 << *bit);
            }
            Edit::Set(m, at, with) => {
                let message = &mut stream[m.index(count)];
                let at = place(message, at);
                message.iter_mut().skip(at).take(1).for_each(|byte| *byte = *with);
            }
            Edit::Length(m, at, length, wide) => {
                let message = &mut stream[m.index(count)];
                let at = place(message, at);
                let bytes = length.to_be_bytes();
                let bytes = if *wide { &bytes[..] } else { &bytes[2..] };
                message.iter_mut().skip(at).zip(bytes).for_each(|(byte, with)| *byte = *with);
            }
            Edit::Insert(m, at, bytes) => {
                let message = &mut stream[m.index(count)];
                let at = place(message, at);
                message.splice(at..at, bytes.iter().copied());
            }
            Edit::Remove(m, at, length) => {
                let message = &mut stream[m.index(count)];
                let at = place(message, at);
                let end = message.len().min(at + length);
                message.drain(at..end);
            }
            Edit::Cut(m, at) => {
                let message = &mut stream[m.index(count)];
                let at = place(message, at);
                message.truncate(at);
            }
            Edit::Splice(m, at, other, from) => {
                let other = stream[other.index(count)].clone();
                let message = &mut stream[m.index(count)];
                let at = place(message, at);
                message.truncate(at);
                message.extend_from_slice(&other[place(&other, from)..]);
            }
            Edit::Double(m) => {
                let m = m.index(count);
                stream.insert(m, stream[m].clone());
            }
            Edit::Drop(m) => drop(stream.remove(m.index(count))),
            Edit::Swap(m, n) => stream.swap(m.index(count), n.index(count)),
        }
    }
    stream
}

/// Whatever comes, a decoder gives an event or an error whose offset is inside the message; and what it has refused
/// leaves no trace: another one that never saw it gives the same events.
///
/// `decode` gives the events in words, or the error's offset.
pub(crate) fn refused_leave_no_trace<D>(
    new: impl Fn() -> D,
    mut decode: impl FnMut(&mut D, &[u8]) -> Result<String, usize>,
    stream: &[Vec<u8>],
) -> Result<(), TestCaseError> {
    let (mut all, mut accepted) = (new(), new());
    for message in stream {
        match decode(&mut all, message) {
            Ok(events) => prop_assert_eq!(Ok(events), decode(&mut accepted, message)),
            Err(offset) => prop_assert!(offset <= message.len(), "offset {} of {:?}", offset, message),
        }
    }
    Ok(())
}

/// Tries a property on cases of a strategy, as the module says.
pub(crate) fn explore<S: Strategy>(name: &str, strategy: &S, property: impl Fn(S::Value) -> Result<(), TestCaseError>) {
    let seconds = std::env::var("WALCACHE_FUZZ_SECONDS").map_or(0, |text| text.parse().unwrap());
    let (began, executions) = (Instant::now(), Cell::new(0u64));
    loop {
        let mut runner = TestRunner::new(Config { failure_persistence: None, ..Config::default() });
        let tried = runner.run(strategy, |case| {
            executions.set(executions.get() + 1);
            property(case)
        });
        if let Err(found) = tried {
            panic!("{name}: {found}");
        }
        if began.elapsed() >= Duration::from_secs(seconds) {
            break;
        }
    }
    println!("{name}: {} cases in {:.1?}", executions.get(), began.elapsed());
}
