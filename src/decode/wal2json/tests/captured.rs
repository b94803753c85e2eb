//! Captured streams.

use std::fmt::Write as _;

use super::*;

/// Each file of `tests/data/wal2json` is a captured stream: comments with the SQL, one message a line, and behind `----`
/// the expected events. With `REWRITE` set the expectation is written instead of compared.
#[test]
fn captured_streams_decode_as_expected() {
    let mut files = 0;
    for (path, text) in captured() {
        let (input, expected) = text.split_once("----\n").unwrap();
        let mut decoder = decoder(captured_tables());
        let mut said = String::new();
        for message in lines(input) {
            for event in events(&mut decoder, &message).unwrap_or_else(|e| panic!("{e} in {}", path.display())) {
                writeln!(said, "{event}").unwrap();
            }
        }
        if std::env::var_os("REWRITE").is_some() {
            std::fs::write(&path, format!("{input}----\n{said}")).unwrap();
        } else {
            assert_eq!(said, expected, "{}", path.display());
        }
        files += 1;
    }
    assert!(files >= 9, "{files} fixtures");
}

/// Every prefix of a captured message of a known table is an error, and leaves the decoder able to take the whole one.
#[test]
fn cut_off_messages_are_refused_without_a_trace() {
    let mut messages = 0;
    for (_, text) in captured() {
        let mut decoder = decoder(captured_tables());
        for message in lines(&text) {
            let elsewhere =
                [&b"\"other\""[..], b"\"stranger\""].iter().any(|n| memchr::memmem::find(&message, n).is_some());
            // Of other tables' rows no more is read than the name.
            for end in (0..message.len()).filter(|_| !elsewhere) {
                let error = events(&mut decoder, &message[..end]).unwrap_err();
                assert!(error.offset <= end, "{error}");
                messages += 1;
            }
            if !elsewhere {
                let longer = [&message[..], b" "].concat();
                let error = events(&mut decoder, &longer).unwrap_err();
                assert_eq!((error.problem, error.offset), (Problem::TrailingBytes(1), message.len()));
            }
            events(&mut decoder, &message).unwrap();
        }
    }
    assert!(messages > 1000, "{messages}");
}

/// How much slower it is than pgoutput, for the same rows. The ratio is what counts: tests are not optimized.
///
///     cargo test --lib -- --ignored --nocapture wal2json_beside_pgoutput
#[test]
#[ignore = "a measurement"]
fn wal2json_beside_pgoutput() {
    const ROUNDS: u32 = 50_000;
    let read = |name: &str| std::fs::read_to_string(fixture::path(name)).unwrap();
    let measure = |what: &str, messages: Vec<Vec<u8>>, decode: &mut dyn FnMut(&[u8]) -> bool| {
        let bytes: usize = messages.iter().map(Vec::len).sum();
        let mut rows = 0_u32;
        let began = std::time::Instant::now();
        for _ in 0..ROUNDS {
            rows += messages.iter().map(|message| u32::from(decode(message))).sum::<u32>();
        }
        let rate = f64::from(rows) / began.elapsed().as_secs_f64();
        println!("{what}: {rate:.0} rows/s, {} bytes a row", bytes / (rows / ROUNDS) as usize);
        assert!(rows > ROUNDS);
    };
    let mut ours = decoder(captured_tables());
    measure("wal2json", lines(&read("wal2json/row_changes.txt")), &mut |message| {
        let mut rows = false;
        ours.decode(message, &mut |event| rows |= matches!(event, Event::Change(_))).unwrap();
        rows
    });
    let mut theirs = crate::decode::pgoutput::Decoder::new();
    let text = read("pgoutput/row_changes.txt");
    measure("pgoutput", fixture::messages(text.split("----").next().unwrap()), &mut |message| {
        matches!(theirs.decode(message).unwrap(), Event::Change(_))
    });
}
