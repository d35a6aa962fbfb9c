// SPDX-License-Identifier: MIT OR Apache-2.0
//! S3-FIFO (Yang and others, SOSP 2023). New tables enter a small queue, and are evicted from it
//! soon unless they are used again. Tables in the main queue get another round if they were used. A
//! ghost queue holds the keys of tables that were evicted from the small queue; such a table enters
//! the main queue when it is loaded again.

use std::collections::VecDeque;

use super::Policy;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    Nowhere,
    Small,
    Main,
    Ghost,
}

pub(super) struct S3Fifo {
    small: VecDeque<u32>,
    main: VecDeque<u32>,
    ghost: VecDeque<u32>,
    place: Vec<Place>,
    /// Uses since the key entered its queue, at most 3.
    uses: Vec<u8>,
    small_capacity: usize,
    capacity: usize,
}

impl S3Fifo {
    pub(super) fn new(capacity: usize, universe: usize) -> Self {
        Self {
            small: VecDeque::new(),
            main: VecDeque::new(),
            ghost: VecDeque::new(),
            place: vec![Place::Nowhere; universe],
            uses: vec![0; universe],
            small_capacity: (capacity / 10).max(1),
            capacity,
        }
    }

    fn evict(&mut self) {
        if self.small.len() >= self.small_capacity || self.main.is_empty() {
            self.evict_small();
        } else {
            self.evict_main();
        }
    }

    fn evict_small(&mut self) {
        while let Some(key) = self.small.pop_front() {
            if self.uses[key as usize] > 1 {
                self.enter(key, Place::Main);
            } else {
                self.remember(key);
                return;
            }
        }
        self.evict_main();
    }

    fn evict_main(&mut self) {
        while let Some(key) = self.main.pop_front() {
            if self.uses[key as usize] == 0 {
                self.place[key as usize] = Place::Nowhere;
                return;
            }
            self.uses[key as usize] -= 1;
            self.main.push_back(key);
        }
    }

    fn enter(&mut self, key: u32, place: Place) {
        self.place[key as usize] = place;
        self.uses[key as usize] = 0;
        match place {
            Place::Small => self.small.push_back(key),
            _ => self.main.push_back(key),
        }
    }

    fn remember(&mut self, key: u32) {
        self.place[key as usize] = Place::Ghost;
        self.ghost.push_back(key);
        if self.ghost.len() > self.capacity - self.small_capacity {
            let forgotten = self.ghost.pop_front().expect("just pushed") as usize;
            // The key may have been loaded again since it entered the ghost queue.
            if self.place[forgotten] == Place::Ghost {
                self.place[forgotten] = Place::Nowhere;
            }
        }
    }
}

impl Policy for S3Fifo {
    fn access(&mut self, key: u32) -> bool {
        let place = self.place[key as usize];
        if matches!(place, Place::Small | Place::Main) {
            let uses = &mut self.uses[key as usize];
            *uses = (*uses + 1).min(3);
            return true;
        }
        if self.small.len() + self.main.len() >= self.capacity {
            self.evict();
        }
        // The eviction may have removed the key from the ghost queue.
        let place = if self.place[key as usize] == Place::Ghost {
            Place::Main
        } else {
            Place::Small
        };
        self.enter(key, place);
        false
    }
}
