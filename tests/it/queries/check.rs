//! What `check` finds about queries, each with what mends it.

use serde_json::Value;

use super::{SHOP, orders};
use crate::harness::{Config, Entity, Stage, cli, codes, findings, mend, needs_publications};
use crate::publications::has_filters;

fn finding<'a>(findings: &'a [Value], code: &str) -> &'a Value {
    findings.iter().find(|finding| finding["code"] == code).unwrap_or_else(|| panic!("no {code} in {findings:#?}"))
}

async fn stage(name: &str, schema: &str) -> Stage {
    let stage = Stage::shared(name).await;
    stage.execute(schema).await;
    stage
}

fn of_customer(query: &str, depends_on: &str) -> Entity {
    let text =
        format!("params = {{ customer_id = \"bigint\" }}\nquery = \"\"\"{query}\"\"\"\ndepends_on = [{depends_on}]\n");
    Entity::query("it", &text)
}

const BY_KEY: &str = "{ table = \"orders\", key = { customer_id = \"customer_id\" } }";
const SIMPLE: &str = "select id from orders where customer_id = $1";

/// Setup makes the publication for the tables of the rules, and adds those that come later.
#[tokio::test]
async fn setup_publishes_what_queries_depend_on() {
    let stage = stage("query_setup", SHOP).await;
    let config = stage.config().entity(orders());
    let done = cli(&config, &["setup", "--apply"], &[]).await;
    assert!(done.status.success(), "{done:?}");
    let found = findings(&config).await;
    assert_eq!(codes(&found, "error"), [""; 0], "{found:#?}");
    assert_eq!(codes(&found, "warning").iter().filter(|code| **code != "ddl_not_announced").count(), 0, "{found:#?}");
    let report: Value = serde_json::from_str(&cli(&config, &["check", "--json"], &[]).await.stdout).unwrap();
    let rules = report["rules"].as_array().unwrap();
    assert_eq!(rules.len(), 4, "{report}");
    assert!(rules[3]["cost"].as_str().unwrap().starts_with("runs its lookup (planner's cost "), "{report}");
    if needs_publications("a table that is not published") {
        return;
    }
    stage.execute(&format!("ALTER PUBLICATION {} DROP TABLE lines, customers", stage.name)).await;
    assert_eq!(mend(&stage, &config).await, ["publication_table", "publication_table"]);
}

#[tokio::test]
async fn each_error_gives_what_mends_it() {
    let stage = stage("query_mend", SHOP).await;
    stage
        .execute(
            "ALTER TABLE orders REPLICA IDENTITY DEFAULT;
             CREATE TABLE bare (customer_id bigint, n int);
             CREATE TABLE keyed (id int, customer_id bigint, PRIMARY KEY (id, customer_id)); ALTER TABLE keyed REPLICA IDENTITY NOTHING;
             CREATE UNLOGGED TABLE quick (customer_id bigint PRIMARY KEY);
             CREATE TABLE parts (customer_id bigint, at int, PRIMARY KEY (at)) PARTITION BY RANGE (at);
             CREATE TABLE parts_1 PARTITION OF parts FOR VALUES FROM (0) TO (10);",
        )
        .await;
    let cases: [(&str, &str, &[&str]); 6] = [
        ("orders", BY_KEY, &["replica_identity"]),
        ("bare", "{ table = \"bare\", all = true }", &["replica_identity"]),
        ("bare", "{ table = \"bare\", key = { customer_id = \"customer_id\" } }", &[]),
        ("keyed", "{ table = \"keyed\", key = { customer_id = \"customer_id\" } }", &["replica_identity"]),
        ("quick", "{ table = \"quick\", key = { customer_id = \"customer_id\" } }", &["table_unlogged"]),
        ("parts", "{ table = \"parts\", key = { customer_id = \"customer_id\" } }", &["replica_identity"]),
    ];
    for (n, (table, rule, wanted)) in cases.into_iter().enumerate() {
        let name = format!("{}_{n}", stage.name);
        let config = stage.config().set("source", "publication", name.as_str()).set("source", "slot", name.as_str());
        let config = config.entity(of_customer(&format!("select 1 as one from {table} where customer_id = $1"), rule));
        let mended = mend(&stage, &config).await;
        let of_ours: Vec<&str> = mended.iter().map(String::as_str).filter(|code| wanted.contains(code)).collect();
        assert_eq!(of_ours, wanted, "{table}: {mended:?}");
        // The application's own writes go on.
        stage.execute(&format!("UPDATE {table} SET customer_id = 1; DELETE FROM {table}")).await;
    }
}

