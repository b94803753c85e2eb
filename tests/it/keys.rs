//! Keys: each value has one entry, whatever it is and however a request spells it.

use crate::harness::{Entity, Scene, Stage, encode, in_redis};

/// Reads under each spelling, changes the row in SQL, and finds the one entry refreshed: `key` is the whole key in
/// Redis without the entity's name. The row has a column `n`.
async fn one_entry(scene: &Scene, entity: &str, key: &str, spellings: &[&str], update: &str) {
    let what = format!("{entity}:{key}");
    for spelling in spellings {
        let response = scene.get(&format!("{entity}/{spelling}")).await.expect(200);
        assert_eq!(response.json()["n"], 0, "{what} as {spelling}");
    }
    assert_eq!(scene.keys(entity).await, [key], "{spellings:?}");
    scene.write(update).await;
    assert_eq!(scene.keys(entity).await, [key], "after the event");
    let entry = scene.stored(&what).await.unwrap_or_else(|| panic!("{what} was not refreshed in place"));
    assert!(entry.value.contains("\"n\":1"), "{what}: {entry:?}");
    for spelling in spellings {
        let response = scene.get(&format!("{entity}/{spelling}")).await.expect(200);
        assert_eq!(response.json()["n"], 1, "{what} as {spelling}");
        assert_ne!(response.header("x-cache"), "MISS", "{what} as {spelling}");
    }
    assert_eq!(scene.keys(entity).await, [key]);
}

