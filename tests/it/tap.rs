//! `walcache tap`: what is applied, and what it does to entries.

use serde_json::{Value, json};

use crate::harness::{Entity, Finished, Scene, cli, plugin};

async fn scene(name: &str) -> Scene {
    let schema = "CREATE TABLE items (id int PRIMARY KEY, n int); CREATE TABLE notes (id int PRIMARY KEY, t text);
                  INSERT INTO items VALUES (1, 0), (2, 0); INSERT INTO notes VALUES (1, 'a')";
    Scene::open(name, schema, |config| {
        config.entity(Entity::new("item", "items")).entity(Entity::new("note", "notes").set("on_change", "invalidate"))
    })
    .await
}

/// Writes again and again while somebody watches: nobody knows when watching begins.
async fn watched(scene: &Scene, arguments: &[&str], sql: &str) -> Finished {
    let target = format!("http://{}", scene.daemon.admin_address());
    let arguments = [&["tap", "--admin", &target], arguments].concat();
    let tap = cli(&scene.config, &arguments, &[]);
    tokio::pin!(tap);
    loop {
        tokio::select! {
            done = &mut tap => return done,
            _ = scene.write(sql) => {}
        }
    }
}

/// Each effect of an event, as `effect entity:key`.
fn effects(event: &Value) -> Vec<String> {
    let text = |effect: &Value, name: &str| effect[name].as_str().unwrap_or_default().to_owned();
    let words = |e: &Value| format!("{} {}:{}", text(e, "effect"), text(e, "entity"), text(e, "key"));
    event["effects"].as_array().unwrap().iter().map(words).collect()
}

/// Watches, and gives the place after what has come; from then on everything is recorded for some time.
async fn watching(scene: &Scene) -> String {
    let mut from = asked_for_the_first_time(scene).await;
    // The last write may have been under way still.
    scene.write("UPDATE items SET n = n + 1 WHERE id = 1").await;
    loop {
        let answer = ask(scene, &from, "").await;
        from = answer["next"].as_str().unwrap().to_owned();
        let events = answer["events"].as_array().unwrap();
        if events.iter().any(|event| effects(event).contains(&"put item:1".to_owned())) {
            return from;
        }
    }
}

async fn asked_for_the_first_time(scene: &Scene) -> String {
    let asked = async { scene.daemon.admin().get("/v1/tap").await.expect(200).json() };
    tokio::pin!(asked);
    loop {
        tokio::select! {
            answer = &mut asked => return answer["next"].as_str().unwrap().to_owned(),
            _ = scene.write("UPDATE items SET n = n + 1 WHERE id = 2") => {}
        }
    }
}

/// One answer, from a place on.
async fn ask(scene: &Scene, from: &str, more: &str) -> Value {
    scene.daemon.admin().get(&format!("/v1/tap?from={from}{more}")).await.expect(200).json()
}