#[tokio::test]
async fn what_a_filter_or_a_list_keeps_back_is_an_error() {
    if needs_publications("row filters and column lists") {
        return;
    }
    let stage = stage("query_filter", SHOP).await;
    if !has_filters(&stage).await {
        println!("SKIPPED: row filters and column lists need Postgres 15");
        return;
    }
    let config = stage.config().entity(of_customer(SIMPLE, BY_KEY));
    let done = cli(&config, &["setup", "--apply"], &[]).await;
    assert!(done.status.success(), "{done:?}");
    let name = &stage.name;
    stage.execute(&format!("ALTER PUBLICATION {name} SET TABLE orders WHERE (status = 'new')")).await;
    assert_eq!(codes(&findings(&config).await, "error"), ["publication_row_filter"]);
    assert_eq!(mend(&stage, &config).await, ["publication_row_filter"]);
    stage.execute(&format!("ALTER PUBLICATION {name} SET TABLE orders (id, status)")).await;
    assert_eq!(mend(&stage, &config).await, ["publication_columns"]);
    // All that is printed at once: the replica identity of all columns, which a list must have.
    stage
        .execute(&format!(
            "ALTER TABLE orders REPLICA IDENTITY DEFAULT; ALTER PUBLICATION {name} SET TABLE orders (id, status)"
        ))
        .await;
    for finding in findings(&config).await {
        if let Some(sql) = finding["sql"].as_str() {
            stage.execute(sql).await;
        }
    }
    stage.execute("UPDATE orders SET status = 'paid' WHERE id = 1").await;
    assert_eq!(codes(&findings(&config).await, "error"), [""; 0]);
}

