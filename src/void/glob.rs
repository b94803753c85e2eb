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
        let mut tokens = Vec::new();
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
                    let (set, after) = set(after);
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
        Ok(Glob { text: text.into(), tokens: tokens.into() })
    }

    /// As it was given.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Whether a text holds anything but literals, so that it is more than one key.
    pub fn is_literal(text: &str) -> bool {
        !text.contains(['*', '?', '[', '\\'])
    }

    /// Whether a key matches.
    pub fn matches(&self, key: &[u8]) -> bool {
        let (mut at, mut token) = (0, 0);
        // Where the last run began: the token after it, and the first byte that it does not take.
        let mut run: Option<(usize, usize)> = None;
        while at < key.len() {
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
                    None => return false,
                },
            }
        }
        self.tokens[token..].iter().all(|token| *token == Token::Run)
    }

    /// How many of the keys that begin with `start` match.
    pub fn reach(&self, start: &[u8]) -> Reach {
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

/// Reads a set after its opening bracket; gives what follows it.
fn set(mut rest: &[u8]) -> (Box<[u64; 4]>, &[u8]) {
    let mut bits = Box::new([0u64; 4]);
    let mut add = |byte: u8| bits[usize::from(byte >> 6)] |= 1 << (byte & 63);
    let negated = rest.first() == Some(&b'^');
    if negated {
        rest = &rest[1..];
    }
    loop {
        match rest {
            [] => break,
            [b'\\', literal, after @ ..] => {
                add(*literal);
                rest = after;
            }
            [b']', after @ ..] => {
                rest = after;
                break;
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
    }
    if negated {
        bits.iter_mut().for_each(|word| *word = !*word);
    }
    (bits, rest)
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
