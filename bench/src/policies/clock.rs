// SPDX-License-Identifier: MIT OR Apache-2.0
//! CLOCK. A hand goes round the slots. It spares a table once if the table was used since the hand
//! passed it.

use super::Policy;
use super::list::NONE;

pub(super) struct Clock {
    /// For each slot: the key, and whether it was used since the hand passed.
    slots: Vec<(u32, bool)>,
    slot_of: Vec<u32>,
    hand: usize,
    capacity: usize,
}

impl Clock {
    pub(super) fn new(capacity: usize, universe: usize) -> Self {
        Self {
            slots: Vec::with_capacity(capacity),
            slot_of: vec![NONE; universe],
            hand: 0,
            capacity,
        }
    }
}

impl Policy for Clock {
    fn access(&mut self, key: u32) -> bool {
        if let Some((_, used)) = self.slots.get_mut(self.slot_of[key as usize] as usize) {
            *used = true;
            return true;
        }
        if self.slots.len() < self.capacity {
            self.slot_of[key as usize] = self.slots.len() as u32;
            self.slots.push((key, false));
            return false;
        }
        while std::mem::replace(&mut self.slots[self.hand].1, false) {
            self.hand = (self.hand + 1) % self.capacity;
        }
        self.slot_of[self.slots[self.hand].0 as usize] = NONE;
        self.slots[self.hand].0 = key;
        self.slot_of[key as usize] = self.hand as u32;
        self.hand = (self.hand + 1) % self.capacity;
        false
    }
}