#[tokio::test]
async fn spellings_of_a_value_share_one_entry_or_are_refused() {
    let stage = Stage::shared("keys").await;
    let schema = "
        CREATE TYPE state AS ENUM ('new', 'in transit, held', 'paid/50%');
        CREATE DOMAIN code AS int CHECK (VALUE > 0);
        CREATE TABLE ints (k int PRIMARY KEY, n int DEFAULT 0);
        CREATE TABLE bigs (k int8 PRIMARY KEY, n int DEFAULT 0);
        CREATE TABLE codes (k code PRIMARY KEY, n int DEFAULT 0);
        CREATE TABLE uuids (k uuid PRIMARY KEY, n int DEFAULT 0);
        CREATE TABLE lines (note text, line int, \"order\" int, PRIMARY KEY (\"order\", line), n int DEFAULT 0);
        CREATE TABLE chars (k char(5) PRIMARY KEY, n int DEFAULT 0);
        CREATE DOMAIN phase AS state CHECK (VALUE <> 'new');
        CREATE TABLE states (k state PRIMARY KEY, n int DEFAULT 0);
        CREATE TABLE phases (k phase PRIMARY KEY, n int DEFAULT 0);
        CREATE TABLE dates (k date PRIMARY KEY, n int DEFAULT 0);
        CREATE TABLE moments (k timestamptz PRIMARY KEY, n int DEFAULT 0);
        CREATE TABLE prices (k numeric(10, 2) PRIMARY KEY, n int DEFAULT 0);
        CREATE TABLE flags (k bool PRIMARY KEY, n int DEFAULT 0);
        INSERT INTO ints VALUES (42); INSERT INTO bigs VALUES (-9223372036854775808); INSERT INTO codes VALUES (7);
        INSERT INTO uuids VALUES ('a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11');
        INSERT INTO lines VALUES ('x', 3, 7); INSERT INTO chars VALUES ('ab'); INSERT INTO states VALUES ('paid/50%');
        INSERT INTO phases VALUES ('paid/50%');
        INSERT INTO dates VALUES ('2024-02-29'); INSERT INTO moments VALUES ('2024-02-29 13:05:00.25+00');
        INSERT INTO prices VALUES (10.50); INSERT INTO flags VALUES (true);
        DO $$ BEGIN
            EXECUTE format('ALTER DATABASE %I SET TimeZone = ''Asia/Kolkata''', current_database());
            EXECUTE format('ALTER DATABASE %I SET DateStyle = ''German, DMY''', current_database());
        END $$";
    stage.execute(schema).await;
    let tables =
        ["ints", "bigs", "codes", "uuids", "lines", "chars", "states", "phases", "dates", "moments", "prices", "flags"];
    let scene = Scene::on(stage, |config| {
        tables.iter().fold(config, |config, table| config.entity(Entity::new(table, &format!("public.{table}"))))
    })
    .await;
    let cases: &[(&str, &str, &[&str])] = &[
        ("ints", "42", &["42", "042", "%34%32", "+42", "%2B42"]),
        ("bigs", "-9223372036854775808", &["-9223372036854775808", "-09223372036854775808"]),
        ("codes", "7", &["7", "007"]),
        (
            "uuids",
            "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11",
            &[
                "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11",
                "A0EEBC99-9C0B-4EF8-BB6D-6BB9BD380A11",
                "a0eebc999c0b4ef8bb6d6bb9bd380a11",
            ],
        ),
        ("lines", "7,3", &["7,3", "07,+3"]),
        ("chars", "ab   ", &["ab", "ab%20", "ab%20%20%20"]),
        ("states", "paid/50%25", &["paid%2F50%25"]),
        ("phases", "paid/50%25", &["paid%2F50%25"]),
        ("dates", "2024-02-29", &["2024-02-29"]),
        (
            "moments",
            "2024-02-29 13:05:00.25+00",
            &["2024-02-29%2013:05:00.25+00", "2024-02-29T13:05:00.25Z", "2024-02-29%2013%3A05%3A00.25%2B00"],
        ),
        ("prices", "10.50", &["10.50"]),
        ("flags", "t", &["t", "true"]),
    ];
    for (entity, key, spellings) in cases {
        one_entry(&scene, entity, key, spellings, &format!("UPDATE {entity} SET n = n + 1")).await;
    }
    let refused = [
        "ints/abc",
        "ints/",
        "ints/4.2",
        "ints/2147483648",
        "ints/%2042",
        "ints/42,1",
        "ints/%",
        "ints/%00",
        "ints/%ff",
        "bigs/9223372036854775808",
        "codes/x",
        "uuids/a0eebc99",
        "uuids/%7Ba0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11%7D",
        "lines/7",
        "lines/7,3,1",
        "lines/7%2C3",
        "chars/abcdef",
        "states/old",
        "dates/2023-02-29",
        "dates/29.02.2024",
        "moments/2024-02-29%2013:05:00.250+00",
        "moments/2024-02-29%2018:35:00.25+05:30",
        "prices/10.5",
        "prices/010.50",
        "flags/yes",
    ];
    for path in refused {
        let response = scene.get(path).await;
        assert_eq!(response.status, 400, "{path}: {response:?}");
        assert_eq!(response.header("content-type"), "application/problem+json");
        assert_eq!(response.json()["type"], "urn:walcache:problem:malformed-key", "{path}");
    }
    for (entity, key, _) in cases {
        assert_eq!(scene.keys(entity).await, [*key], "no refused request left an entry");
    }
    scene.verify().await;
}

#[tokio::test]
async fn text_keys_hold_any_character() {
    let schema = "CREATE TABLE notes (k text PRIMARY KEY, n int DEFAULT 0);
        CREATE TABLE pairs (a text, b text, n int DEFAULT 0, PRIMARY KEY (a, b));";
    let scene = Scene::open("text_keys", schema, |config| {
        config.entity(Entity::new("note", "public.notes")).entity(Entity::new("pair", "public.pairs"))
    })
    .await;
    let long = "long key, 100%/".repeat(10 * 1024 / 15);
    let keys = [
        "",
        " ",
        "  ",
        "a",
        "A",
        "a b",
        "a/b",
        "a%2Fb",
        "a%252Fb",
        "a%2fb",
        "%",
        "%%",
        "%25",
        "a,b",
        "a%2Cb",
        ",",
        ",,",
        "a:b",
        ":",
        "note:a",
        "~walcache:fence",
        "'",
        "\"",
        "it's \"so\"",
        "\\",
        "\\n",
        "\n",
        "\t",
        "\r\n",
        "\u{1}",
        "\u{1f}",
        "\u{7f}",
        "é",
        "e\u{301}",
        "É",
        "😀",
        "\u{2028}",
        "\u{feff}",
        "+",
        "a+b",
        "?",
        "#",
        "&=",
        "{a}",
        "{",
        "null",
        "NULL",
        "..",
        ".",
        "batch",
        "*",
        "[a-z]",
        "a ",
        " a",
        "0",
        "00",
        &long,
    ];
    let insert = scene.sql.prepare("INSERT INTO notes VALUES ($1)").await.unwrap();
    for key in &keys {
        scene.sql.execute(&insert, &[key]).await.unwrap();
    }
    scene.applied().await;
    let at = |key: &str| format!("note/{}", encode(key));
    for key in &keys {
        let response = scene.get(&at(key)).await.expect(200);
        assert_eq!((response.json()["k"].as_str(), response.header("x-cache")), (Some(*key), "MISS"), "{key:?}");
    }
    let mut entries: Vec<String> = keys.iter().map(|key| in_redis(key)).collect();
    entries.sort();
    assert_eq!(scene.keys("note").await, entries, "an entry for each key");
    scene.write("UPDATE notes SET n = length(k) + 1").await;
    assert_eq!(scene.keys("note").await, entries);
    for key in &keys {
        let entry = scene.stored(&format!("note:{}", in_redis(key))).await.unwrap();
        assert!(entry.value.ends_with(&format!("\"n\":{}}}", key.chars().count() + 1)), "{key:?}: {entry:?}");
        let response = scene.get(&at(key)).await.expect(200);
        assert_eq!((response.json()["k"].as_str(), response.header("x-cache")), (Some(*key), "HIT-L2"), "{key:?}");
    }
    // Spelled out where encoding is optional, and in lower-case hexadecimal.
    for (spelling, key) in [("a%2fb", "a/b"), ("a%252fb", "a%2fb"), ("%61", "a"), ("a:b", "a:b"), ("a+b", "a+b")] {
        let response = scene.get(&format!("note/{spelling}")).await.expect(200);
        assert_eq!(response.json()["k"], *key, "{spelling}");
    }
    // A batch takes keys as they stand in the path.
    let spelled: Vec<String> = keys.iter().map(|key| encode(key)).collect();
    let batch =
        scene.http.post("/v1/note/batch", &serde_json::json!({ "keys": spelled }), &[]).await.expect(200).json();
    for (key, item) in keys.iter().zip(batch["items"].as_array().unwrap()) {
        assert_eq!((item["status"].as_u64(), item["value"]["k"].as_str()), (Some(200), Some(*key)), "{item}");
    }

    // Parts that would be one text if they were only joined.
    let parts = ["", "a", "b", ",", "a,b", "a%2C", "%2C", "b:c", "/"];
    let insert = scene.sql.prepare("INSERT INTO pairs VALUES ($1, $2)").await.unwrap();
    for (a, b) in parts.iter().flat_map(|a| parts.iter().map(move |b| (a, b))) {
        scene.sql.execute(&insert, &[a, b]).await.unwrap();
    }
    scene.applied().await;
    for (a, b) in parts.iter().flat_map(|a| parts.iter().map(move |b| (*a, *b))) {
        let row = scene.get(&format!("pair/{},{}", encode(a), encode(b))).await.expect(200).json();
        assert_eq!((row["a"].as_str(), row["b"].as_str()), (Some(a), Some(b)));
    }
    assert_eq!(scene.keys("pair").await.len(), parts.len() * parts.len());
    scene.write("DELETE FROM notes WHERE k IN ('', ',', '%', 'é'); UPDATE pairs SET n = 1").await;
    scene.verify().await;
}

/// Postgres takes keys that no request may have: they must not stop the stream.
#[tokio::test]
async fn keys_that_are_too_long_are_refused_and_not_cached() {
    let schema = "CREATE TABLE notes (k text PRIMARY KEY, n int DEFAULT 0); INSERT INTO notes VALUES ('a')";
    let scene = Scene::open("long_keys", schema, |config| {
        config.entity(Entity::new("note", "public.notes").set("populate", true))
    })
    .await;
    scene.write("INSERT INTO notes VALUES (repeat('x', 20000)), (repeat('x', 16384)), ('b')").await;
    let mut keys = scene.keys("note").await;
    keys.sort_by_key(String::len);
    assert_eq!(keys, ["b".to_owned(), "x".repeat(16384)]);
    assert_eq!(scene.get(&format!("note/{}", "x".repeat(16384))).await.status, 200);
    for count in [16385, 20000, 60000] {
        let response = scene.get(&format!("note/{}", "x".repeat(count))).await;
        assert_eq!(response.json()["type"], "urn:walcache:problem:uri-too-long", "{count}");
        assert_eq!(response.status, 414);
    }
}