#[tokio::test]
async fn tables_that_it_reads_must_be_named() {
    let stage = stage("query_named", SHOP).await;
    stage
        .execute(
            "CREATE VIEW seen AS SELECT o.id, o.customer_id, l.quantity FROM orders o JOIN lines l ON l.order_id = o.id;
             CREATE MATERIALIZED VIEW kept AS SELECT 1 AS one;
             CREATE TABLE notes (customer_id bigint, note text) PARTITION BY LIST (customer_id);
             CREATE TABLE notes_1 PARTITION OF notes FOR VALUES IN (1);
             CREATE TABLE later (customer_id bigint, note text) PARTITION BY LIST (customer_id);
             CREATE FUNCTION lines_of(bigint) RETURNS SETOF lines LANGUAGE sql STABLE AS 'SELECT * FROM lines WHERE order_id = $1';
             CREATE SEQUENCE numbers;",
        )
        .await;
    let cases = [
        (
            "select id, quantity from seen where customer_id = $1",
            "public.lines",
            "add to depends_on: { table = \"public.lines\", all = true }",
        ),
        (
            "select o.id, n.note from orders o join notes n on n.customer_id = o.customer_id where o.customer_id = $1",
            "public.notes",
            "add to depends_on: { table = \"public.notes\", key = { customer_id = \"customer_id\" } }",
        ),
        (
            "select id, one from orders, kept where customer_id = $1",
            "materialized view public.kept",
            "what the view is made of",
        ),
        // What a plan leaves out: a table that has no partition yet, what a condition excludes, a join that changes nothing
        // as long as there is a unique index.
        (
            "select o.id, n.note from orders o join later n on n.customer_id = o.customer_id where o.customer_id = $1",
            "public.later",
            "add to depends_on: { table = \"public.later\", key = { customer_id = \"customer_id\" } }",
        ),
        (
            "select o.id from orders o where o.customer_id = $1 and not exists (select from products where false)",
            "public.products",
            "add to depends_on",
        ),
        (
            "select o.id from orders o left join customers c on c.id = o.customer_id where o.customer_id = $1",
            "public.customers",
            "add to depends_on",
        ),
        (
            "select o.id, l.no from orders o, lines_of(o.id) l where o.customer_id = $1",
            "public.lines",
            "add to depends_on",
        ),
        (
            "select id, last_value from orders, numbers where customer_id = $1",
            "the sequence public.numbers",
            "leave it out",
        ),
        (
            "select id, (select count(*) from pg_class) as n from orders where customer_id = $1",
            "the system catalog pg_catalog.pg_class",
            "leave it out",
        ),
    ];
    for (query, what, remedy) in cases {
        let config = stage.config().entity(of_customer(query, BY_KEY));
        let found = findings(&config).await;
        let unnamed = finding(&found, "table_unnamed");
        assert_eq!(unnamed["severity"], "error");
        assert!(unnamed["what"].as_str().unwrap().contains(what), "{unnamed}");
        assert!(unnamed["remedy"].as_str().unwrap().contains(remedy), "{unnamed}");
        let all = found.iter().filter(|finding| finding["code"] == "table_unnamed").count();
        assert_eq!(all, 1, "{found:#?}");
    }
    // The line that it gives is what was missing.
    let named = format!("{BY_KEY}, {{ table = \"public.notes\", key = {{ customer_id = \"customer_id\" }} }}");
    let config = stage.config().entity(of_customer(cases[1].0, &named));
    assert!(!codes(&findings(&config).await, "error").contains(&"table_unnamed"));
}

#[tokio::test]
async fn scans_and_functions_are_warned_of() {
    let stage = stage("query_warn", SHOP).await;
    stage
        .execute(
            "CREATE FUNCTION count_lines() RETURNS bigint LANGUAGE plpgsql STABLE AS 'BEGIN RETURN (SELECT count(*) FROM lines); END';
             DROP INDEX orders_customer_id_idx;",
        )
        .await;
    let config = stage.config().entity(of_customer(SIMPLE, BY_KEY));
    let found = findings(&config).await;
    let scan = finding(&found, "query_scan");
    assert_eq!(scan["severity"], "warning");
    assert_eq!(scan["sql"], "CREATE INDEX CONCURRENTLY ON \"public\".\"orders\" (\"customer_id\")", "{scan}");
    stage.sql().await.batch_execute(scan["sql"].as_str().unwrap()).await.unwrap();
    let found = findings(&config).await;
    assert!(!codes(&found, "warning").contains(&"query_scan"), "{found:#?}");
    for (column, code) in [
        ("now() as at", "query_volatile"),
        ("current_date as day", "query_volatile"),
        ("random() as r", "query_volatile"),
        ("age(timestamptz '2020-01-01') as age", "query_volatile"),
        ("status < 'today'::date::text as old", "query_volatile"),
        ("timestamp 'Now' as at", "query_volatile"),
        ("'now'::text::timestamptz as at", "query_volatile"),
        ("count_lines() as n", "query_function"),
    ] {
        let query = format!("select id, {column} from orders where customer_id = $1");
        let found = findings(&stage.config().entity(of_customer(&query, BY_KEY))).await;
        assert_eq!(finding(&found, code)["severity"], "warning", "{column}");
    }
    let sampled = |of: &str| format!("select id from orders tablesample system (50) {of} where customer_id = $1");
    let found = findings(&stage.config().entity(of_customer(&sampled(""), BY_KEY))).await;
    assert!(finding(&found, "query_volatile")["what"].as_str().unwrap().contains("TABLESAMPLE"), "{found:#?}");
    // What is always the same, or only looks as if it were not.
    for query in
        [sampled("repeatable (7)"), "select id from orders where customer_id = $1 and status <> 'now'".to_owned()]
    {
        let found = findings(&stage.config().entity(of_customer(&query, BY_KEY))).await;
        assert!(!codes(&found, "warning").contains(&"query_volatile"), "{query}: {found:#?}");
    }
}

