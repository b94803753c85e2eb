//! Entities that are the results of a query.

use super::*;
use crate::entity::OnChange;
use crate::entity::query::{ResultShape, Via};

const QUERY: &str = r#"
[source]
url = "postgres://walcache:s3cr3t@127.0.0.1:5432/shop"
[l2]
url = "redis://:hunter2@127.0.0.1:6379/0"
[[entity]]
name = "of_customer"
params = { zone = "text", customer_id = "bigint", at = "numeric(10, 2)" }
query = "select 1 where $1 = $2 ; "
depends_on = [
  { table = "orders", key = { customer_id = "c", at = "a", zone = "z" } },
  { table = "shop.lines", lookup = "select 1, 2, 3;", from = ["id", "no"] },
  { table = "rates", all = true },
]
"#;

#[test]
fn a_query_keeps_its_parameters_in_order() {
    // In the order of the file, which is not that of the alphabet: also where a variable overrides something.
    for variables in [&[][..], &[("WALCACHE__HTTP__MAX_BATCH", "7")]] {
        let config = load(QUERY, variables).unwrap();
        let entity = &config.entities[0];
        let names: Vec<&str> = entity.params.as_ref().unwrap().names().collect();
        assert_eq!(names, ["zone", "customer_id", "at"]);
        let query = entity.query().unwrap();
        assert_eq!((query.sql.as_str(), query.shape), ("select 1 where $1 = $2", ResultShape::Many));
        assert_eq!(query.rules[0].via, Via::Key(vec!["z".into(), "c".into(), "a".into()]));
        let lookup = Via::Lookup { sql: "select 1, 2, 3".into(), from: vec!["id".into(), "no".into()] };
        assert_eq!((query.rules[1].schema.as_str(), &query.rules[1].via), ("shop", &lookup));
        assert_eq!(query.rules[2].via, Via::All);
        assert_eq!(entity.on_change(), OnChange::Invalidate);
        let written = toml::to_string(&config).unwrap();
        assert_eq!(toml::from_str::<Config>(&written).unwrap().entities, config.entities);
    }
    let rows = load(MINIMAL, &[]).unwrap();
    assert_eq!((rows.entities[0].on_change(), rows.entities[0].query()), (OnChange::Refresh, None));
}

#[test]
fn misused_queries_are_refused_with_the_field() {
    let rule = "{ table = \"rates\", all = true }";
    let cases: &[(&str, &str, &str)] = &[
        ("name =", "table = 'orders'\nname =", "entity[0].table: entity \"of_customer\": table and query exclude"),
        ("query = \"select 1 where $1 = $2 ; \"", "", "entity[0].table: entity \"of_customer\": required (or query"),
        (
            "query = \"select 1 where $1 = $2 ; \"",
            "table = 'a'",
            "entity[0].params: entity \"of_customer\": belongs to a query",
        ),
        ("select 1 where $1 = $2 ; ", " ;", "entity[0].query: entity \"of_customer\": must be a SELECT"),
        ("name =", "columns = ['a']\nname =", "entity[0].columns: entity \"of_customer\": means nothing for a query"),
        ("name =", "key = ['a']\nname =", "entity[0].key: entity \"of_customer\": means nothing"),
        ("name =", "populate = true\nname =", "entity[0].populate: entity \"of_customer\": means nothing"),
        (
            "params = { zone = \"text\", customer_id = \"bigint\", at = \"numeric(10, 2)\" }",
            "",
            "entity[0].params: entity \"of_customer\": required",
        ),
        (
            "\"bigint\"",
            "\"bigint; drop\"",
            "entity[0].params: entity \"of_customer\": customer_id = \"bigint; drop\" must name a type",
        ),
        (
            "customer_id = \"c\"",
            "customer = \"c\"",
            "depends_on[0].key: public.orders: \"customer\" is none of the params; did you mean \"customer_id\"?",
        ),
        ("customer_id = \"c\"", "customer = \"c\"", "and lacks customer_id; where the row has none, use lookup or all"),
        (", from = [\"id\", \"no\"]", "", "depends_on[1].from: shop.lines: lookup and from go together"),
        ("lookup = \"select 1, 2, 3;\", ", "", "depends_on[1]: shop.lines: must have exactly one of"),
        ("[\"id\", \"no\"]", "[]", "depends_on[1].from: shop.lines: must name at least one column"),
        ("all = true", "all = false", "depends_on[2].all: must be true"),
        (
            "name =",
            "negative_ttl = '1s'\nname =",
            "entity[0].negative_ttl: entity \"of_customer\": only with shape = \"one\"",
        ),
        (rule, "{ table = \"rates\" }", "depends_on[2]: public.rates: must have exactly one of key ="),
        ("all = true", "every = true", "unknown key `every`"),
        ("name =", "shape = 'few'\nname =", "unknown value `few`"),
    ];
    for (what, with, wanted) in cases {
        assert!(QUERY.contains(what), "{what}");
        let found = error(&QUERY.replacen(what, with, 1), &[]);
        assert!(found.contains(wanted), "{with}: {found}");
    }
    let (start, _) = QUERY.split_once("depends_on").unwrap();
    assert!(error(start, &[]).contains("entity[0].depends_on: entity \"of_customer\": required with query"));
}
