//! What is read, what is refused, and how it is explained.

mod entity;
mod example;
mod query;

use std::time::Duration;

use super::*;

const MINIMAL: &str = r#"
[source]
url = "postgres://walcache:s3cr3t@127.0.0.1:5432/shop"
[l2]
url = "redis://:hunter2@127.0.0.1:6379/0"
[[entity]]
name = "product"
table = "products"
"#;

fn load(text: &str, variables: &[(&str, &str)]) -> Result<Config, ConfigError> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("walcache.toml");
    std::fs::write(&path, text).unwrap();
    std::fs::write(folder.path().join("secret"), "postgres://filed:pw@db/shop\n").unwrap();
    Config::load_with(&path, variables.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())))
}

/// The error's text, sources included, without the temporary folder.
fn error(text: &str, variables: &[(&str, &str)]) -> String {
    let text = format!("{:#}", anyhow::Error::from(load(text, variables).unwrap_err()));
    assert!(!text.contains("s3cr3t") && !text.contains("hunter2"), "{text}");
    match text.split_once("walcache.toml:") {
        Some((_, rest)) => rest.trim().to_owned(),
        None => text,
    }
}

fn with(section: &str, line: &str) -> String {
    MINIMAL.replacen(&format!("{section}\n"), &format!("{section}\n{line}\n"), 1)
}

#[test]
fn a_config_of_ten_lines_is_enough() {
    let config = load(MINIMAL, &[]).unwrap();
    assert_eq!(config.source.url.expose(), "postgres://walcache:s3cr3t@127.0.0.1:5432/shop");
    assert_eq!(config.entities[0].table.to_string(), "public.products");
    assert_eq!(config.entities[0].ttl, Duration::from_secs(3600));
    assert_eq!(config.l1, L1Config::default());
}

#[test]
fn publications_are_one_name_or_a_list() {
    for (line, names) in [
        ("", &["walcache"][..]),
        ("publication = 'shop'", &["shop"]),
        ("publication = ['shop', 'Other, one']", &["shop", "Other, one"]),
    ] {
        let config = load(&with("[source]", line), &[]).unwrap();
        assert_eq!(config.source.publication.names(), names, "{line}");
        let written = toml::to_string(&config).unwrap();
        assert_eq!(toml::from_str::<Config>(&written).unwrap().source.publication, config.source.publication);
    }
    let variable = [("WALCACHE__SOURCE__PUBLICATION", "shop")];
    assert_eq!(
        load(&with("[source]", "publication = ['a', 'b']"), &variable).unwrap().source.publication.names(),
        ["shop"]
    );
    for (line, wanted) in [
        ("publication = []", "source.publication: must name at least one publication"),
        ("publication = ['a', 'a']", "source.publication: must name at least one publication, and none twice"),
        ("publication = ['a', '']", "source.publication: \"\" must be 1 to 63 bytes long"),
        ("publication = 5", "3:15: invalid type: integer `5`, expected a publication's name or a list of names"),
    ] {
        let text = error(&with("[source]", line), &[]);
        assert!(text.starts_with(wanted), "{line}: {text}");
    }
}

#[test]
fn unknown_names_are_refused_with_the_nearest_known_one() {
    assert_eq!(error(&with("[source]", "slto = 'a'"), &[]), "3:1: unknown key `slto`; did you mean `slot`?");
    assert_eq!(error(&with("[[entity]]", "colums = ['a']"), &[]), "7:1: unknown key `colums`; did you mean `columns`?");
    assert_eq!(error(&format!("{MINIMAL}[htpp]\n"), &[]), "9:2: unknown key `htpp`; did you mean `http`?");
    assert_eq!(
        error(&with("[[entity]]", "on_change = 'refrsh'"), &[]),
        "7:13: unknown value `refrsh`; did you mean `refresh`?"
    );
    let far = error(&with("[l1]\n[source]", ""), &[("WALCACHE__L1__ZZZ", "1")]);
    assert_eq!(far, "WALCACHE__L1__ZZZ: unknown key `zzz` in [l1]; known are max_size, enabled");
}

