// SPDX-License-Identifier: MIT OR Apache-2.0
//! LRU: evicts the table that has not been used for the longest time.

use super::Policy;
use super::list::List;

pub(super) struct Lru {
    list: List,
    resident: Vec<bool>,
    capacity: usize,
}

impl Lru {
    pub(super) fn new(capacity: usize, universe: usize) -> Self {
        Self {
            list: List::new(universe),
            resident: vec![false; universe],
            capacity,
        }
    }
}

impl Policy for Lru {
    fn access(&mut self, key: u32) -> bool {
        let hit = std::mem::replace(&mut self.resident[key as usize], true);
        if hit {
            self.list.remove(key);
        } else if self.list.len == self.capacity {
            let victim = self.list.pop_oldest();
            self.resident[victim as usize] = false;
        }
        self.list.push(key);
        hit
    }
}
