use super::*;
use crate::entity::{Definition, Shape};

const ALIKE: usize = 100;

/// Entities that are configured alike, and one of each other kind.
fn entities() -> Vec<Arc<Entity>> {
    let mut definitions = vec![Definition::rows("it", "public", "rows"); ALIKE + 3];
    definitions[ALIKE].populate = true;
    definitions[ALIKE + 1].lifetime.stale = Duration::from_secs(9);
    definitions[ALIKE + 2].lifetime.column = Some("until".into());
    let entity = |(id, definition)| Arc::new(Entity::new(id, definition, "", Shape::unknown(0)));
    definitions.into_iter().enumerate().map(entity).collect()
}

fn op(entity: usize, generation: u64) -> Op {
    let (lsn, image) = (Lsn::from_u64(100), Some((Generation(generation), b"text".to_vec())));
    Op { entity, lsn, image, gaps: false, since: lsn }
}

/// What an event costs does not grow with the number of entities: they share the calls.
#[test]
fn entities_that_are_configured_alike_share_calls() {
    let entities = entities();
    let mut batch = Batch::default();
    let mut add = |op: Op| {
        let key = format!("{}:{}", op.entity, batch.ops.len()).into_bytes();
        batch.ops.insert(HashedKey { hash: crate::key::hash(&key), key }, op);
    };
    for entity in (0..ALIKE + 3).chain(0..ALIKE + 3) {
        add(op(entity, 3));
    }
    add(op(7, 4));
    add(op(7, 3));
    add(Op { image: None, ..op(8, 3) });
    add(Op { gaps: true, ..op(ALIKE, 3) });
    let sorted = Sorted::new(&entities, &batch);
    let mut seen: Vec<_> = Vec::new();
    for call in sorted.calls(150) {
        seen.push(match call {
            Call::Drop(keys) => ("drop", 0, keys.len()),
            Call::Put(terms, puts) => {
                for put in puts {
                    let op = &batch.ops[put.key];
                    assert_eq!(Terms::of(&entities[op.entity], op.image.as_ref().unwrap().0), terms);
                }
                ("put", terms.generation.0, puts.len())
            }
        });
    }
    let others = [("put", 3, 2); 3];
    let expected = [&[("drop", 0, 2), ("put", 3, 150), ("put", 3, 51)][..], &others, &[("put", 4, 1)]].concat();
    assert_eq!(seen, expected);
    assert!(sorted.requeried.is_empty());
}
