use super::*;
use crate::entity::{Definition, Shape};
use crate::key::{KeyColumn, KeyType};
use proptest::prelude::*;

fn column(name: &str, key_type: KeyType) -> KeyColumn {
    KeyColumn { name: name.into(), type_oid: 0, key_type, cast: String::new() }
}

fn entity(id: usize, name: &str, key: Vec<KeyColumn>) -> Arc<Entity> {
    let shape = Shape { key, ..Shape::unknown(0) };
    // It can be any tag.
    let tags = vec!["{any}".parse().unwrap()];
    Arc::new(Entity::new(id, Definition { tags, ..Definition::rows(name, "public", name) }, "p:", shape))
}

fn planner() -> CommandPlanner {
    let int = || KeyType::Integer(i32::MIN.into(), i32::MAX.into());
    CommandPlanner::new(vec![
        entity(0, "product", vec![column("id", int())]),
        entity(1, "line", vec![column("order", int()), column("code", KeyType::Text)]),
        entity(2, "price", vec![column("amount", KeyType::Numeric(2))]),
        entity(3, "flag", vec![column("on", KeyType::Bool)]),
    ])
}

/// What a message does, in words: `- p:product:42`, `discard 0`, `warm p:product:42`, `Invalidate BadKey`.
fn planned(content: &str) -> Vec<String> {
    let Planned { effects, warm, warm_all, verdicts } = planner().plan(content.as_bytes());
    let effects = effects.into_iter().map(|effect| match effect {
        Effect::Delete { key, cause: Cause::Command, .. } => format!("- {}", String::from_utf8(key).unwrap()),
        Effect::Discard { entity, cause: Cause::Command } => format!("discard {entity}"),
        Effect::Void(Void::Tag(cell)) => format!("tag {}", cell.index()),
        Effect::Void(Void::Pattern { entity, glob }) => format!("void {entity} {}", glob.text()),
        Effect::Void(Void::Entity { entity }) => format!("void {entity}"),
        other => panic!("{other:?}"),
    });
    let warm = warm.into_iter().map(|(_, key)| format!("warm {}", key.redis()));
    let warm = warm.chain(warm_all.into_iter().map(|id| format!("warm all of {id}")));
    let refused = verdicts.into_iter().filter(|(_, verdict)| *verdict != Verdict::Planned);
    effects.chain(warm).chain(refused.map(|(kind, verdict)| format!("{kind:?} {verdict:?}"))).collect()
}