#[test]
fn values_without_units_and_of_other_forms_are_explained() {
    let cases = [
        ("[source]", "connect_timeout = '5'", "3:19: \"5\" is not a duration with a unit"),
        ("[source]", "connect_timeout = 5", "3:19: invalid type: integer `5`, expected a duration with a unit"),
        ("[source]", "connect_timeout = '5 parsecs'", "3:19: \"5 parsecs\" is not a duration"),
        (
            "[source]",
            "plugin = 'test_decoding'",
            "3:10: unknown plugin \"test_decoding\": use \"pgoutput\" or \"wal2json\"",
        ),
        ("[source]", "slot = 'Wal-Cache'", "source.slot: \"Wal-Cache\" must be 1 to 63 of a-z, 0-9 and _"),
        ("[source]", "pool_size = 0", "source.pool_size: must be at least 1"),
        ("[source]", "max_fills = 0", "source.max_fills: must be at least 1"),
        ("[source]", "dead_after = '1s'", "source.dead_after: must be longer than source.heartbeat_interval"),
        ("[l2]", "prefix = 'a b'", "l2.prefix: must not hold blanks"),
        ("[[entity]]", "ttl = '0s'", "entity[0].ttl: entity \"product\": must be longer than zero"),
        (
            "[[entity]]",
            "max_staleness = '1s'",
            "entity[0].max_staleness: must be longer than source.heartbeat_interval",
        ),
        ("[[entity]]", "max_staleness = 5", "7:17: invalid type: integer `5`, expected a duration with a unit"),
        ("[[entity]]", "past_max_staleness = 'srve'", "7:22: unknown value `srve`; did you mean `serve`?"),
        ("[[entity]]", "ttl_jitter = 0.6", "entity[0].ttl_jitter: entity \"product\": must be from 0 to 0.5"),
        ("[[entity]]", "ttl_jitter = -0.1", "entity[0].ttl_jitter"),
        ("[[entity]]", "negative_ttl = '0s'", "entity[0].negative_ttl: entity \"product\": must be longer than zero"),
        ("[[entity]]", "stale_while_revalidate = '1000y'", "entity[0].stale_while_revalidate"),
        ("[[entity]]", "refresh_ahead = 0.0", "entity[0].refresh_ahead: entity \"product\": must be above 0"),
        (
            "[[entity]]",
            "refresh_ahead = 0.5\nttl_jitter = 0.5",
            "entity[0].refresh_ahead: entity \"product\": with ttl_jitter",
        ),
        (
            "[[entity]]",
            "refresh_ahead = 0.2\nttl_column = 'e'",
            "entity[0].refresh_ahead: entity \"product\": does not go with",
        ),
        (
            "[[entity]]",
            "ttl_column = 'e'\ncolumns = ['id']",
            "entity[0].ttl_column: entity \"product\": must be one of",
        ),
        ("[[entity]]", "l1_size = '1KiB'", "entity[0].l1_size: entity \"product\": must be at least 1MiB"),
        ("[[entity]]", "compress_above = 5", "7:18: invalid type: integer `5`, expected a size with a unit"),
        ("[[entity]]", "key = []", "entity[0].key: entity \"product\": must name at least one column"),
    ];
    for (section, line, wanted) in cases {
        let text = error(&with(section, line), &[]);
        assert!(text.starts_with(wanted), "{line}: {text}");
    }
    for (field, wrong, wanted) in [
        ("http", "listen = 'localhost'", "2:10: \"localhost\" is not an address and port"),
        ("l1", "max_size = '256'", "2:12: \"256\" is not a size with a unit"),
        ("l1", "max_size = '1KiB'", "l1.max_size: must be at least 1MiB"),
        ("log", "level = 'walcache=loud'", "log.level: not a filter"),
        (
            "freshness",
            "stale_after = '1s'\nmax_staleness = '1s'",
            "freshness.max_staleness: must be longer than source.",
        ),
        (
            "freshness",
            "max_staleness = '5s'",
            "freshness.max_staleness: must not be shorter than freshness.stale_after",
        ),
        ("audit", "wait = '2m'", "audit.wait: must be longer than zero, and at most 1m"),
        ("audit", "rate = 100001", "audit.rate: must be at most 100000"),
        ("apply", "max_batch_events = -1", "2:20: invalid value: integer `-1`"),
    ] {
        let text = error(&format!("[{field}]\n{wrong}\n{MINIMAL}"), &[]);
        assert!(text.starts_with(wanted), "{wrong}: {text}");
    }
}

