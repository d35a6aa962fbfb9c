// SPDX-License-Identifier: MIT OR Apache-2.0
//! SIEVE (Zhang and others, NSDI 2024). A queue keeps the tables in the order of their arrival. A
//! hand goes from the oldest to the newest. It spares tables that were used, without moving them,
//! and evicts the first that was not.

use super::Policy;
use super::list::{List, NONE};

pub(super) struct Sieve {
    queue: List,
    resident: Vec<bool>,
    used: Vec<bool>,
    hand: u32,
    capacity: usize,
}

impl Sieve {
    pub(super) fn new(capacity: usize, universe: usize) -> Self {
        Self {
            queue: List::new(universe),
            resident: vec![false; universe],
            used: vec![false; universe],
            hand: NONE,
            capacity,
        }
    }

    fn evict(&mut self) {
        let mut at = self.hand;
        loop {
            if at == NONE {
                at = self.queue.oldest;
            }
            if !std::mem::replace(&mut self.used[at as usize], false) {
                break;
            }
            at = self.queue.newer(at);
        }
        self.hand = self.queue.newer(at);
        self.queue.remove(at);
        self.resident[at as usize] = false;
    }
}

impl Policy for Sieve {
    fn access(&mut self, key: u32) -> bool {
        if self.resident[key as usize] {
            self.used[key as usize] = true;
            return true;
        }
        if self.queue.len == self.capacity {
            self.evict();
        }
        self.queue.push(key);
        self.resident[key as usize] = true;
        self.used[key as usize] = false;
        false
    }
}