/// The keys of items that were put, from a place on until that of `last`, without what [`watching`] may have written last.
async fn puts(scene: &Scene, from: &str, last: &str) -> Vec<String> {
    let (mut from, mut keys, mut in_vain) = (from.to_owned(), Vec::new(), 0);
    while keys.last().map(String::as_str) != Some(last) {
        let answer = ask(scene, &from, "&entity=item").await;
        assert_eq!((&answer["missed"], &answer["restarted"]), (&json!(0), &json!(false)), "{answer}");
        let events = answer["events"].as_array().unwrap();
        in_vain += usize::from(events.is_empty());
        assert!(in_vain < 10, "{last} does not come: {keys:?}");
        let put = events.iter().flat_map(effects).filter_map(|e| Some(e.strip_prefix("put item:")?.to_owned()));
        keys.extend(put.filter(|key| key != "2"));
        from = answer["next"].as_str().unwrap().to_owned();
    }
    keys
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn events_are_shown_with_their_effects() {
    let scene = scene("tap").await;
    let sql = "BEGIN; UPDATE items SET n = n + 1 WHERE id = 1; DELETE FROM notes WHERE id = 1;
               INSERT INTO notes VALUES (1, 'secret'); COMMIT; UPDATE notes SET t = 'secret' WHERE id = 1";
    let done = watched(&scene, &["--json", "--count", "20"], sql).await;
    assert_eq!(done.status.code(), Some(0), "{done:?}");
    let events: Vec<Value> = done.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(events.len(), 20);
    // By transaction: each event once, in order. Watching may have begun within the first, and ended within the last.
    let by_xid: Vec<&[Value]> = events.chunk_by(|one, other| one["xid"] == other["xid"]).collect();
    let both = [
        ("update", "public.items", "put item:1", Value::Null),
        ("delete", "public.notes", "void note:1", "delete".into()),
        ("insert", "public.notes", "void note:1", "update".into()),
    ];
    let after = [("update", "public.notes", "void note:1", "update".into())];
    let whole = &by_xid[1..by_xid.len() - 1];
    assert!(whole.windows(2).all(|pair| pair[0].len() != pair[1].len()), "they alternate: {events:?}");
    for events in whole {
        let wanted = if events.len() == 1 { &after[..] } else { &both[..] };
        assert_eq!(events.len(), wanted.len(), "{events:?}");
        for (event, (op, table, effect, cause)) in events.iter().zip(wanted) {
            assert_eq!((&event["op"], &event["tables"]), (&json!(op), &json!([table])));
            assert_eq!((&effects(event)[..], &event["effects"][0]["cause"]), (&[(*effect).to_owned()][..], cause));
            assert!(event["commit_time"].as_str().unwrap().starts_with("20"), "{event}");
        }
    }
    assert!(by_xid.len() > 8, "{events:?}");
    let lsns: Vec<walcache::lsn::Lsn> = by_xid.iter().map(|e| e[0]["lsn"].as_str().unwrap().parse().unwrap()).collect();
    assert!(lsns.is_sorted_by(|one, other| one < other), "{lsns:?}");
    assert!(!done.stdout.contains("secret"), "values are not shown: {}", done.stdout);

    let done = watched(&scene, &["note", "--count", "3"], sql).await;
    assert_eq!((done.status.code(), done.stdout.lines().count()), (Some(0), 3), "{done:?}");
    assert!(done.stdout.lines().all(|line| line.contains(" public.notes -> void note:1 (")), "{done:?}");
    // pgoutput announces a table anew after that.
    // What was written before may still come at first.
    let done = watched(&scene, &["--count", "20"], "TRUNCATE items, notes").await;
    assert_eq!((done.status.code(), done.stdout.lines().count()), (Some(0), 20), "{done:?}");
    let truncated: Vec<&str> = done.stdout.lines().filter(|line| line.contains("  truncate ")).collect();
    assert!(!truncated.is_empty(), "{done:?}");
    let wanted = match plugin() {
        "pgoutput" => &["  truncate public.items, public.notes -> void-all item; void-all note"][..],
        // It tells of each table by itself.
        _ => &["  truncate public.items -> void-all item", "  truncate public.notes -> void-all note"],
    };
    assert!(truncated.iter().all(|line| wanted.iter().any(|wanted| line.ends_with(wanted))), "{done:?}");
}

/// The entries that a lookup finds are told after the change, before later ones.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_lookups_find_is_shown() {
    let schema = "CREATE TABLE items (id int PRIMARY KEY, n int); INSERT INTO items VALUES (1, 0), (2, 0);
                  CREATE TABLE shelves (id int PRIMARY KEY, item int); INSERT INTO shelves VALUES (7, 1), (8, 1), (9, 2)";
    let shelf = r#"
params = { id = "int" }
query = "select i.id, i.n from shelves s join items i on i.id = s.item where s.id = $1"
depends_on = [
    { table = "shelves", key = { id = "id" } },
    { table = "items", lookup = "select id from shelves where item = $1 order by id", from = ["id"] },
]
"#;
    let scene = Scene::open("tap_found", schema, |config| {
        config.entity(Entity::new("item", "items")).entity(Entity::query("shelf", shelf))
    })
    .await;
    let mut from = watching(&scene).await;
    scene.sql.batch_execute("UPDATE items SET n = 5 WHERE id = 1").await.unwrap();
    let last = scene.write("UPDATE items SET n = 6 WHERE id = 2").await;
    let mut events: Vec<Value> = Vec::new();
    while !events.iter().any(|event| effects(event).contains(&"void shelf:9".to_owned())) {
        let answer = ask(&scene, &from, "").await;
        from = answer["next"].as_str().unwrap().to_owned();
        events.extend(answer["events"].as_array().unwrap().iter().cloned());
    }
    let lsn = |event: &Value| event["lsn"].as_str().unwrap().parse::<walcache::lsn::Lsn>().unwrap();
    assert!(events.iter().map(lsn).is_sorted() && events.iter().all(|event| lsn(event) <= last), "{events:?}");
    // Beside those of `watching`, which may be one more.
    let told: Vec<String> =
        events.iter().map(|event| format!("{} {}", event["op"], effects(event).join(", "))).collect();
    let end = told.len() - 4;
    assert_eq!(
        told[end..],
        [
            r#""update" put item:1, lookup shelf:"#,
            r#""found" void shelf:7, void shelf:8"#,
            r#""update" put item:2, lookup shelf:"#,
            r#""found" void shelf:9"#,
        ]
    );
    assert_eq!(events.last().unwrap()["effects"][0]["cause"], "lookup");
    let of_item = ask(&scene, &from, "&entity=item").await;
    assert_eq!(of_item["events"], json!([]), "{of_item}");
}