#[test]
fn a_url_comes_from_one_place() {
    let filed = MINIMAL.replace("url = \"postgres://walcache:s3cr3t@127.0.0.1:5432/shop\"", "url_file = \"secret\"");
    assert_eq!(load(&filed, &[]).unwrap().source.url.expose(), "postgres://filed:pw@db/shop");
    let both = with("[source]", "url_file = 'secret'");
    assert_eq!(error(&both, &[]), "source.url and source.url_file are both set: keep one of them");
    let gone = filed.replace("\"secret\"", "\"gone\"");
    let text = error(&gone, &[]);
    assert!(text.starts_with("source.url_file = ") && text.contains("cannot be read: No such file"), "{text}");
    // An override of one replaces the other.
    let url = "postgres://env:pw@db/shop";
    assert_eq!(load(&filed, &[("WALCACHE__SOURCE__URL", url)]).unwrap().source.url.expose(), url);
    let file = load(MINIMAL, &[("WALCACHE__SOURCE__URL_FILE", "secret")]).unwrap();
    assert_eq!(file.source.url.expose(), "postgres://filed:pw@db/shop");
}

#[test]
fn the_environment_overrides_the_file() {
    let variables = [
        ("WALCACHE__SOURCE__POOL_SIZE", "9"),
        ("WALCACHE__SOURCE__SLOT", "007"),
        ("WALCACHE__L1__ENABLED", "false"),
        ("WALCACHE__FRESHNESS__STALE_AFTER", "3s"),
        ("WALCACHE_CONFIG", "elsewhere.toml"),
    ];
    let config = load(MINIMAL, &variables).unwrap();
    assert_eq!(config.source.pool_size, 9);
    assert_eq!(config.source.slot, "007");
    assert!(!config.l1.enabled);
    assert_eq!(config.freshness.stale_after, Duration::from_secs(3));
    for (variable, value, wanted) in [
        ("WALCACHE__SOURCE__POOL_SIZE", "many", "\"many\" is not a whole number"),
        ("WALCACHE__FRESHNESS__STALE_AFTER", "3", "\"3\" is not a duration with a unit"),
        ("WALCACHE__SUORCE__URL", "x", "unknown section `suorce`; did you mean `source`?"),
        ("WALCACHE__SOURCE__SLOTS", "x", "unknown key `slots` in [source]; did you mean `slot`?"),
        ("WALCACHE__SOURCE", "x", "an override is named WALCACHE__SECTION__KEY"),
    ] {
        let text = error(MINIMAL, &[(variable, value)]);
        assert!(text.starts_with(&format!("{variable}: {wanted}")), "{text}");
    }
}

#[test]
fn passwords_are_masked_wherever_a_url_is_shown() {
    let config = load(MINIMAL, &[]).unwrap();
    for text in [format!("{config:?}"), format!("{config:#?}"), toml::to_string(&config).unwrap()] {
        assert!(!text.contains("s3cr3t") && !text.contains("hunter2"), "{text}");
        assert!(text.contains("postgres://walcache:***@127.0.0.1:5432/shop"), "{text}");
    }
    // A URL in the wrong place, and one that does not parse.
    let misplaced = error("source = \"postgres://walcache:s3cr3t@db/shop\"\n", &[]);
    assert!(misplaced.contains("expected struct SourceConfig"), "{misplaced}");
    error(&MINIMAL.replace(":5432/", ":port/"), &[]);
    error(MINIMAL, &[("WALCACHE__SOURCE__POOL_SIZE", "postgres://walcache:s3cr3t@db/shop")]);
    for (url, shown) in [
        ("postgres://u:p/w@x y@h:1/d?a=b", "postgres://u:***@h:1/d?a=b"),
        ("postgres://u@h:1/d?password=pw&a=b", "postgres://u@h:1/d?password=***&a=b"),
        ("redis://:pw", "redis://:***"),
        ("redis://h:6379/0", "redis://h:6379/0"),
    ] {
        assert_eq!(Secret::from(url).to_string(), shown);
    }
}

#[test]
fn table_names_read_as_in_sql() {
    for (text, schema, name, sql) in [
        ("orders", "public", "orders", "\"public\".\"orders\""),
        ("Shop.Orders", "shop", "orders", "\"shop\".\"orders\""),
        ("\"My Schema\".\"T.\"\"x\"", "My Schema", "T.\"x", "\"My Schema\".\"T.\"\"x\""),
    ] {
        let parsed: TableName = text.parse().unwrap();
        assert_eq!((parsed.schema.as_str(), parsed.name.as_str(), parsed.sql().as_str()), (schema, name, sql));
        assert_eq!(parsed.to_string().parse::<TableName>().unwrap(), parsed);
    }
    for bad in ["", ".", "a.", ".a", "a.b.c", "a b", "\"a", "\"\"", "1a", "a;drop"] {
        assert!(bad.parse::<TableName>().is_err(), "{bad:?}");
    }
}
