//! Trees against a plain map, in memory.

use std::cell::RefCell;
use std::collections::HashMap;
use std::sync::Arc;

use proptest::prelude::*;

use super::*;

/// Blocks in memory.
#[derive(Default)]
pub(crate) struct Memory(RefCell<HashMap<Hash, Arc<Vec<u8>>>>);

impl ReadBlocks for Memory {
    fn get(&self, _: Kind, hash: &Hash) -> Result<Arc<Vec<u8>>> {
        let found = self.0.borrow().get(hash).cloned();
        found.ok_or_else(|| damaged("is missing"))
    }
}
impl WriteBlocks for Memory {
    fn put(&self, kind: Kind, content: &[u8]) -> Result<Hash> {
        let hash = kind.hash(content);
        self.0.borrow_mut().insert(hash, Arc::new(content.to_vec()));
        Ok(hash)
    }
}

impl Value for u64 {
    const LEN: usize = 8;
    const KIND: Kind = Kind::Blocks;
    fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.to_le_bytes());
    }
    fn decode(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok().map(u64::from_le_bytes)
    }
}

fn build(blocks: &Memory, map: &BTreeMap<u64, u64>) -> Root {
    let mut tree = Tree::open(Root(None));
    for (key, value) in map {
        tree.insert(blocks, *key, *value).expect("insert");
    }
    tree.flush(blocks).expect("flush")
}

fn keys() -> impl Strategy<Value = u64> {
    prop_oneof![0..200u64, 0..100_000u64, any::<u64>(), Just(u64::MAX)]
}

#[derive(Debug, Clone)]
enum Op {
    Insert(u64, u64),
    Remove(u64, u64),
    Flush,
}

fn ops() -> impl Strategy<Value = Vec<Op>> {
    let op = prop_oneof![
        4 => (keys(), 0..9u64).prop_map(|(k, v)| Op::Insert(k, v)),
        2 => (keys(), 0..300u64).prop_map(|(k, n)| Op::Remove(k, k.saturating_add(n))),
        1 => Just(Op::Flush),
    ];
    prop::collection::vec(op, 0..120)
}

proptest! {
    #[test]
    fn a_tree_holds_what_a_map_holds_and_the_same_map_has_the_same_root(ops in ops()) {
        let blocks = Memory::default();
        let mut model = BTreeMap::new();
        let mut tree = Tree::open(Root(None));
        for op in ops {
            match op {
                Op::Insert(k, v) => {
                    let was = tree.insert(&blocks, k, v).expect("insert");
                    prop_assert_eq!(was, model.insert(k, v));
                }
                Op::Remove(first, last) => {
                    let mut gone = Vec::new();
                    tree.remove_range(&blocks, first, last, &mut |k, v| {
                        gone.push((k, v));
                        Ok(())
                    }).expect("remove");
                    let expected: Vec<_> =
                        model.range(first..=last).map(|(k, v)| (*k, *v)).collect();
                    prop_assert_eq!(&gone, &expected);
                    model.retain(|k, _| *k < first || *k > last);
                }
                Op::Flush => {
                    let root = tree.flush(&blocks).expect("flush");
                    prop_assert_eq!(root, build(&blocks, &model));
                }
            }
        }
        for (k, v) in &model {
            prop_assert_eq!(tree.get(&blocks, *k).expect("get"), Some(*v));
        }
        let root = tree.flush(&blocks).expect("flush");
        prop_assert_eq!(root, build(&blocks, &model));
        let mut seen = BTreeMap::new();
        walk(&blocks, root, &mut |k, v: u64| { seen.insert(k, v); Ok(()) }).expect("walk");
        prop_assert_eq!(seen, model);
    }

    #[test]
    fn a_difference_is_exactly_what_differs_in_ascending_order(
        a in prop::collection::btree_map(keys(), 0..3u64, 0..60),
        b in prop::collection::btree_map(keys(), 0..3u64, 0..60),
        shared in prop::collection::btree_map(keys(), 0..3u64, 0..200),
    ) {
        let blocks = Memory::default();
        let merge = |own: &BTreeMap<u64, u64>| {
            let mut all = shared.clone();
            all.extend(own.iter());
            all
        };
        let (a, b) = (merge(&a), merge(&b));
        let mut found = Vec::new();
        diff::<u64>(&blocks, build(&blocks, &a), build(&blocks, &b), &mut |k, x, y| {
            found.push((k, x, y));
            Ok(())
        }).expect("diff");
        let keys: std::collections::BTreeSet<u64> = a.keys().chain(b.keys()).copied().collect();
        let expected: Vec<_> = keys.into_iter()
            .map(|k| (k, a.get(&k).copied(), b.get(&k).copied()))
            .filter(|(_, x, y)| x != y)
            .collect();
        prop_assert_eq!(found, expected);
    }
}
