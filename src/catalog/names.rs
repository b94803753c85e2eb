//! The names in a query: what they stand for is looked for in one schema after the other, so it may change without a change
//! of what they have stood for so far.

use crate::config::EntityConfig;

/// The names that an entity's query and lookups may read tables by; in order, each once. More are right as well.
pub(super) fn of(entity: &EntityConfig) -> Vec<String> {
    let rules = entity.depends_on.iter().flatten();
    let texts = entity.query.iter().chain(rules.clone().filter_map(|rule| rule.lookup.as_ref()));
    let mut names: Vec<String> = rules.map(|rule| rule.table.name.clone()).collect();
    for text in texts {
        let words = text.split(|c: char| !c.is_alphanumeric() && !matches!(c, '_' | '$'));
        names.extend(words.filter(|word| !word.is_empty()).map(str::to_ascii_lowercase));
        // Within quotes, or between two quoted ones: as they stand.
        names.extend(text.split('"').skip(1).filter(|name| !name.is_empty()).map(str::to_owned));
    }
    names.sort();
    names.dedup();
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_that_may_be_names_are_found() {
        let text = r#"
            name = "it"
            query = 'SELECT * FROM Orders o, only "My Table" join a."B" using(x1$) where id=$1'
            depends_on = [{ table = "s.T", lookup = "select 1 from links", from = ["x"] }]"#;
        let entity: EntityConfig = toml::from_str(text).unwrap();
        let names = of(&entity);
        for wanted in ["orders", "o", "My Table", "a", "B", "x1$", "t", "links"] {
            assert!(names.iter().any(|name| name == wanted), "no {wanted} in {names:?}");
        }
    }
}
