//! SQL that is put together at run time, and what is read of SQL that users write.

mod words;

use std::collections::BTreeSet;

pub use self::words::{Word, words};

/// The statement of a template of `sql/`, without the lines that are comments: they mention the placeholders, too.
pub fn statement(template: &str) -> String {
    template.lines().filter(|line| !line.starts_with("--")).collect::<Vec<_>>().join("\n")
}

/// `name` as an SQL identifier in double quotes.
pub fn quote_ident(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// `text` as an SQL string literal, whatever `standard_conforming_strings` says.
pub fn quote_literal(text: &str) -> String {
    let quoted = text.replace('\'', "''");
    if quoted.contains('\\') { format!("E'{}'", quoted.replace('\\', "\\\\")) } else { format!("'{quoted}'") }
}

/// The numbers of the parameters that a statement has: `$1` and so on. `None` if a literal or comment in it does not end.
pub fn parameters(sql: &str) -> Option<BTreeSet<usize>> {
    let is_parameter = |word: &&Word<'_>| sql[..word.at].ends_with('$');
    Some(words(sql)?.iter().filter(is_parameter).filter_map(|word| word.text.parse().ok()).collect())
}
