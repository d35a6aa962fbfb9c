// SPDX-License-Identifier: MIT OR Apache-2.0
//! A doubly linked list of keys, its links in arrays.

/// No key.
pub(super) const NONE: u32 = u32::MAX;

/// See the module. A key is in the list once at most.
pub(super) struct List {
    /// Towards the older end.
    older: Vec<u32>,
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

    /// Takes a key out.
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

    /// Takes the oldest key out.
    pub(super) fn pop_oldest(&mut self) -> u32 {
        let key = self.oldest;
        self.remove(key);
        key
    }
}