#[tokio::test]
async fn what_cannot_work_is_refused_with_the_reason() {
    let stage = stage("query_refused", SHOP).await;
    stage
        .execute(
            "CREATE COLLATION any_case (provider = icu, locale = 'und-u-ks-level2', deterministic = false);
             ALTER TABLE customers ADD nick text COLLATE any_case, ADD score float8, ADD twice bigint GENERATED ALWAYS AS (id * 2) STORED;
             CREATE TYPE one AS ENUM ('a', 'b'); CREATE TYPE other AS ENUM ('a', 'b');
             ALTER TABLE customers ADD exact numeric(10,3), ADD kind one, ADD number oid, ADD small int;
             ALTER TABLE customers REPLICA IDENTITY FULL;
             CREATE FUNCTION noted(bigint) RETURNS boolean LANGUAGE plpgsql STABLE AS 'BEGIN RETURN EXISTS (SELECT FROM products); END';",
        )
        .await;
    let typed = |of: &str, column: &str| {
        let text = format!(
            "params = {{ p = \"{of}\" }}\nquery = \"select id from customers where {column} = $1\"\n\
             depends_on = [{{ table = \"customers\", key = {{ p = \"{column}\" }} }}]\n"
        );
        Entity::query("it", &text)
    };
    let of_kind = Entity::query(
        "it",
        "params = { p = \"other\" }\nquery = \"select id from customers where kind::text = $1::text\"\n\
         depends_on = [{ table = \"customers\", key = { p = \"kind\" } }]\n",
    );
    let looked_up = |lookup: &str| {
        of_customer(SIMPLE, &format!("{BY_KEY}, {{ table = \"lines\", lookup = \"{lookup}\", from = [\"order_id\"] }}"))
    };
    let cases = [
        (
            of_customer("select nothing from orders where customer_id = $1", BY_KEY),
            "query_refused",
            "column \"nothing\" does not exist",
        ),
        (of_customer("select id from orders where customer_id = $2", BY_KEY), "query_refused", "the query has $2"),
        (of_customer("delete from orders where customer_id = $1", BY_KEY), "query_columns", "no columns"),
        (
            of_customer("with d as (delete from orders returning id) select id from d where id = $1", BY_KEY),
            "query_refused",
            "WITH",
        ),
        (of_customer("select 1; select 2", BY_KEY), "query_refused", "multiple commands"),
        (
            of_customer("select id, id from orders where customer_id = $1", BY_KEY),
            "query_columns",
            "two columns named \"id\"",
        ),
        (of_customer(SIMPLE, "{ table = \"ordres\", all = true }"), "table_missing", "ordres"),
        (
            of_customer(SIMPLE, "{ table = \"orders\", key = { customer_id = \"customer\" } }"),
            "column_missing",
            "customer",
        ),
        (typed("nonsense", "id"), "param_type", "nonsense"),
        (typed("float8", "score"), "param_type", "float8"),
        (typed("bpchar", "name"), "param_type", "many texts"),
        (typed("text", "nick"), "rule_type", "not deterministic"),
        (typed("text", "id::text"), "column_missing", "id::text"),
        (typed("text", "score"), "rule_type", "score"),
        (typed("bigint", "twice"), "key_generated", "twice"),
        (typed("numeric(10,2)", "id"), "rule_type", "different texts"),
        (typed("int", "number"), "rule_type", "different texts"),
        (typed("oid", "small"), "rule_type", "different texts"),
        (
            Entity::query(
                "it",
                "params = { customer_id = \"bigint\", more = \"text\", most = \"text\" }\n\
                 query = \"select id, '$2' as two from orders where customer_id = $1 -- $3\"\n\
                 depends_on = [{ table = \"orders\", all = true }]\n",
            ),
            "param_unused",
            "does not use params more, most",
        ),
        (typed("numeric(10,2)", "exact"), "rule_type", "different texts"),
        (of_kind, "rule_type", "different texts"),
        (
            looked_up("select id, customer_id from orders where id = $1"),
            "lookup_columns",
            "gives (pg_catalog.int8, pg_catalog.int8)",
        ),
        (looked_up("select status from orders where id = $1"), "lookup_columns", "gives (pg_catalog.text)"),
        (looked_up("select customer_id from orders where id = $2"), "lookup_refused", "has $2"),
        (looked_up("select custom from orders where id = $1"), "lookup_refused", "custom"),
        (of_customer(&format!("{SIMPLE} for update"), BY_KEY), "query_locks", "the query locks the rows"),
        (
            looked_up("select customer_id from orders where id = $1 for share"),
            "query_locks",
            "the lookup of public.lines locks the rows",
        ),
    ];
    for (entity, code, what) in cases {
        let found = findings(&stage.config().entity(entity)).await;
        let finding = finding(&found, code);
        assert_eq!(finding["severity"], "error", "{finding}");
        assert!(finding["what"].as_str().unwrap().contains(what), "{what}: {finding}");
    }
    // What only a lookup reads may cut the link to an entry, and void nothing.
    let by_products = "select o.customer_id from orders o join products p on p.id = o.id where o.id = $1";
    let found = findings(&stage.config().entity(looked_up(by_products))).await;
    let unnamed = finding(&found, "lookup_unnamed");
    assert_eq!(unnamed["severity"], "warning");
    assert!(
        unnamed["what"].as_str().unwrap().contains("the lookup of public.lines reads public.products"),
        "{unnamed}"
    );
    assert!(!codes(&found, "error").contains(&"table_unnamed"), "{found:#?}");
    // What is not in the log is not read by lookups either.
    stage.execute("CREATE MATERIALIZED VIEW linked AS SELECT id, customer_id FROM orders").await;
    let found = findings(&stage.config().entity(looked_up("select customer_id from linked where id = $1"))).await;
    assert_eq!(finding(&found, "table_unnamed")["severity"], "error");
    // Nor may policies hide from it what leads to an entry.
    stage.execute("ALTER TABLE products ENABLE ROW LEVEL SECURITY").await;
    let found = findings(&stage.config().entity(looked_up(by_products))).await;
    let policies = finding(&found, "row_security");
    assert!(
        policies["severity"] == "error" && policies["what"].as_str().unwrap().contains("public.products"),
        "{policies}"
    );
    stage.execute("ALTER TABLE products DISABLE ROW LEVEL SECURITY").await;
    // A lookup sees its own table as it is after the change.
    let own = "select order_id from lines where order_id = $1";
    for (lookup, warned) in [(own, true), ("select customer_id from orders where id = $1", false)] {
        let config = stage.config().entity(looked_up(lookup));
        let found = findings(&config).await;
        let own: Vec<&Value> = found.iter().filter(|finding| finding["code"] == "lookup_own_table").collect();
        assert_eq!(own.len(), usize::from(warned), "{lookup}: {found:#?}");
        assert!(own.iter().all(|finding| finding["severity"] == "warning"), "{own:?}");
    }
    for (more, code) in [("o.status < now()::text", "lookup_volatile"), ("noted(o.id)", "query_function")] {
        let config =
            stage.config().entity(looked_up(&format!("select o.customer_id from orders o where o.id = $1 and {more}")));
        let found = findings(&config).await;
        let warning = finding(&found, code);
        assert_eq!(warning["severity"], "warning", "{warning}");
        assert!(warning["what"].as_str().unwrap().contains("the lookup of public.lines calls"), "{warning}");
    }
}

