//! Patterns of keys, as Redis' `KEYS` and `SCAN MATCH` read them.
//!
//! `*` is any run of bytes, also none; `?` one byte; `[ab]`, `[a-z]` and `[^a]` one byte of a set, or not of it; a
//! backslash takes what follows literally. Everything else stands for itself, byte by byte. What Redis does with odd
//! patterns is done here, too: a set that is not closed ends with the pattern, a range goes either way and takes whatever
//! follows its dash for its end, and a backslash at the end stands for itself. Bytes of a range compare as signed, as
//! Redis' do on x86.
//!
//! Matching takes time in proportion to pattern times key at worst: of the runs only the last one is ever tried anew.

use std::hash::{Hash, Hasher};

/// Bytes of the longest pattern.
pub const MAX_BYTES: usize = 1024;

/// A pattern.
#[derive(Debug, Clone)]
pub struct Glob {
    text: Box<str>,
    tokens: Box<[Token]>,
    is_closed: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Token {
    /// Any bytes.
    Run,
    /// Any byte.
    Any,
    /// This byte.
    Byte(u8),
    /// One of these bytes: a bit for each.
    Set(Box<[u64; 4]>),
}

impl Token {
    fn admits(&self, byte: u8) -> bool {
        match self {
            Token::Run | Token::Any => true,
            Token::Byte(own) => *own == byte,
            Token::Set(bits) => bits[usize::from(byte >> 6)] & (1 << (byte & 63)) != 0,
        }
    }
}

/// How many keys with a given beginning a pattern matches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reach {
    /// None.
    None,
    /// Some, perhaps.
    Some,
    /// All.
    All,
}

/// Why a text is no pattern.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum GlobError {
    /// Longer than [`MAX_BYTES`].
    #[error("a pattern has at most {MAX_BYTES} bytes")]
    TooLong,
    /// It would match nothing.
    #[error("a pattern of keys is of the form entity:key, such as product:42 or product:4*")]
    Empty,
}

impl Glob {
    /// Reads a pattern.
    ///
    /// # Errors
    /// If it is empty or too long; whatever else it holds means something.
    pub fn parse(text: &str) -> Result<Glob, GlobError> {
        if text.is_empty() {
            return Err(GlobError::Empty);
        }
        if text.len() > MAX_BYTES {
            return Err(GlobError::TooLong);
        }
        let (mut tokens, mut is_closed) = (Vec::new(), true);
        let mut rest = text.as_bytes();
        while let [first, after @ ..] = rest {
            rest = after;
            match (first, after) {
                (b'*', _) => {
                    if tokens.last() != Some(&Token::Run) {
                        tokens.push(Token::Run);
                    }
                }
                (b'?', _) => tokens.push(Token::Any),
                (b'[', _) => {
                    let (set, after, ends) = set(after);
                    is_closed &= ends;
                    tokens.push(Token::Set(set));
                    rest = after;
                }
                (b'\\', [literal, after @ ..]) => {
                    tokens.push(Token::Byte(*literal));
                    rest = after;
                }
                (literal, _) => tokens.push(Token::Byte(*literal)),
            }
        }
        Ok(Glob { text: text.into(), tokens: tokens.into(), is_closed })
    }

    /// As it was given.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Whether each of its sets ends before it does: else it is likely not what was meant.
    pub fn is_closed(&self) -> bool {
        self.is_closed
    }

    /// Whether a matching text may have so many commas.
    pub fn admits_commas(&self, count: usize) -> bool {
        let least = self.tokens.iter().filter(|token| **token == Token::Byte(b',')).count();
        let most = self.tokens.iter().filter(|token| token.admits(b',')).count();
        least <= count && (count <= most || self.tokens.contains(&Token::Run))
    }

    /// Whether a text holds anything but literals, so that it is more than one key.
    pub fn is_literal(text: &str) -> bool {
        !text.contains(['*', '?', '[', '\\'])
    }

    /// Whether a key matches.
    pub fn matches(&self, key: &[u8]) -> bool {
        self.matches_within(key, usize::MAX) == Some(true)
    }