/// What comes again when the stream breaks is not shown again, and nothing is left out.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_event_is_shown_once_whatever_happens_to_the_stream() {
    let scene = scene("tap_session").await;
    let mut from = watching(&scene).await;
    let mut id = 100;
    for _ in 0..3 {
        let begin = id;
        let insert = async |id: i32| {
            scene.sql.execute("INSERT INTO items VALUES ($1, 0)", &[&id]).await.unwrap();
        };
        for _ in 0..5 {
            insert(id).await;
            id += 1;
        }
        let ended = "SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE slot_name = $1 AND active";
        scene.sql.execute(ended, &[&scene.stage.name]).await.unwrap();
        for _ in 0..5 {
            insert(id).await;
            id += 1;
        }
        scene.applied().await;
        let keys = puts(&scene, &from, &(id - 1).to_string()).await;
        assert_eq!(keys, (begin..id).map(|id| id.to_string()).collect::<Vec<_>>());
        from = watching(&scene).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_daemon_started_anew_says_that_it_does_not_know_what_was_missed() {
    let mut scene = scene("tap_restart").await;
    let from = watching(&scene).await;
    assert!(scene.daemon.terminate().await.success());
    scene.daemon = crate::harness::Daemon::start(&scene.config).await;
    scene.daemon.wait_ready().await;
    let answer = ask(&scene, &from, "").await;
    assert_eq!((&answer["restarted"], &answer["missed"]), (&json!(true), &json!(0)), "{answer}");
    // And goes on from there.
    scene.write("INSERT INTO items VALUES (200, 0)").await;
    assert_eq!(puts(&scene, answer["next"].as_str().unwrap(), "200").await, ["200"]);
}

/// Of what is too much, the rest is counted.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn too_much_is_counted() {
    let scene = scene("tap_much").await;
    let from = watching(&scene).await;
    let keys = (0..500).map(|key| key.to_string()).collect::<Vec<_>>().join(",");
    let command = |text: &str| format!("SELECT pg_logical_emit_message(true, 'walcache', '{text}')");
    scene.write(&command(&format!(r#"{{"invalidate":{{"entity":"item","keys":[{keys}]}}}}"#))).await;
    let answer = ask(&scene, &from, "").await;
    let event = &answer["events"][0];
    assert_eq!((&event["op"], &event["more"], effects(event).len()), (&json!("command"), &json!(400), 100), "{event}");
    assert_eq!(effects(event)[99], "void item:99");

    // A transaction, for whomever it concerns.
    let from = answer["next"].as_str().unwrap();
    scene.write("INSERT INTO items SELECT i, 0 FROM generate_series(1001, 2500) i").await;
    let answer = ask(&scene, from, "").await;
    assert_eq!((answer["events"].as_array().unwrap().len(), &answer["missed"]), (1000, &json!(0)));
    let last = ask(&scene, answer["next"].as_str().unwrap(), "&entity=note").await;
    assert_eq!((&last["events"][0]["op"], &last["events"][0]["left_out"]), (&json!("more"), &json!(500)), "{last}");

    // A tag is of whichever entity bears it.
    let from = last["next"].as_str().unwrap();
    scene.write(&command(r#"{"tag":["some:tag"]}"#)).await;
    for entity in ["", "&entity=note", "&entity=item"] {
        let answer = ask(&scene, from, entity).await;
        assert_eq!(effects(&answer["events"][0]), ["void-tag :"], "{entity}: {answer}");
    }

    // What was recorded, and not fetched in time.
    for start in (10_000..22_000).step_by(1000) {
        scene.write(&format!("INSERT INTO items SELECT {start} + i, 0 FROM generate_series(1, 1000) i")).await;
    }
    let answer = ask(&scene, from, "").await;
    // The tag and twelve times a thousand, of which ten thousand are kept.
    assert_eq!(answer["missed"], 2001, "{}", answer["next"]);
    assert_eq!(effects(&answer["events"][0]), ["put item:12001"]);
}

/// Whoever reads what is printed may go: the verb ends as it would, and says nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn verbs_end_quietly_when_nobody_reads_them() {
    let scene = scene("tap_pipe").await;
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), scene.config.to_toml()).unwrap();
    let target = format!("http://{}", scene.daemon.admin_address());
    let run = |arguments: &[&str], out: std::process::Stdio| {
        let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_walcache"));
        command.args(arguments).arg("--config").arg(file.path()).stdout(out).stderr(std::process::Stdio::piped());
        command.kill_on_drop(true).spawn().unwrap().wait_with_output()
    };
    let closed = || {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        std::process::Stdio::from(writer)
    };
    let tap = run(&["tap", "--admin", &target], closed());
    tokio::pin!(tap);
    let ended = loop {
        tokio::select! {
            ended = &mut tap => break ended.unwrap(),
            _ = scene.write("UPDATE items SET n = n + 1") => {}
        }
    };
    assert_eq!((ended.status.code(), String::from_utf8_lossy(&ended.stderr).as_ref()), (Some(0), ""));
    for (arguments, code) in [
        (&["check"][..], 0),
        (&["setup"], 0),
        (&["setup", "--apply"], 0),
        (&["explain", "item", "1", "--admin", &target], 0),
        (&["explain", "--sql", "delete from items"], 0),
        (&["explain", "--sql", "select 1", "--json"], 2),
        (&["invalidate", "item:1", "--admin", &target], 0),
        (&["invalidate", "--entity", "item", "--dry-run", "--admin", &target], 0),
        (&["resync", "--admin", &target], 0),
        (&["verify", "--admin", &target], 0),
        (&["warm", "item", "--admin", &target], 0),
    ] {
        let ended = run(arguments, closed()).await.unwrap();
        let said = String::from_utf8_lossy(&ended.stderr);
        assert_eq!((ended.status.code(), said.contains("panicked")), (Some(code), false), "{arguments:?}: {said}");
        // Whereas what is lost on a full disk is a failure.
        let full = std::fs::File::options().write(true).open("/dev/full").unwrap();
        let ended = run(arguments, full.into()).await.unwrap();
        let said = String::from_utf8_lossy(&ended.stderr);
        let lost = said.contains("write to standard output: No space left on device");
        assert!(code != 0 || (ended.status.code() == Some(69) && lost), "{arguments:?}: {said}");
    }
}

#[tokio::test]
async fn who_asks_wrongly_is_told() {
    let scene = scene("tap_wrong").await;
    let admin = scene.daemon.admin();
    for (query, said) in
        [("?entity=nothing", "there is no entity"), ("?from=x", "from must be"), ("?wat=1", "are entity and from")]
    {
        let response = admin.get(&format!("/v1/tap{query}")).await;
        assert!((response.status == 400 || response.status == 404) && response.text().contains(said), "{response:?}");
    }
    let target = format!("http://{}", scene.daemon.admin_address());
    let done = cli(&scene.config, &["tap", "nothing", "--admin", &target], &[]).await;
    assert_eq!(done.status.code(), Some(2), "{done:?}");
}