/// A role that may not read what the query reads, and row-level security.
#[tokio::test]
async fn rights_and_policies_are_looked_at() {
    let stage = stage("query_rights", SHOP).await;
    let role = &stage.name;
    stage.execute(&format!("CREATE ROLE {role} LOGIN REPLICATION PASSWORD 'right'")).await;
    let url = format!("postgres://{role}:right@127.0.0.1:{}/{role}", stage.postgres.port());
    let config = |config: Config| config.entity(of_customer(SIMPLE, BY_KEY));
    let config = config(stage.config().set("source", "url", url));
    let found = findings(&config).await;
    let rights = finding(&found, "query_rights");
    assert!(
        rights["sql"].as_str().unwrap().contains(&format!("GRANT SELECT ON \"public\".\"orders\" TO \"{role}\"")),
        "{rights}"
    );
    let done = cli(&config, &["setup", "--apply", "--url", &stage.source_url()], &[]).await;
    assert!(done.status.success(), "{done:?}");
    assert_eq!(codes(&findings(&config).await, "error"), [""; 0]);
    stage.execute(&format!("REVOKE USAGE ON SCHEMA public FROM PUBLIC, {role}")).await;
    let found = findings(&config).await;
    let usage = finding(&found, "query_rights");
    assert!(
        usage["sql"].as_str().unwrap().contains(&format!("GRANT USAGE ON SCHEMA \"public\" TO \"{role}\"")),
        "{usage}"
    );
    assert_eq!(mend(&stage, &config).await, ["query_rights"]);
    stage.execute("ALTER TABLE orders ENABLE ROW LEVEL SECURITY").await;
    assert_eq!(codes(&findings(&config).await, "error"), ["row_security"]);
}

