//! The options that output plugins are started with.

use super::Output;

/// Options of START_REPLICATION, as they are written there.
pub(super) struct Options {
    pub(super) text: String,
    /// Whether wal2json quotes numbers.
    pub(super) numbers_as_text: bool,
}

/// Sets of options, the best first; the next one is for a plugin too old for it.
pub(super) fn of(output: &Output) -> Vec<Options> {
    match output {
        Output::Pgoutput { publications } => {
            // Quoted as a list of identifiers within a string.
            let names: Vec<String> = publications.iter().map(|name| crate::sql::quote_ident(name)).collect();
            let text = format!("proto_version '1', publication_names {}, messages 'true'", literal(&names.join(",")));
            vec![Options { text, numbers_as_text: false }]
        }
        Output::Wal2json { tables } => {
            // Types and defaults are not asked for: it writes some of their names as they are, which is no JSON.
            let mut text = "\"format-version\" '2', \"include-transaction\" 'true', \"include-xids\" 'true', \
                            \"include-timestamp\" 'true', \"include-lsn\" 'true', \"include-schemas\" 'true', \
                            \"include-types\" 'false', \"include-type-oids\" 'true', \"include-column-positions\" 'true', \
                            \"actions\" 'insert,update,delete,truncate', \"add-msg-prefixes\" 'walcache,walcache.ddl'"
                .to_owned();
            if let Some(tables) = tables {
                let list: Vec<String> = tables.iter().map(|(s, t)| format!("{}.{}", escape(s), escape(t))).collect();
                text.push_str(&format!(", \"add-tables\" {}", literal(&list.join(","))));
            }
            // Since 2.6.
            let newer = format!("{text}, \"numeric-data-types-as-string\" 'true'");
            vec![Options { text: newer, numbers_as_text: true }, Options { text, numbers_as_text: false }]
        }
    }
}

/// The grammar of replication commands knows no backslashes.
fn literal(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

/// A name in a list of tables: commas, dots, blanks, `*` and the backslash itself mean something there.
fn escape(name: &str) -> String {
    let mut escaped = String::with_capacity(name.len());
    for c in name.chars() {
        if c.is_ascii() && !c.is_ascii_alphanumeric() && c != '_' {
            escaped.push('\\');
        }
        escaped.push(c);
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_quoted_for_their_lists() {
        let sets = of(&Output::Pgoutput { publications: vec!["it's \"mine\"".into(), "b".into()] });
        assert!(sets[0].text.contains("publication_names '\"it''s \"\"mine\"\"\",\"b\"'"), "{}", sets[0].text);
        let tables = Some(vec![("public".into(), "a,b.c *".into()), ("ü'".into(), "t\\".into())]);
        let sets = of(&Output::Wal2json { tables });
        for set in &sets {
            let list = r"public.a\,b\.c\ \*,ü\''.t\\";
            assert!(set.text.contains(&format!("\"add-tables\" '{list}'")), "{}", set.text);
        }
        assert_eq!(sets.iter().map(|s| s.numbers_as_text).collect::<Vec<_>>(), [true, false]);
    }
}
