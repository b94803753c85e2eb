//! The words of a statement.

/// A word: a name without quotes, a keyword, or a number.
#[derive(Debug, Clone, Copy)]
pub struct Word<'s> {
    /// Where it begins, in bytes.
    pub at: usize,
    /// As it is written.
    pub text: &'s str,
    /// In how many parentheses it stands.
    pub depth: usize,
}

/// The words of a statement that stand outside of literals and comments; `None` if any of these, or a parenthesis, does not
/// end. The rules are those of the manual's chapter "Lexical Structure", with `standard_conforming_strings`.
pub fn words(sql: &str) -> Option<Vec<Word<'_>>> {
    let bytes = sql.as_bytes();
    let is_word = |b: u8| b.is_ascii_alphanumeric() || b == b'_' || b == b'$' || b >= 0x80;
    let (mut words, mut depth, mut at) = (Vec::new(), 0_usize, 0);
    while let Some(&b) = bytes.get(at) {
        let rest = &sql[at..];
        at = match b {
            b'-' if rest.starts_with("--") => at + rest.find('\n').unwrap_or(rest.len()),
            b'/' if rest.starts_with("/*") => at + comment(rest.as_bytes())?,
            b'\'' => at + quoted(rest.as_bytes(), b'\'', false)?,
            b'"' => at + quoted(rest.as_bytes(), b'"', false)?,
            b'e' | b'E' if rest[1..].starts_with('\'') => at + 1 + quoted(&rest.as_bytes()[1..], b'\'', true)?,
            b'$' => at + dollar_quoted(rest).unwrap_or(1),
            b'(' | b'[' => {
                depth += 1;
                at + 1
            }
            b')' | b']' => {
                depth = depth.checked_sub(1)?;
                at + 1
            }
            b if is_word(b) => {
                let end = at + bytes[at..].iter().position(|b| !is_word(*b)).unwrap_or(bytes.len() - at);
                words.push(Word { at, text: &sql[at..end], depth });
                end
            }
            _ => at + 1,
        };
    }
    (depth == 0).then_some(words)
}

/// The length of what is quoted.
fn quoted(bytes: &[u8], quote: u8, escapes: bool) -> Option<usize> {
    let mut at = 1;
    loop {
        match *bytes.get(at)? {
            b'\\' if escapes => at += 2,
            b if b == quote && bytes.get(at + 1) == Some(&quote) => at += 2,
            b if b == quote => return Some(at + 1),
            _ => at += 1,
        }
    }
}

/// The length of a string in dollars: `$$..$$`, `$tag$..$tag$`.
fn dollar_quoted(text: &str) -> Option<usize> {
    let tag = &text[..text[1..].find('$')? + 2];
    let name = &tag[1..tag.len() - 1];
    let is_name = name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b >= 0x80);
    if !is_name || name.starts_with(|c: char| c.is_ascii_digit()) {
        return None;
    }
    Some(text[tag.len()..].find(tag)? + 2 * tag.len())
}

/// The length of a comment, which may hold others.
fn comment(bytes: &[u8]) -> Option<usize> {
    let (mut depth, mut at) = (0_usize, 0);
    loop {
        match bytes.get(at..at + 2)? {
            b"/*" => (depth, at) = (depth + 1, at + 2),
            b"*/" => (depth, at) = (depth - 1, at + 2),
            _ => at += 1,
        }
        if depth == 0 {
            return Some(at);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::parameters;

    #[test]
    fn parameters_are_found_outside_of_literals() {
        let of = |sql: &str| parameters(sql).map(|found| found.into_iter().collect::<Vec<_>>());
        let sql = "select $2, '$3', \"$4\", $$ $5 $$, a$6, e'\\'$7', $t$ $8 $t$ -- $9\n from t /* $10 /* $11 */ */ \
                   where (x = any($1::int[]) or y<$12)";
        assert_eq!(of(sql), Some(vec![1, 2, 12]));
        assert_eq!(of("select 1"), Some(vec![]));
        assert_eq!(of("select 'open"), None);
        assert_eq!(of("select (1"), None);
    }
}