/// What is refused for want of rights is granted by `setup`, whether or not `depends_on` names it.
#[tokio::test]
async fn what_is_refused_is_granted_by_name() {
    let stage = stage("query_grants", SHOP).await;
    let role = &stage.name;
    stage
        .execute(&format!(
            "CREATE SCHEMA hidden; CREATE TABLE hidden.rates (customer_id bigint PRIMARY KEY, rate int);
             CREATE VIEW seen AS SELECT id, customer_id FROM orders;
             CREATE ROLE {role} LOGIN REPLICATION PASSWORD 'right'"
        ))
        .await;
    let url = format!("postgres://{role}:right@127.0.0.1:{}/{role}", stage.postgres.port());
    let admin = stage.source_url();
    let looked_up = format!(
        "{BY_KEY}, {{ table = \"lines\", lookup = \"select customer_id from seen where id = $1\", from = [\"order_id\"] }}"
    );
    let rates = "select o.id, r.rate from orders o join hidden.rates r on r.customer_id = o.customer_id where o.customer_id = $1";
    for (entity, code, grants) in [
        (of_customer(SIMPLE, &looked_up), "lookup_refused", &["GRANT SELECT ON \"public\".\"seen\" TO "][..]),
        (
            of_customer(rates, BY_KEY),
            "query_rights",
            &["GRANT USAGE ON SCHEMA \"hidden\" TO ", "GRANT SELECT ON \"hidden\".\"rates\" TO "],
        ),
    ] {
        let config = stage.config().set("source", "url", url.as_str()).entity(entity);
        for grant in grants {
            let mut wanted = grant.to_string();
            wanted.push_str(&format!("\"{role}\""));
            let found = eventually_found(&stage, &config, code).await;
            assert_eq!(found["setup"], "grant", "{found}");
            assert!(found["sql"].as_str().unwrap().split(";\n").any(|sql| sql == wanted), "{wanted}: {found}");
            stage.execute(found["sql"].as_str().unwrap()).await;
        }
        let found = findings(&config).await;
        assert!(!codes(&found, "error").contains(&code), "{found:#?}");
    }
    stage.execute("REVOKE ALL ON seen FROM PUBLIC").await;
    stage.execute(&format!("REVOKE ALL ON seen FROM {role}")).await;
    let config = stage.config().set("source", "url", url.as_str()).entity(of_customer(SIMPLE, &looked_up));
    let done = cli(&config, &["setup", "--apply", "--url", &admin], &[]).await;
    assert!(done.status.success() && done.stdout.contains("\"public\".\"seen\""), "{done:?}");
}