    /// Whether a key matches; `None` if that is not known after so many steps.
    pub fn matches_within(&self, key: &[u8], steps: usize) -> Option<bool> {
        let mut left = steps;
        let (mut at, mut token) = (0, 0);
        // Where the last run began: the token after it, and the first byte that it does not take.
        let mut run: Option<(usize, usize)> = None;
        while at < key.len() {
            left = left.checked_sub(1)?;
            match self.tokens.get(token) {
                Some(Token::Run) => {
                    token += 1;
                    run = Some((token, at));
                }
                Some(one) if one.admits(key[at]) => {
                    at += 1;
                    token += 1;
                }
                _ => match &mut run {
                    // The run takes one byte more. Earlier runs need not: whatever they would leave, this one can skip.
                    Some((after, taken)) => {
                        *taken += 1;
                        (token, at) = (*after, *taken);
                    }
                    None => return Some(false),
                },
            }
        }
        Some(self.tokens[token..].iter().all(|token| *token == Token::Run))
    }

    /// Whether any key that begins with `start` can match: [`Glob::reach`] is not none. Takes no longer than `start`.
    pub fn can_begin(&self, start: &[u8]) -> bool {
        for (i, byte) in start.iter().enumerate() {
            match self.tokens.get(i) {
                // It takes whatever follows.
                Some(Token::Run) => return true,
                Some(one) if one.admits(*byte) => {}
                _ => return false,
            }
        }
        true
    }

    /// How many of the keys that begin with `start` match.
    pub fn reach(&self, start: &[u8]) -> Reach {
        if !self.can_begin(start) {
            return Reach::None;
        }
        // Every place in the pattern that the start may lead to.
        let mut places = vec![false; self.tokens.len() + 1];
        places[0] = true;
        self.skip_runs(&mut places);
        for byte in start {
            let mut next = vec![false; places.len()];
            for (i, token) in self.tokens.iter().enumerate().filter(|(i, _)| places[*i]) {
                match token {
                    Token::Run => next[i] = true,
                    one if one.admits(*byte) => next[i + 1] = true,
                    _ => {}
                }
            }
            places = next;
            self.skip_runs(&mut places);
        }
        let last = self.tokens.len();
        if last > 0 && self.tokens[last - 1] == Token::Run && places[last - 1] {
            Reach::All
        } else if places.contains(&true) {
            Reach::Some
        } else {
            Reach::None
        }
    }

    fn skip_runs(&self, places: &mut [bool]) {
        for (i, token) in self.tokens.iter().enumerate() {
            if *token == Token::Run && places[i] {
                places[i + 1] = true;
            }
        }
    }

    /// The bytes that every matching key begins with.
    pub fn literal_start(&self) -> Vec<u8> {
        let byte = |token: &Token| match token {
            Token::Byte(byte) => Some(*byte),
            _ => None,
        };
        self.tokens.iter().map_while(byte).collect()
    }
}

impl PartialEq for Glob {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}

impl Eq for Glob {}

impl Hash for Glob {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.text.hash(state);
    }
}

