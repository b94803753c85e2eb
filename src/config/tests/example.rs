//! `walcache.example.toml`.

use toml::{Table, Value};

use super::*;

/// The example, with what is commented out put in.
fn uncommented_example(text: &str) -> String {
    let setting = |line: &str| {
        let key = line.strip_prefix("# ")?;
        let (name, _) = key.split_once(" = ")?;
        name.bytes().all(|b| b.is_ascii_lowercase() || b == b'_').then(|| key.to_owned())
    };
    text.lines().map(|line| setting(line).unwrap_or_else(|| line.to_owned()) + "\n").collect()
}

#[test]
fn the_example_shows_every_default() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("walcache.example.toml");
    let text = std::fs::read_to_string(&path).unwrap();
    let as_it_stands = Config::load_with(&path, []).unwrap();
    let full = uncommented_example(&text);
    assert_eq!(Config::parse(&full, &path).unwrap(), as_it_stands, "a commented default is not the default");
    let written: Table = toml::from_str(&full).unwrap();
    for (section, fields) in Table::try_from(Config::default()).unwrap() {
        let Value::Table(fields) = fields else { continue };
        for key in fields.keys() {
            assert!(written[&section].get(key).is_some(), "{section}.{key} is not in the example");
        }
    }
    for key in Table::try_from(&as_it_stands.entities[0]).unwrap().keys() {
        assert!(written["entity"][0].get(key).is_some(), "entity.{key} is not in the example");
    }
}
