//! A map that forgets what was used longest ago, so that what it holds stays within a number of bytes.

use std::collections::{BTreeMap, HashMap};
use std::hash::Hash;

/// See the module. An entry that is larger than the bound alone is never kept.
#[derive(Debug)]
pub(crate) struct Lru<K, V> {
    entries: HashMap<K, Entry<V>>,
    by_use: BTreeMap<u64, K>,
    clock: u64,
    weight: u64,
    bound: u64,
}

#[derive(Debug)]
struct Entry<V> {
    value: V,
    weight: u64,
    used: u64,
}

impl<K: Clone + Eq + Hash, V: Clone> Lru<K, V> {
    pub(crate) fn new(bound: u64) -> Self {
        Self { entries: HashMap::new(), by_use: BTreeMap::new(), clock: 0, weight: 0, bound }
    }

    pub(crate) fn get(&mut self, key: &K) -> Option<V> {
        self.clock += 1;
        let entry = self.entries.get_mut(key)?;
        self.by_use.remove(&entry.used);
        entry.used = self.clock;
        self.by_use.insert(entry.used, key.clone());
        Some(entry.value.clone())
    }

    pub(crate) fn put(&mut self, key: K, value: V, weight: u64) {
        self.remove(&key);
        if weight > self.bound {
            return;
        }
        self.make_room(weight);
        self.clock += 1;
        self.weight += weight;
        self.by_use.insert(self.clock, key.clone());
        self.entries.insert(key, Entry { value, weight, used: self.clock });
    }

    pub(crate) fn remove(&mut self, key: &K) -> Option<V> {
        let entry = self.entries.remove(key)?;
        self.by_use.remove(&entry.used);
        self.weight -= entry.weight;
        Some(entry.value)
    }

    fn make_room(&mut self, weight: u64) {
        while self.weight + weight > self.bound {
            let Some((_, oldest)) = self.by_use.pop_first() else { return };
            self.remove(&oldest);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_used_longest_ago_goes_first() {
        let mut lru = Lru::new(10);
        lru.put("a", 1, 4);
        lru.put("b", 2, 4);
        assert_eq!(lru.get(&"a"), Some(1));
        lru.put("c", 3, 4);
        assert_eq!((lru.get(&"a"), lru.get(&"b"), lru.get(&"c")), (Some(1), None, Some(3)));
        assert_eq!(lru.weight, 8);
    }

    #[test]
    fn what_does_not_fit_is_not_kept_and_a_key_is_weighed_once() {
        let mut lru = Lru::new(10);
        lru.put("a", 1, 11);
        assert_eq!(lru.get(&"a"), None);
        lru.put("a", 1, 6);
        lru.put("a", 2, 7);
        assert_eq!((lru.get(&"a"), lru.weight, lru.by_use.len()), (Some(2), 7, 1));
    }
}
