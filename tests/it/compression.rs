//! Large values are compressed in L2: by fills, by events, and what an update leaves alone is taken from them all the same.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use redis::AsyncCommands;
use serde_json::Value;

use crate::harness::{Config, Entity, Oracle, Scene, eventually};

/// Some compress well; `noise` does not, and lies out of line.
const SCHEMA: &str = "CREATE FUNCTION noise(seed int, length int) RETURNS text LANGUAGE sql IMMUTABLE AS $$
        SELECT substr(string_agg(md5(seed || '/' || i), ''), 1, length) FROM generate_series(1, length / 32 + 1) i $$;
    CREATE TABLE docs (id int PRIMARY KEY, n int NOT NULL, body text, noise text);
    ALTER TABLE docs ALTER body SET STORAGE EXTERNAL, ALTER noise SET STORAGE EXTERNAL;
    INSERT INTO docs SELECT i, 0, repeat(E'walcache \\\\ \" \\n ', 3000), noise(i, 3000) FROM generate_series(1, 8) i;
    INSERT INTO docs VALUES (20, 0, 'short', 'short');";

fn entities(config: Config) -> Config {
    config
        .set("l1", "enabled", false)
        .entity(Entity::new("packed", "public.docs").set("compress_above", "16KiB"))
        .entity(Entity::new("pop", "public.docs").set("compress_above", "16KiB").set("populate", true))
        .entity(Entity::new("plain", "public.docs"))
}

/// The stored text, and whether it says that it is compressed.
async fn stored(scene: &Scene, key: &str) -> Option<(Vec<u8>, bool)> {
    let text = scene.raw(key).await?.to_vec();
    let json: Value = serde_json::from_slice(&text).unwrap();
    let compressed = json["z"] == 1;
    assert_eq!(compressed, json["v"].is_string());
    Some((text, compressed))
}

#[tokio::test]
async fn large_values_are_compressed_by_fills_and_by_events() {
    let scene = Scene::open("pack", SCHEMA, entities).await;
    for key in [1, 2, 20, 99] {
        for entity in ["packed", "pop", "plain"] {
            scene.get(&format!("{entity}/{key}")).await;
            let from_redis = scene.get(&format!("{entity}/{key}")).await;
            assert_eq!(from_redis.header("x-cache"), "HIT-L2");
        }
        let (packed, compressed) = stored(&scene, &format!("packed:{key}")).await.unwrap();
        let (plain, not) = stored(&scene, &format!("plain:{key}")).await.unwrap();
        assert_eq!((compressed, not), (key < 20, false), "{key}");
        if compressed {
            assert!(packed.len() < plain.len() / 3, "{} of {}", packed.len(), plain.len());
        } else {
            assert_eq!(packed.len(), plain.len());
        }
        let (packed, plain) = (scene.get(&format!("packed/{key}")).await, scene.get(&format!("plain/{key}")).await);
        assert!(packed.body == plain.body || key == 99 && packed.status == 404 && plain.status == 404);
    }
    // Read as anybody can: base64, then a zstd frame of the JSON.
    let (packed, _) = stored(&scene, "packed:1").await.unwrap();
    let json: Value = serde_json::from_slice(&packed).unwrap();
    let frame = STANDARD.decode(json["v"].as_str().unwrap()).unwrap();
    let value = zstd::stream::decode_all(&frame[..]).unwrap();
    assert_eq!(value, scene.get("plain/1").await.body);

    // `body` and `noise` are not in the stream: they come from the compressed entry, byte for byte.
    for n in 1..4 {
        scene.write(&format!("UPDATE docs SET n = {n} WHERE id IN (1, 2, 20)")).await;
        for entity in ["packed", "pop"] {
            for key in [1, 2, 20] {
                let (_, compressed) = stored(&scene, &format!("{entity}:{key}")).await.expect("it was dropped");
                assert_eq!(compressed, key < 20, "{entity}:{key}");
                let response = scene.get(&format!("{entity}/{key}")).await.expect(200);
                assert_eq!((response.header("x-cache"), &response.json()["n"]), ("HIT-L2", &n.into()));
            }
        }
    }
    // It grows and shrinks, comes and goes.
    scene
        .write("UPDATE docs SET body = repeat('x', 50000) WHERE id = 20; UPDATE docs SET body = 'x' WHERE id = 1")
        .await;
    scene.write("INSERT INTO docs SELECT 30, 0, repeat('y', 100000), NULL").await;
    for (key, wanted) in [("packed:20", true), ("packed:1", false), ("pop:30", true)] {
        assert_eq!(stored(&scene, key).await.map(|(_, compressed)| compressed), Some(wanted), "{key}");
    }
    scene.write("DELETE FROM docs WHERE id = 2").await;
    scene.get("packed/2").await.expect(404);
    Oracle::new(&scene).verify().await;

    let explained = scene.daemon.admin().get("/v1/explain/packed/20").await.expect(200).json();
    assert_eq!((&explained["l2"]["case"], &explained["l2"]["compressed"]), (&"agrees".into(), &true.into()));
    let verified =
        crate::harness::cli(&scene.config, &["verify", "--admin", scene.daemon.admin_address(), "--all"], &[]).await;
    assert!(verified.status.success(), "{verified:?}");
}