/// A finding that comes once others are granted.
async fn eventually_found(stage: &Stage, config: &Config, code: &str) -> Value {
    for _ in 0..5 {
        let found = findings(config).await;
        if let Some(finding) = found.iter().find(|finding| finding["code"] == code) {
            return finding.clone();
        }
        let grant = found.iter().find(|finding| finding["setup"] == "grant").unwrap_or_else(|| panic!("{found:#?}"));
        stage.execute(grant["sql"].as_str().unwrap()).await;
    }
    panic!("no {code}");
}

/// Of a column that is not there nothing is said but that: what would publish it, or tell it of old rows, cannot be run.
#[tokio::test]
async fn a_misspelled_column_is_said_once() {
    let stage = stage("query_misspelled", SHOP).await;
    let lookup =
        "{ table = \"products\", lookup = \"select o.customer_id from orders o where o.id = $1\", from = [\"idd\"] }";
    let right =
        stage.config().entity(of_customer(SIMPLE, &format!("{BY_KEY}, {{ table = \"products\", all = true }}")));
    let done = cli(&right, &["setup", "--apply"], &[]).await;
    assert!(done.status.success(), "{done:?}");
    for rules in [
        "{ table = \"orders\", key = { customer_id = \"custmer_id\" } }, { table = \"products\", all = true }"
            .to_owned(),
        format!("{BY_KEY}, {lookup}"),
    ] {
        let found = findings(&stage.config().entity(of_customer(SIMPLE, &rules))).await;
        assert_eq!(codes(&found, "error"), ["column_missing"], "{found:#?}");
    }
}

#[tokio::test]
async fn what_is_no_select_and_tags_of_columns_are_told_in_words() {
    let stage = stage("query_words", SHOP).await;
    let deletes = of_customer("delete from orders where customer_id = $1 returning id", BY_KEY);
    let found = findings(&stage.config().entity(deletes)).await;
    assert!(
        finding(&found, "query_refused")["what"].as_str().unwrap().contains("DELETE: it must be one SELECT"),
        "{found:#?}"
    );
    let tagged = |shape: &str, tag: &str| {
        let entity = of_customer(SIMPLE, BY_KEY).set("tags", vec![tag.to_owned()]);
        stage.config().entity(entity.set("shape", shape))
    };
    let found = findings(&tagged("many", "order:{id}")).await;
    let tag = finding(&found, "tag_column");
    assert!(tag["what"].as_str().unwrap().contains("shape \"many\", which bears tags of its params only"), "{tag}");
    assert!(tag["remedy"].as_str().unwrap().contains("customer_id"), "{tag}");
    for fine in [tagged("one", "order:{id}"), tagged("many", "of:{customer_id}")] {
        assert!(!codes(&findings(&fine).await, "error").contains(&"tag_column"));
    }
    let bare = Entity::query(
        "it",
        "params = { customer_id = \"bigint\" }\nquery = \"select 1\"\ndepends_on = [\"public.orders\"]\n",
    );
    let refused = cli(&stage.config().entity(bare), &["check"], &[]).await;
    assert_eq!(refused.status.code(), Some(78), "{refused:?}");
    assert!(refused.stderr.contains("expected a table with what a change there voids, such as {"), "{refused:?}");
}
