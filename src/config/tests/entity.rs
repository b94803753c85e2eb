//! What is said of single entities.

use super::*;
use crate::entity::PastBound;

#[test]
fn an_entity_may_have_its_own_bound() {
    assert_eq!(load(MINIMAL, &[]).unwrap().entities[0].max_staleness, None);
    let own = with("[[entity]]", "max_staleness = '1m 30s'\npast_max_staleness = 'serve'");
    let config = load(&own, &[]).unwrap();
    assert_eq!(config.entities[0].max_staleness, Some(Duration::from_secs(90)));
    assert_eq!(config.entities[0].past_max_staleness, Some(PastBound::Serve));
    assert_eq!(config.freshness.past_max_staleness, PastBound::Bypass);
    let written = toml::to_string(&config).unwrap();
    assert!(written.contains("max_staleness = \"1m 30s\"\npast_max_staleness = \"serve\""), "{written}");
}

#[test]
fn warming_is_checked() {
    let config = load(MINIMAL, &[]).unwrap();
    assert_eq!((&config.entities[0].warm, config.entities[0].hot_set), (&None, 1000));
    let own = "warm = { on = ['start', 'generation'], every = '1h', where = 'price > 0', order = 'desc' }\nhot_set = 0";
    let config = load(&with("[[entity]]", own), &[]).unwrap();
    let warm = config.entities[0].warm.clone().unwrap();
    assert_eq!((warm.on, warm.every), (vec![WarmOn::Start, WarmOn::Generation], Some(Duration::from_secs(3600))));
    assert_eq!((warm.order, warm.limit, warm.rate), (WarmOrder::Desc, 10_000, 1000));
    assert!(toml::to_string(&config).unwrap().contains("where = \"price > 0\""));
    for (line, wanted) in [
        ("warm = { where = 'x', keys = 'y' }", "warm.keys: entity \"product\": does not go together with warm.where"),
        ("warm = { where = ' ' }", "warm.where: entity \"product\": is empty"),
        ("warm = { limit = 0 }", "warm.limit: entity \"product\": must be at least 1"),
        ("warm = { rate = 0 }", "warm.rate: entity \"product\": must be from 1 to 100000"),
        ("warm = { every = '10ms' }", "warm.every: entity \"product\": must be at least 1s"),
        ("warm = { on = ['stop'] }", "unknown value `stop`; known are start, generation"),
        ("warm = { whre = 'x' }", "whre"),
        ("hot_set = 100001", "hot_set: entity \"product\": must be at most 100000"),
    ] {
        let found = error(&with("[[entity]]", line), &[]);
        assert!(found.contains(wanted), "{line}: {found}");
    }
    let query = |warm: &str| {
        let table = "table = \"products\"";
        let query =
            "params = { id = 'int' }\nquery = 'select 1 where $1 > 0'\ndepends_on = [{ table = 't', all = true }]";
        MINIMAL.replacen(table, &format!("{query}\nwarm = {warm}"), 1)
    };
    assert!(
        error(&query("{ on = ['start'] }"), &[]).contains("warm.keys: entity \"product\": is required with a query")
    );
    assert!(error(&query("{ where = 'x' }"), &[]).contains("warm.where: entity \"product\": is of a table's rows"));
}

#[test]
fn entities_need_distinct_names_and_a_table() {
    let again = format!("{MINIMAL}[[entity]]\nname = 'product'\ntable = 'b'\n");
    assert!(error(&again, &[]).contains("entity[1].name: \"product\" is the name of an earlier entity"));
    let capital = MINIMAL.replace("\"product\"", "\"Product\"");
    assert!(error(&capital, &[]).contains("must begin with a-z"), "{}", error(&capital, &[]));
    let bad = MINIMAL.replace("\"products\"", "\"a.b.c\"");
    assert!(error(&bad, &[]).contains("8:9: not a table name"), "{}", error(&bad, &[]));
    let missing = MINIMAL.replace("table = \"products\"", "");
    assert!(error(&missing, &[]).contains("entity[0].table: entity \"product\": required (or query"));
    assert!(error("", &[]).contains("source.url: required"));
}
