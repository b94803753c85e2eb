//! An UPDATE's text, taken apart as far as is needed to have it give its old rows.
//!
//! Before Postgres 18 an UPDATE returns new rows only. One that is joined with its own table by the rows' places returns
//! the old ones, too: `UPDATE t SET .. FROM t AS old WHERE t.ctid = old.ctid AND (..)`. The database judges what comes of
//! it: what cannot be written so it does not take, and then it is done without. Rows may be changed in another order, which
//! matters only to constraints that are checked in between.

use crate::sql::words;

/// An UPDATE's parts.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Update<'s> {
    /// Up to the last assignment.
    head: &'s str,
    /// What it is joined with.
    from: Option<&'s str>,
    condition: Option<&'s str>,
}

impl<'s> Update<'s> {
    /// The name of the old row in what is returned.
    pub(super) const OLD: &'static str = "walcache_old";

    /// Takes it apart; `None` if it is none, or not of a form that is known.
    pub(super) fn read(sql: &'s str) -> Option<Update<'s>> {
        let (mut update, mut set, mut from, mut condition) = (false, false, None, None);
        let mut before = "";
        for word in words(sql)?.into_iter().filter(|word| word.depth == 0) {
            let is = |keyword: &str| word.text.eq_ignore_ascii_case(keyword);
            if !update {
                update = is("update");
            } else if !set {
                set = is("set");
            } else if condition.is_none() && is("where") {
                condition = Some(word);
            } else if condition.is_none() && is("from") && !before.eq_ignore_ascii_case("distinct") {
                if from.replace(word).is_some() {
                    return None;
                }
            } else if is("returning") {
                return None;
            }
            before = word.text;
        }
        if !set {
            return None;
        }
        let ends = [from, condition].into_iter().flatten().map(|word| word.at).min();
        let until = condition.map_or(sql.len(), |word| word.at);
        Some(Update {
            head: &sql[..ends.unwrap_or(sql.len())],
            from: from.map(|word| &sql[word.at + word.text.len()..until]),
            condition: condition.map(|word| &sql[word.at + word.text.len()..]),
        })
    }

    /// The same with each old row beside it, as [`Update::OLD`]; up to what it is to return. `alias` is what the statement
    /// calls the table, `table` is its name in SQL.
    pub(super) fn beside_old(&self, alias: &str, table: &str) -> String {
        // Only names that no table has: what the statement leaves unqualified must not become ambiguous. Lines are ended,
        // for a part may end with a comment.
        let from = self.from.map(|from| format!("{from}\n, ")).unwrap_or_default();
        let condition = self.condition.map(|condition| format!("AND ({condition}\n)")).unwrap_or_default();
        let (head, old) = (self.head, Self::OLD);
        format!(
            "{head}
             FROM {from}(
                 SELECT walcache_row.ctid AS walcache_ctid, walcache_row.tableoid AS walcache_tableoid, walcache_row AS {old}
                 FROM {table} AS walcache_row
             ) AS walcache_rows
             WHERE {alias}.ctid = walcache_ctid AND {alias}.tableoid = walcache_tableoid {condition}
             RETURNING"
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts(sql: &str) -> Option<(&str, Option<&str>, Option<&str>)> {
        let Update { head, from, condition } = Update::read(sql)?;
        Some((head.trim(), from.map(str::trim), condition.map(str::trim)))
    }

    #[test]
    fn an_update_is_taken_apart() {
        for (sql, wanted) in [
            ("UPDATE t SET a = 1", ("UPDATE t SET a = 1", None, None)),
            ("update t set a = 1 where b = 2", ("update t set a = 1", None, Some("b = 2"))),
            (
                "UPDATE ONLY s.t AS x SET (a, b) = (SELECT 1, 2 FROM u WHERE u.id = x.id) FROM u JOIN v ON u.i IS DISTINCT FROM v.i Where x.c = v.c",
                (
                    "UPDATE ONLY s.t AS x SET (a, b) = (SELECT 1, 2 FROM u WHERE u.id = x.id)",
                    Some("u JOIN v ON u.i IS DISTINCT FROM v.i"),
                    Some("x.c = v.c"),
                ),
            ),
            (
                "WITH w AS (SELECT 1 AS i FROM u WHERE true) UPDATE t SET a = w.i IS NOT DISTINCT FROM 1 FROM w",
                (
                    "WITH w AS (SELECT 1 AS i FROM u WHERE true) UPDATE t SET a = w.i IS NOT DISTINCT FROM 1",
                    Some("w"),
                    None,
                ),
            ),
            (
                r#"UPDATE "set where" SET a = ' where '' from' || E'\' where ' || $$ where $$ || $q$ $$ from $q$ /* where /* x */ from */ WHERE a[1] = 'x' -- from"#,
                (
                    r#"UPDATE "set where" SET a = ' where '' from' || E'\' where ' || $$ where $$ || $q$ $$ from $q$ /* where /* x */ from */"#,
                    None,
                    Some("a[1] = 'x' -- from"),
                ),
            ),
            ("UPDATE t SET a = where_ WHERE né = 1e5", ("UPDATE t SET a = where_", None, Some("né = 1e5"))),
        ] {
            assert_eq!(parts(sql), Some(wanted), "{sql}");
        }
        for other in [
            "",
            "DELETE FROM t WHERE a = 1",
            "UPDATE t",
            "UPDATE t SET a = 'x",
            "UPDATE t SET a = (1",
            "UPDATE t SET a = 1)",
            "UPDATE t SET a = 1 /* x",
            "UPDATE t SET a = 1 RETURNING a",
            "UPDATE t SET a = 1 FROM a FROM b",
        ] {
            assert_eq!(parts(other), None, "{other}");
        }
    }
}