/// What somebody put there that takes far more memory than it seems to, or that is damaged, is nothing.
#[tokio::test]
async fn a_bomb_in_redis_is_read_by_nobody() {
    let scene = Scene::open("pack_bomb", SCHEMA, |config| entities(config).set("apply", "max_value", "1MiB")).await;
    scene.get("packed/1").await.expect(200);
    let (text, compressed) = stored(&scene, "packed:1").await.unwrap();
    assert!(compressed);
    let spaces = vec![b' '; 512 << 20];
    let honest = zstd::bulk::compress(&spaces, 1).unwrap();
    drop(spaces);
    // The size in the frame's head is eight bytes, or four, from the sixth on: a lie about it.
    let mut lying = honest.clone();
    lying[5..9].copy_from_slice(&1000_u32.to_le_bytes());
    let before = scene.daemon.peak_mib();
    for (key, frame) in [(2, honest), (3, lying), (4, b"no frame".to_vec())] {
        let bomb = [&text[..108], b"\"", STANDARD.encode(frame).as_bytes(), b"\"}"].concat();
        let name = format!("packed:{key}");
        let _: () = scene.l2.clone().set(&name, bomb).await.unwrap();
        let response = scene.get(&format!("packed/{key}")).await.expect(200);
        assert_eq!((response.header("x-cache"), &response.json()["id"]), ("BYPASS", &key.into()));
        // It does not stand in the way of the next one.
        eventually("be cached again", || async {
            let response = scene.get(&format!("packed/{key}")).await.expect(200);
            if response.header("x-cache") == "HIT-L2" { Ok(()) } else { Err(format!("{:?}", response.headers)) }
        })
        .await;
        // And an update that would take its values from it drops it.
        let _: () = scene.l2.clone().set(&name, &text[..200]).await.unwrap();
        scene.write(&format!("UPDATE docs SET n = 9 WHERE id = {key}")).await;
        assert_eq!(scene.get(&format!("packed/{key}")).await.expect(200).json()["n"], 9);
    }
    let grown = scene.daemon.peak_mib() - before;
    assert!(grown < 100, "{grown} MiB");
    scene.verify().await;
}

/// The snippet of `docs/entities.md`, as it stands there, gives the very bytes of a value, compressed or not.
#[tokio::test]
async fn the_documented_way_to_read_an_entry_gives_its_bytes() {
    let docs = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/entities.md");
    let docs = std::fs::read_to_string(docs).unwrap();
    let section = docs.split("\n## Compression").nth(1).expect("a section on compression");
    let snippet = section.split("```sh\n").nth(1).and_then(|rest| rest.split("```").next()).expect("a snippet");
    if std::process::Command::new("zstd").arg("--version").output().is_err() {
        println!("SKIPPED: the snippet needs zstd, which this machine lacks");
        return;
    }
    let scene = Scene::open(
        "pack_snippet",
        r#"CREATE TABLE docs (id int PRIMARY KEY, big bigint, price numeric, body text);
        INSERT INTO docs SELECT 41 + i, 9007199254740993, 1.10, repeat(E'"z":1,"v":"\\\\n %s $(x) `y`\\n}', 1 + (i - 1) * 2000)
        FROM generate_series(1, 2) i"#,
        |config| config.entity(Entity::new("doc", "public.docs").set("compress_above", "16KiB")),
    )
    .await;
    let dir = tempfile::tempdir().unwrap();
    let path = format!("{}:{}", dir.path().display(), std::env::var("PATH").unwrap_or_default());
    for (key, compressed) in [(42, false), (43, true)] {
        let value = scene.get(&format!("doc/{key}")).await.expect(200);
        let text = value.text();
        assert!(text.contains("9007199254740993") && text.contains(":1.10,"), "{text}");
        let (entry, is_compressed) = stored(&scene, &format!("doc:{key}")).await.unwrap();
        assert_eq!(is_compressed, compressed, "{key}");
        // In place of the server: `--raw` gives the bytes, and ends them with a line.
        std::fs::write(dir.path().join("entry"), &entry).unwrap();
        let client = dir.path().join("redis-cli");
        std::fs::write(&client, format!("#!/bin/sh\ncat '{}'\necho\n", dir.path().join("entry").display())).unwrap();
        std::fs::set_permissions(&client, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        let mut sh = tokio::process::Command::new("sh");
        let done = sh.arg("-c").arg(snippet).env("PATH", &path).output().await.unwrap();
        assert!(done.status.success() && done.stderr.is_empty(), "{done:?}");
        assert!(done.stdout == value.body, "{key}: {}", String::from_utf8_lossy(&done.stdout));
    }
}
