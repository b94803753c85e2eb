//! Values with gaps: an update does not carry an out-of-line (TOAST) value that it has not changed.
//!
//! Such a value is written as a JSON object in which nothing stands for the column: `{"id":7,"body":,"n":1}`. It is no JSON,
//! and never stored; what stands in the row's value before the update is put there, byte for byte. Decoding it would
//! not do: numbers, the order of keys and blanks of a `json` column must come out as they went in.

/// One member of an object: its name with the quotes, and its value as it stands there, blanks and all.
type Member<'a> = (&'a [u8], &'a [u8]);

/// Fills the gaps of `newer` from `older`, another value of the same columns. Says whether gaps are left, since `older` has
/// some, too. `None` where `older` is none of that: the row was absent, or had other columns.
pub fn fill(newer: &[u8], older: &[u8]) -> Option<(Vec<u8>, bool)> {
    let (newer, older) = (members(newer)?, members(older)?);
    if newer.len() != older.len() {
        return None;
    }
    let mut filled =
        Vec::with_capacity(2 + newer.iter().chain(&older).map(|(_, value)| value.len() + 2).sum::<usize>());
    let mut left = false;
    for ((name, value), (older_name, older_value)) in newer.into_iter().zip(older) {
        if name != older_name {
            return None;
        }
        let value = if value.is_empty() { older_value } else { value };
        left |= value.is_empty();
        filled.push(if filled.is_empty() { b'{' } else { b',' });
        filled.extend_from_slice(name);
        filled.push(b':');
        filled.extend_from_slice(value);
    }
    // An object without members has no gaps to fill.
    if filled.is_empty() {
        return None;
    }
    filled.push(b'}');
    Some((filled, left))
}

/// The value of an object's member of that name, as it stands there; `None` where there is none.
pub fn member<'a>(object: &'a [u8], name: &str) -> Option<&'a [u8]> {
    let is_it = |text: &[u8]| serde_json::from_slice::<String>(text).is_ok_and(|text| text == name);
    members(object)?.into_iter().find(|(text, _)| is_it(text)).map(|(_, value)| value)
}

/// The members of an object, gaps included; `None` where the text is none.
fn members(object: &[u8]) -> Option<Vec<Member<'_>>> {
    let mut rest = object.strip_prefix(b"{")?;
    let mut members = Vec::new();
    loop {
        let (name, after) = rest.split_at_checked(string(rest)?)?;
        rest = after.strip_prefix(b":")?;
        let (value, after) = rest.split_at_checked(value(rest)?)?;
        members.push((name, value));
        match after {
            b"}" => return Some(members),
            [b',', more @ ..] => rest = more,
            _ => return None,
        }
    }
}

/// How long the string is that the text begins with.
fn string(text: &[u8]) -> Option<usize> {
    let inner = text.strip_prefix(b"\"")?;
    let mut at = 0;
    loop {
        at += inner.get(at..)?.iter().position(|byte| matches!(byte, b'"' | b'\\'))?;
        if inner[at] == b'"' {
            return Some(at + 2);
        }
        // Whatever is escaped ends no string: of `\u0022` only the `u` matters here.
        at += 2;
    }
}

/// How far the value reaches that the text begins with: up to the comma or brace that ends the member.
fn value(text: &[u8]) -> Option<usize> {
    let mut depth = 0_usize;
    let mut at = 0;
    loop {
        at += text.get(at..)?.iter().position(|byte| matches!(byte, b'"' | b'{' | b'[' | b'}' | b']' | b','))?;
        match text[at] {
            b'"' => at += string(&text[at..])?,
            b'{' | b'[' => {
                depth += 1;
                at += 1;
            }
            b',' if depth > 0 => at += 1,
            b',' => return Some(at),
            _ if depth > 0 => {
                depth -= 1;
                at += 1;
            }
            b'}' => return Some(at),
            _ => return None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filled(newer: &str, older: &str) -> Option<(String, bool)> {
        fill(newer.as_bytes(), older.as_bytes()).map(|(text, left)| (String::from_utf8(text).unwrap(), left))
    }

    #[test]
    fn gaps_are_filled_byte_for_byte() {
        let older = r#"{"id":1,"a":  {"x" : [1.0, "}],\"{"],"x":1e400} ,"b\"c":"\\\"","d":[]}"#;
        let whole = filled(r#"{"id":1,"a":,"b\"c":,"d":null}"#, older).unwrap();
        let wanted = r#"{"id":1,"a":  {"x" : [1.0, "}],\"{"],"x":1e400} ,"b\"c":"\\\"","d":null}"#;
        assert_eq!(whole, (wanted.to_owned(), false));
        assert_eq!(filled(older, r#"{"id":,"a":,"b\"c":,"d":}"#).unwrap(), (older.to_owned(), false));
        assert_eq!(filled(r#"{"a":,"b":}"#, r#"{"a":1,"b":}"#).unwrap(), (r#"{"a":1,"b":}"#.to_owned(), true));
    }

    #[test]
    fn a_value_of_other_columns_or_of_an_absent_row_fills_nothing() {
        for older in [
            "null",
            "",
            "{}",
            r#"{"b":1}"#,
            r#"{"a":1,"c":2}"#,
            r#"{"c":2,"a":1}"#,
            r#"{"a":1,"b":2,"c":3}"#,
            r#"{"a":1,"b":2"#,
            r#"{"a":1,"b":2}}"#,
            r#"{"a":1,"b":2]"#,
            r#"{"a":1,"b":"2}"#,
            r#"{"a":1 "b":2}"#,
            r#"{a:1,"b":2}"#,
        ] {
            assert_eq!(filled(r#"{"a":,"b":2}"#, older), None, "{older}");
        }
    }

    /// What any value's text is cut into is what it is made of.
    #[test]
    fn any_object_is_cut_where_its_members_end() {
        let values =
            ["1", "-0.5e-7", "true", "null", r#""""#, r#""\\""#, r#""\"},{[""#, r#"[[],{"a":[{}]}]"#, " {} ", "\t[\n]"];
        for a in values {
            for b in values {
                let older = format!(r#"{{"a":{a},"b,\"}}":{b}}}"#);
                let newer = r#"{"a":,"b,\"}":}"#;
                assert_eq!(filled(newer, &older).unwrap(), (older, false));
            }
        }
    }
}