/// Reads a set after its opening bracket; gives what follows it, and whether it was closed.
fn set(mut rest: &[u8]) -> (Box<[u64; 4]>, &[u8], bool) {
    let mut bits = Box::new([0u64; 4]);
    let mut add = |byte: u8| bits[usize::from(byte >> 6)] |= 1 << (byte & 63);
    let negated = rest.first() == Some(&b'^');
    if negated {
        rest = &rest[1..];
    }
    let is_closed = loop {
        match rest {
            [] => break false,
            [b'\\', literal, after @ ..] => {
                add(*literal);
                rest = after;
            }
            [b']', after @ ..] => {
                rest = after;
                break true;
            }
            [from, b'-', to, after @ ..] => {
                let (from, to) = (*from as i8, *to as i8);
                (from.min(to)..=from.max(to)).for_each(|byte| add(byte as u8));
                rest = after;
            }
            [literal, after @ ..] => {
                add(*literal);
                rest = after;
            }
        }
    };
    if negated {
        bits.iter_mut().for_each(|word| *word = !*word);
    }
    (bits, rest, is_closed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn matches(pattern: &str, key: &str) -> bool {
        Glob::parse(pattern).unwrap().matches(key.as_bytes())
    }

    #[test]
    fn reads_what_redis_reads() {
        for (pattern, yes, no) in [
            ("a:42", &["a:42"][..], &["a:4", "a:421", ""][..]),
            ("a:42,*", &["a:42,", "a:42,7", "a:42,7,8"], &["a:42", "a:421,7"]),
            ("*:4?", &["a:42", "b::4x"], &["a:4", "a:421"]),
            ("a:[0-3x]", &["a:0", "a:3", "a:x"], &["a:4", "a:-"]),
            ("a:[3-0]", &["a:1"], &["a:4"]),
            ("a:[^b]", &["a:c"], &["a:b", "a:"]),
            ("a:\\*", &["a:*"], &["a:x"]),
            ("a:[", &[], &["a:", "a:["]),
            ("a:[]", &[], &["a:", "a:]"]),
            ("a:[^]", &["a:x", "a:]"], &["a:"]),
            ("a:[b", &["a:b"], &["a:", "a:["]),
            ("a:[b-]", &["a:b", "a:^"], &["a:-x"]),
            ("a\\", &["a\\"], &["a"]),
            ("**a**", &["a", "xax"], &["x", ""]),
            ("a:?", &["a:x"], &["a:é"]),
            ("a:??", &["a:é"], &[]),
        ] {
            for key in yes {
                assert!(matches(pattern, key), "{pattern} {key}");
            }
            for key in no {
                assert!(!matches(pattern, key), "{pattern} {key}");
            }
        }
        assert_eq!(Glob::parse("").unwrap_err(), GlobError::Empty);
        assert_eq!(Glob::parse(&"x".repeat(MAX_BYTES + 1)).unwrap_err(), GlobError::TooLong);
    }

    #[test]
    fn tells_open_sets_and_how_many_commas_there_may_be() {
        for (pattern, closed, commas) in [
            ("a:42,*", true, &[false, true, true][..]),
            ("a:42", true, &[true, false]),
            ("a:[4", false, &[true, false]),
            ("a:\\[4", true, &[true, false]),
            ("a:[4],?", true, &[false, true, true, false]),
            ("a:[+-,]\\,", true, &[false, true, true, false]),
            ("*", true, &[true, true, true]),
        ] {
            let glob = Glob::parse(pattern).unwrap();
            assert_eq!(glob.is_closed(), closed, "{pattern}");
            for (count, wanted) in commas.iter().enumerate() {
                assert_eq!(glob.admits_commas(count), *wanted, "{pattern} {count}");
            }
        }
    }

    #[test]
    fn no_pattern_takes_long() {
        let pattern = Glob::parse(&("a*".repeat(MAX_BYTES / 2 - 1) + "b")).unwrap();
        let key = "a".repeat(16 * 1024);
        let began = std::time::Instant::now();
        assert!(!pattern.matches(key.as_bytes()));
        assert!(began.elapsed() < std::time::Duration::from_secs(5), "{:?}", began.elapsed());
    }

    #[test]
    fn tells_which_entities_it_reaches() {
        for (pattern, start, wanted) in [
            ("a:*", "a:", Reach::All),
            ("*", "a:", Reach::All),
            ("a*", "a:", Reach::All),
            ("a:42", "a:", Reach::Some),
            ("?:*", "a:", Reach::All),
            ("*:4*", "a:", Reach::Some),
            ("b:*", "a:", Reach::None),
            ("a", "a:", Reach::None),
            ("ab:*", "a:", Reach::None),
            ("a*2", "a:", Reach::Some),
        ] {
            assert_eq!(Glob::parse(pattern).unwrap().reach(start.as_bytes()), wanted, "{pattern} {start}");
        }
    }

    proptest! {
        #[test]
        fn reach_agrees_with_matches(pattern in "[a*?\\[\\]^\\\\:-]{1,8}", start in "[a:]{0,3}", rest in "[a:*]{0,4}") {
            let glob = Glob::parse(&pattern).unwrap();
            let key = [start.as_bytes(), rest.as_bytes()].concat();
            let matched = glob.matches(&key);
            match glob.reach(start.as_bytes()) {
                Reach::None => prop_assert!(!matched),
                Reach::All => prop_assert!(matched),
                Reach::Some => {}
            }
            if matched {
                prop_assert!(key.starts_with(&glob.literal_start()));
            }
        }
    }
}
