// SPDX-License-Identifier: MIT OR Apache-2.0
//! A doubly linked list of keys whose links are in arrays.

/// No key.
pub(super) const NONE: u32 = u32::MAX;

/// The list. A key is in it at most once.
pub(super) struct List {
    /// For each key in the list: the next older key.
    older: Vec<u32>,
    /// For each key in the list: the next newer key.
    newer: Vec<u32>,
    pub(super) newest: u32,
    pub(super) oldest: u32,
    pub(super) len: usize,
}

impl List {
    pub(super) fn new(universe: usize) -> Self {
        Self {
            older: vec![NONE; universe],
            newer: vec![NONE; universe],
            newest: NONE,
            oldest: NONE,
            len: 0,
        }
    }

    /// The next newer key.
    pub(super) fn newer(&self, key: u32) -> u32 {
        self.newer[key as usize]
    }

    /// Adds a key at the newest end.
    pub(super) fn push(&mut self, key: u32) {
        self.older[key as usize] = self.newest;
        self.newer[key as usize] = NONE;
        match self.newest {
            NONE => self.oldest = key,
            newest => self.newer[newest as usize] = key,
        }
        self.newest = key;
        self.len += 1;
    }

    /// Removes a key.
    pub(super) fn remove(&mut self, key: u32) {
        let (older, newer) = (self.older[key as usize], self.newer[key as usize]);
        match older {
            NONE => self.oldest = newer,
            older => self.newer[older as usize] = newer,
        }
        match newer {
            NONE => self.newest = older,
            newer => self.older[newer as usize] = older,
        }
        self.len -= 1;
    }

    /// Removes the oldest key and returns it.
    pub(super) fn pop_oldest(&mut self) -> u32 {
        let key = self.oldest;
        self.remove(key);
        key
    }
}
