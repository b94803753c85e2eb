//! Parameters of every kind that can be a key.

use crate::harness::{Entity, Scene, encode, pinned};

const SCHEMA: &str = "CREATE TYPE mood AS ENUM ('sad', 'so, so', 'ok');
    CREATE TABLE things (n int PRIMARY KEY, id uuid NOT NULL, name text, mood mood, day date, at timestamptz, on_it bool,
        price numeric(10,2), code char(3), small smallint, long varchar(20));
    ALTER TABLE things REPLICA IDENTITY FULL;
    INSERT INTO things SELECT i, md5(i::text)::uuid, (ARRAY['plain', 'a,b', '100%', 'a/b c', 'ü\"{}', '', E'tab\\t'])[1 + i % 7],
        (ARRAY['sad', 'so, so', 'ok'])[1 + i % 3]::mood, date '2024-02-27' + i, timestamptz '2024-01-01 00:00:00.5Z' + i * interval '1 hour',
        i % 2 = 0, i * 1.25, chr(64 + i), i, 'v' || i FROM generate_series(1, 9) i;";

/// An entity for each column: a parameter's name, its type, and the column.
const KINDS: [(&str, &str, &str); 10] = [
    ("by_id", "uuid", "id"),
    ("by_name", "text", "name"),
    ("by_mood", "mood", "mood"),
    ("by_day", "date", "day"),
    ("by_at", "timestamptz", "at"),
    ("by_on", "boolean", "on_it"),
    ("by_price", "numeric(10,2)", "price"),
    ("by_code", "char(3)", "code"),
    ("by_small", "bigint", "small"),
    ("by_long", "text", "long"),
];

fn entity(name: &str, of_type: &str, column: &str) -> Entity {
    let text = format!(
        "params = {{ p = \"{of_type}\" }}\nquery = \"select n, {column} as value from things where {column} = $1 order by n\"\n\
         depends_on = [{{ table = \"things\", key = {{ p = \"{column}\" }} }}]\n"
    );
    Entity::query(name, &text)
}

#[tokio::test]
async fn each_type_that_can_be_a_key_can_be_a_parameter() {
    let several = r#"
params = { name = "text", mood = "mood", small = "int" }
query = "select n, price from things where mood = $2 and name = $1 and small = $3"
shape = "one"
depends_on = [{ table = "things", key = { small = "small", mood = "mood", name = "name" } }]
"#;
    let scene = Scene::open("query_params", SCHEMA, |config| {
        let config = KINDS.iter().fold(config, |config, (name, of, column)| config.entity(entity(name, of, column)));
        config.entity(Entity::query("by_several", several))
    })
    .await;
    pinned(&scene.sql).await;
    for change in [
        "UPDATE things SET price = price",
        "UPDATE things SET name = 'a,b', mood = 'ok', day = '2030-01-01', at = '2030-01-01Z', on_it = NULL, price = 7, code = 'zz',
             small = 99, long = 'far', id = md5('new')::uuid WHERE n = 3",
        "DELETE FROM things WHERE n = 4",
        "INSERT INTO things VALUES (20, md5('1')::uuid, '100%', 'sad', '2024-02-28', '2024-01-01 01:00:00.5Z', true, 1.25, 'A', 1, 'v1')",
    ] {
        for (name, _, column) in KINDS {
            for row in scene.sql.query(&format!("SELECT DISTINCT concat({column}) FROM things WHERE {column} IS NOT NULL"), &[]).await.unwrap() {
                read(&scene, name, &[row.get(0)]).await;
            }
        }
        for row in scene.sql.query("SELECT concat(name), concat(mood), concat(small) FROM things", &[]).await.unwrap() {
            read(&scene, "by_several", &[row.get(0), row.get(1), row.get(2)]).await;
        }
        assert!(scene.keys("by_several").await.len() >= 8);
        scene.write(change).await;
        scene.verify().await;
    }
    // Spelled otherwise, it is the same entry; and what is no value is refused.
    let id: String = scene.sql.query_one("SELECT upper(id::text) FROM things WHERE n = 1", &[]).await.unwrap().get(0);
    assert_eq!(scene.get(&format!("by_id/{id}")).await.expect(200).json()[0]["n"], 1);
    assert_eq!(scene.get("by_small/+01").await.expect(200).text(), scene.get("by_small/1").await.text());
    for path in ["by_id/1", "by_mood/glad", "by_price/1.5", "by_several/a,ok", "by_small/x", "by_day/2024-2-1"] {
        scene.get(path).await.expect(400);
    }
}

async fn read(scene: &Scene, entity: &str, parts: &[&str]) {
    let key: Vec<String> = parts.iter().map(|part| encode(part)).collect();
    let response = scene.get(&format!("{entity}/{}", key.join(","))).await;
    assert!([200, 404].contains(&response.status.as_u16()), "{parts:?}: {response:?}");
}