#[test]
fn every_spelling_of_a_key_names_one_entry() {
    for key in ["42", "\"42\"", "\"042\"", "\"+42\"", "[42]", "[\"042\"]", "\"%34%32\"", "\"\\u0034\\u0032\""] {
        let message = format!("{{\"invalidate\":{{\"entity\":\"product\",\"key\":{key}}}}}");
        assert_eq!(planned(&message), ["- p:product:42"], "{key}");
    }
    for (key, wanted) in [
        ("\"7,a%2Fb%2Cc\"", "- p:line:7,a/b%2Cc"),
        ("[7,\"a/b,c\"]", "- p:line:7,a/b%2Cc"),
        ("[7,\"100%\"]", "- p:line:7,100%25"),
        ("[\"07\",3]", "- p:line:7,3"),
        ("[7,true]", "- p:line:7,true"),
    ] {
        let message = format!("{{\"invalidate\":{{\"entity\":\"line\",\"key\":{key}}}}}");
        assert_eq!(planned(&message), [wanted], "{key}");
    }
    assert_eq!(planned(r#"{"invalidate":{"entity":"price","key":10.50}}"#), ["- p:price:10.50"]);
    assert_eq!(planned(r#"{"invalidate":{"entity":"flag","key":true}}"#), ["- p:flag:t"]);
}

#[test]
fn what_can_be_no_key_is_refused_alone() {
    for key in ["null", "{}", "\"\"", "\"x\"", "4.2", "1e2", "[]", "[1,2]", "\"1,2\"", "\"%zz\"", "[null]", "[[1]]"] {
        let message = format!("{{\"invalidate\":{{\"entity\":\"product\",\"keys\":[1,{key},2]}}}}");
        assert_eq!(planned(&message), ["- p:product:1", "- p:product:2", "Invalidate BadKey"], "{key}");
        let message = format!("{{\"warm\":{{\"entity\":\"product\",\"key\":{key}}}}}");
        assert_eq!(planned(&message), ["Warm BadKey"], "{key}");
    }
    assert_eq!(planned("{\"invalidate\":{\"entity\":\"line\",\"key\":[1,\"\\u0000\"]}}"), ["Invalidate BadKey"]);
    assert_eq!(planned(r#"{"invalidate":{"entity":"price","key":10.5}}"#), ["Invalidate BadKey"]);
}

#[test]
fn tags_and_patterns_void_what_they_reach() {
    let tag = |text: &str| format!("tag {}", Cell::of(text).index());
    assert_eq!(planned(r#"{"invalidate":{"tag":"a"}}"#), [tag("a")]);
    assert_eq!(planned(r#"{"invalidate":{"tags":["a","b"],"tag":"c"}}"#), [tag("a"), tag("b"), tag("c")]);
    assert_eq!(planned(r#"{"tag":"a"}"#), [tag("a")]);
    assert_eq!(planned(r#"[{"tag":["a","\u0062"]}]"#), [tag("a"), tag("b")]);
    assert_eq!(planned(r#"{"invalidate":{"pattern":"line:7,*"}}"#), ["void 1 line:7,*"]);
    assert_eq!(planned(r#"{"invalidate":{"pattern":"line:*"}}"#), ["void 1"]);
    assert_eq!(
        planned(r#"{"invalidate":{"patterns":["p*:1","flag:t"]}}"#),
        ["void 0 p*:1", "void 2 p*:1", "void 3 flag:t"]
    );
    assert_eq!(planned(r#"{"invalidate":{"pattern":"*"}}"#), ["void 0", "void 1", "void 2", "void 3"]);
    assert!(planned(r#"{"invalidate":{"tags":[]}}"#).is_empty());
    // What is named again is voided once.
    assert_eq!(planned(r#"{"tag":["a","b","a"],"invalidate":{"tag":"b"}}"#), [tag("a"), tag("b")]);
    assert_eq!(
        planned(r#"{"invalidate":{"patterns":["line:7*","line:7*","line:*","line:8*","*:7*","line:*"]}}"#),
        ["void 1 line:7*", "void 1", "void 0 *:7*", "void 2 *:7*", "void 3 *:7*"]
    );
    assert_eq!(
        planned(r#"{"invalidate":{"patterns":["*","flag:1","nothing:*"]}}"#),
        ["void 0", "void 1", "void 2", "void 3", "Pattern UnknownEntity"]
    );
    let discarded = r#"[{"invalidate":{"entity":"line"}},{"invalidate":{"patterns":["line:7","flag:t"]}}]"#;
    assert_eq!(planned(discarded), ["discard 1", "void 3 flag:t"]);
}

/// SQL's `NULL`, or an empty string, among tags and patterns.
#[test]
fn one_that_is_none_keeps_no_other_from_its_effect() {
    let tag = |text: &str| format!("tag {}", Cell::of(text).index());
    for tags in [r#""a",null,"b""#, r#""a","","b""#, r#""a",7,"b""#, r#"["x"],"a","b""#] {
        for message in [format!("{{\"invalidate\":{{\"tags\":[{tags}]}}}}"), format!("{{\"tag\":[{tags}]}}")] {
            assert_eq!(planned(&message), [tag("a"), tag("b"), "Tag Malformed".to_owned()], "{message}");
        }
    }
    for (bad, told) in [("null", "Malformed"), ("7", "Malformed"), ("\"\"", "BadPattern")] {
        let message = format!("{{\"invalidate\":{{\"patterns\":[\"line:7*\",{bad},\"flag:t\"]}}}}");
        assert_eq!(planned(&message), ["void 1 line:7*", "void 3 flag:t", &format!("Pattern {told}")], "{message}");
    }
}

/// However many patterns a message holds: what it may void is bounded by the entities there are.
#[test]
fn a_message_of_patterns_has_few_effects() {
    let int = || KeyType::Integer(i32::MIN.into(), i32::MAX.into());
    let entities = (0..1000).map(|id| entity(id, &format!("e{id}"), vec![column("id", int())])).collect();
    let planner = CommandPlanner::new(entities);
    let plan = |patterns: &mut dyn Iterator<Item = String>| {
        let patterns: Vec<String> = patterns.map(|pattern| format!("\"{pattern}\"")).collect();
        let message = format!("{{\"invalidate\":{{\"patterns\":[{}]}}}}", patterns.join(","));
        assert!(message.len() <= MAX_BYTES, "{}", message.len());
        let planned = planner.plan(message.as_bytes());
        assert_eq!(planned.verdicts, vec![(Kind::Pattern, Verdict::Planned); patterns.len()]);
        planned.effects
    };
    let all: Vec<Effect> = (0..1000).map(|entity| Effect::Void(Void::Entity { entity })).collect();
    assert_eq!(plan(&mut (0..250_000).map(|_| "*".to_owned())), all);
    // Of each entity 64, and then all of it; of one alone, likewise.
    let effects = plan(&mut (0..1000).map(|n| format!("*:{n}")));
    assert_eq!(effects.len(), 1000 * (MAX_PATTERNS + 1));
    assert_eq!(effects[1000 * MAX_PATTERNS..], all);
    let effects = plan(&mut (0..60_000).map(|n| format!("e7:{n}")));
    assert_eq!(effects.len(), MAX_PATTERNS + 1);
    assert_eq!(effects[MAX_PATTERNS], Effect::Void(Void::Entity { entity: 7 }));
    // The same again and again is one.
    assert_eq!(plan(&mut (0..60_000).map(|n| format!("e7:{}", n % 64))).len(), MAX_PATTERNS);
}

#[test]
fn a_pattern_is_judged_by_the_entities_that_its_beginning_names() {
    let names = ["b", "a1", "ab", "a", "a-", "ba"];
    let entities = names.iter().enumerate().map(|(id, name)| entity(id, name, Vec::new())).collect();
    let planner = CommandPlanner::new(entities);
    for (pattern, wanted) in [
        ("a*", &[1, 2, 3, 4][..]),
        ("a:*", &[3]),
        ("ab", &[2]),
        ("?:*", &[0, 1, 2, 3, 4, 5]),
        ("c*", &[]),
        ("ab:*", &[2]),
        ("abc:*", &[]),
        ("[ab]:*", &[0, 1, 2, 3, 4, 5]),
    ] {
        let candidates: Vec<usize> = planner.candidates(&Glob::parse(pattern).unwrap()).map(|e| e.id).collect();
        assert_eq!(candidates, wanted, "{pattern}");
    }
}

#[test]
fn a_tag_that_no_entry_can_bear_is_told_and_voided_all_the_same() {
    let definition = Definition { tags: vec!["t:{id}".parse().unwrap()], ..Definition::rows("e", "public", "e") };
    let entity = Arc::new(Entity::new(0, definition, "", Shape::unknown(0)));
    let planned = CommandPlanner::new(vec![entity]).plan(br#"{"invalidate":{"tags":["t:1","tt:1"]}}"#);
    let voids: Vec<Effect> = ["t:1", "tt:1"].map(|tag| Effect::Void(Void::Tag(Cell::of(tag)))).into();
    assert_eq!(planned.effects, voids);
    assert_eq!(planned.verdicts, [(Kind::Tag, Verdict::Planned), (Kind::Tag, Verdict::UnknownTag)]);
}

#[test]
fn several_commands_in_one_message() {
    let message = r#" [{"invalidate":{"entity":"product","keys":[1,2],"key":3}},
        {"warm":{"entity":"product","keys":[1,"02"]},"invalidate":{"entity":"line"}},
        {"invalidate":{"entity":"line","key":[1,"x"]}},{"invalidate":{"entity":"line"}},
        {"invalidate":{"entity":"product","keys":[]}}] "#;
    let wanted =
        ["- p:product:1", "- p:product:2", "- p:product:3", "discard 1", "warm p:product:1", "warm p:product:2"];
    assert_eq!(planned(message), wanted);
    assert!(planned("[]").is_empty());
}

#[test]
fn nothing_that_is_misspelled_means_a_whole_entity() {
    for (message, wanted) in [
        (r#"{"invalidate":{"entity":"product","kye":"42"}}"#, "Invalidate Malformed"),
        (r#"{"invalidate":{"entity":"product","keys":"42"}}"#, "Invalidate Malformed"),
        (r#"{"invalidate":{"entity":"product","keys":null}}"#, "Invalidate Malformed"),
        (r#"{"invalidate":{"entity":"product","key":null}}"#, "Invalidate BadKey"),
        (r#"{"invalidate":{"entity":"product","entity":"line"}}"#, "Invalidate Malformed"),
        (r#"{"invalidate":{"entity":7}}"#, "Invalidate Malformed"),
        (r#"{"invalidate":{}}"#, "Invalidate Malformed"),
        (r#"{"invalidate":"product"}"#, "Invalidate Malformed"),
        (r#"{"invalidate":{"entity":"Product"}}"#, "Invalidate UnknownEntity"),
        (r#"{"invalidate":{"entity":"product","tag":"x"}}"#, "Invalidate Malformed"),
        (r#"{"invalidate":{"tag":7}}"#, "Invalidate Malformed"),
        (r#"{"invalidate":{"tag":""}}"#, "Tag Malformed"),
        (r#"{"invalidate":{"tag":null}}"#, "Invalidate Malformed"),
        (r#"{"invalidate":{"tags":[null]}}"#, "Tag Malformed"),
        (r#"{"invalidate":{"tags":{"x":1}}}"#, "Invalidate Malformed"),
        (r#"{"invalidate":{"tag":"x","key":1}}"#, "Invalidate Malformed"),
        (r#"{"invalidate":{"tag":"x","pattern":"product:*"}}"#, "Invalidate Malformed"),
        (r#"{"invalidate":{"pattern":"product:*","entity":"product"}}"#, "Invalidate Malformed"),
        (r#"{"invalidate":{"pattern":7}}"#, "Invalidate Malformed"),
        (r#"{"invalidate":{"pattern":null}}"#, "Invalidate Malformed"),
        (r#"{"invalidate":{"patterns":[null]}}"#, "Pattern Malformed"),
        (r#"{"invalidate":{"pattern":""}}"#, "Pattern BadPattern"),
        (r#"{"invalidate":{"pattern":"nothing:*"}}"#, "Pattern UnknownEntity"),
        (r#"{"invalidate":{"pattern":"product"}}"#, "Pattern UnknownEntity"),
        (r#"{"warm":{"tag":"x"}}"#, "Warm Malformed"),
        (r#"{"warm":{"pattern":"product:*"}}"#, "Warm Malformed"),
        (r#"{"tag":{"entity":"product","key":1,"tags":["x"]}}"#, "Tag Malformed"),
        (r#"{"tag":[""]}"#, "Tag Malformed"),
        (r#"{"tag":[7]}"#, "Tag Malformed"),
        (r#"{"tag":null}"#, "Tag Malformed"),
        (r#"{"warm":{"entity":"product"}}"#, "warm all of 0"),
        (r#"{"warm":{"entity":"product","where":"true"}}"#, "Warm Malformed"),
        (r#"{"warm":{"entity":"nothing","key":1}}"#, "Warm UnknownEntity"),
        (r#"{"drop":{"entity":"product"}}"#, "Unknown Malformed"),
        ("{}", "Unknown Malformed"),
        ("", "Unknown Malformed"),
        ("7", "Unknown Malformed"),
        ("[7]", "Unknown Malformed"),
        (r#"{"invalidate":{"entity":"product"}} x"#, "Unknown Malformed"),
        (r#"{"invalidate":{"entity":"product"}"#, "Unknown Malformed"),
    ] {
        assert_eq!(planned(message), [wanted], "{message}");
    }
    let verdicts = planner().plan(b"\xff{}").verdicts;
    assert_eq!(verdicts, [(Kind::Unknown, Verdict::Malformed)], "not UTF-8");
}

proptest! {
    #[test]
    fn arbitrary_text_never_panics(
        text in "(\\{|\\}|\\[|\\]|\"|:|,|7|null|\\\\u00|invalidate|warm|entity|keys?|product|line|tags?|pattern|\\*| ){0,40}",
    ) {
        let Planned { effects, warm, warm_all, verdicts } = planner().plan(text.as_bytes());
        // A pattern may reach each of the four entities.
        prop_assert!(effects.len() + warm.len() + warm_all.len() <= 4 * text.len() && verdicts.len() <= text.len() + 1);
    }
}
