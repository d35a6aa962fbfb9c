// SPDX-License-Identifier: MIT OR Apache-2.0
//! One slot's state: a word that pins change by compare-and-swap, and the offset of the table it holds.
//!
//! The word, from the low end: version (24 bits, +1 whenever the slot's identity ends), state (2), flags (3), hits not yet counted elsewhere
//! (14), pins (20, at the top, so that arithmetic on them cannot reach a neighbour). What a copy without a pin looks at is in the lower half.
//!
//! | state | pin | put | claim (eviction, cleaning) | load ends | write begins / ends | discard |
//! |---|---|---|---|---|---|---|
//! | free | no | error | → loading (allocation) | | | |
//! | loading | no | error | no | → resident, 1 pin; or → free | | flag `DISCARDED`; → free when the load ends |
//! | resident, clean | +1 | −1 | pins 0: → loading or releasing | | | pins 0: → free; else flag `DISCARDED` |
//! | resident, dirty | +1 | −1 | no | | −`DIRTY` +`WRITING` / | as clean; `DIRTY` goes |
//! | resident, writing | +1 | −1 | no | | / −`WRITING`, failed: +`DIRTY` | flag `DISCARDED` |
//! | resident, discarded | no | −1; the last → free | no | | / the last of pins and writing → free | |
//! | releasing | no | error | → free | | | |
//!
//! Pin, put and mark_dirty take no lock. All else happens under the cache's structure lock, so that these transitions
//! race only with the three lock-free ones. Those leave a slot that is free, loading or releasing as it is (there is no pin in it, and none
//! to be had), so that transitions *from* these states are a load and a store; all others are compare-and-swaps.
//!
//! Why a pin is safe: the offset changes only in `loading`, which is entered from pins = 0 by a compare-and-swap. A pin is
//! a compare-and-swap on the same word in state `resident`. So one of the two comes first: the pin, and the claim
//! fails; or the claim, and the pin fails or lands on the slot's *next* resident table. The latter is why the offset
//! is looked at again after the pin, and not before only.

use crate::primitives::{AtomicU64, Ordering};

const VERSION_BITS: u32 = 24;
const STATE_SHIFT: u32 = VERSION_BITS;
const HITS_SHIFT: u32 = 30;
const HITS_BITS: u32 = 14;
const PINS_SHIFT: u32 = HITS_SHIFT + HITS_BITS;

const VERSION_MASK: u64 = (1 << VERSION_BITS) - 1;
const STATE_MASK: u64 = 3 << STATE_SHIFT;
const FREE: u64 = 0;
const LOADING: u64 = 1 << STATE_SHIFT;
const RESIDENT: u64 = 2 << STATE_SHIFT;
const RELEASING: u64 = 3 << STATE_SHIFT;
const DIRTY: u64 = 1 << 26;
const WRITING: u64 = 1 << 27;
const DISCARDED: u64 = 1 << 28;
const HIT: u64 = 1 << HITS_SHIFT;
const HITS_MASK: u64 = ((1 << HITS_BITS) - 1) << HITS_SHIFT;
const PIN: u64 = 1 << PINS_SHIFT;
const PINS_MASK: u64 = u64::MAX << PINS_SHIFT;
const PINS_MAX: u64 = (1 << (64 - PINS_SHIFT)) - 1;
const PINS_HALF: u64 = 1 << 63;
/// The field's upper bit: once it is set, the next pin counts the hits elsewhere.
const HITS_HALF: u64 = 1 << (HITS_SHIFT + HITS_BITS - 1);

/// A slot's word as it was at one moment.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Word(u64);

impl Word {
    fn state(self) -> u64 {
        self.0 & STATE_MASK
    }

    /// How many pins.
    pub fn pins(self) -> u64 {
        self.0 >> PINS_SHIFT
    }

    /// Hits since they were last taken.
    pub fn hits(self) -> u64 {
        (self.0 & HITS_MASK) >> HITS_SHIFT
    }

    /// Holds a table that the index leads to or led to.
    pub fn is_resident(self) -> bool {
        self.state() == RESIDENT
    }

    /// A load is under way.
    pub fn is_loading(self) -> bool {
        self.state() == LOADING
    }

    /// Its memory is being given back.
    pub fn is_releasing(self) -> bool {
        self.state() == RELEASING
    }

    /// Changed since it was read or last written.
    pub fn is_dirty(self) -> bool {
        self.0 & DIRTY != 0
    }

    /// A write of it is under way.
    pub fn is_writing(self) -> bool {
        self.0 & WRITING != 0
    }

    /// Left the index while it was pinned, loading or being written.
    pub fn is_discarded(self) -> bool {
        self.0 & DISCARDED != 0
    }

    /// May be read without a pin, and pinned.
    pub fn is_readable(self) -> bool {
        self.0 & (STATE_MASK | DISCARDED) == RESIDENT
    }

    /// May be dropped: resident, clean, not pinned, not being written.
    pub fn is_droppable(self) -> bool {
        self.0 & (STATE_MASK | DIRTY | WRITING | DISCARDED | PINS_MASK) == RESIDENT
    }

    /// Whether the table that was there `before`, and readable, still is both.
    pub fn is_same_table(self, before: Word) -> bool {
        (self.0 ^ before.0) & (VERSION_MASK | STATE_MASK | DISCARDED) == 0
    }

    /// The slot's next identity: version + 1, no pins, no flags, no hits.
    fn next(self, state: u64) -> Word {
        Word((self.0.wrapping_add(1) & VERSION_MASK) | state)
    }

    fn is_last_of_discarded(self) -> bool {
        self.is_resident() && self.is_discarded() && self.pins() == 0 && !self.is_writing()
    }
}

/// What a put found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UnpinResult {
    /// One pin less.
    Unpinned,
    /// One pin less, and the table was discarded meanwhile: [`Slot::free_discarded`] it under the structure lock.
    LastOfDiscarded,
    /// There was no pin.
    NotPinned,
}

/// What a discard did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Discard {
    /// The slot is free.
    Freed,
    /// The slot is free once the last pin, the load or the write ends.
    Deferred,
}

/// See the module.
#[derive(Default)]
pub struct Slot {
    word: AtomicU64,
    offset: AtomicU64,
}

impl Slot {
    /// The word now. Acquire: what the load that made it resident wrote is visible.
    pub fn word(&self) -> Word {
        Word(self.word.load(Ordering::Acquire))
    }

    /// The offset of the table that the slot holds or is loading; anything in a free slot. Relaxed: what is decided by it is decided after
    /// a pin or a claim, whose acquire orders it; or before an acquire fence and another look at the word.
    pub fn offset(&self) -> u64 {
        self.offset.load(Ordering::Relaxed)
    }

    /// What nearly every pin finds, in a straight line: resident, room for a pin and a hit, nobody in between. False is no answer: see
    /// [`Slot::pin`].
    #[inline(always)]
    pub fn pin_fast(&self) -> bool {
        let word = self.word();
        // The upper bits of both counters stand for "full", so that one look tells everything. `pin` empties the hits then: it is
        // one pin in 2^13 that goes that way. Pins in their thousands are no hot path.
        if word.0 & (STATE_MASK | DISCARDED | HITS_HALF | PINS_HALF) != RESIDENT {
            return false;
        }
        // Orderings: see `pin`.
        let pinned = word.0 + (PIN + HIT);
        let change =
            self.word
                .compare_exchange_weak(word.0, pinned, Ordering::AcqRel, Ordering::Relaxed);
        change.is_ok()
    }

    /// Pins whatever table is resident, and counts a hit; lock-free. The caller looks at [`Slot::offset`] afterwards.
    /// `spill` receives the hits when their field is half full.
    #[inline]
    pub fn pin(&self, spill: &AtomicU64) -> bool {
        let mut word = self.word();
        while word.is_readable() && word.pins() < PINS_MAX {
            let full = word.0 & HITS_HALF != 0;
            let counted = if full {
                word.0 & !HITS_MASK
            } else {
                word.0 + HIT
            };
            // Acquire pairs with the release of the load's end: offset and contents of this table are visible.
            // Release is for the next claimer (see `unpin`); the pin itself publishes nothing.
            match self.word.compare_exchange_weak(
                word.0,
                counted + PIN,
                Ordering::AcqRel,
                Ordering::Acquire,
            ) {
                Ok(_) => {
                    if full {
                        spill.fetch_add(word.hits() + 1, Ordering::Relaxed);
                    }
                    return true;
                }
                Err(now) => word = Word(now),
            }
        }
        false
    }

    /// [`Slot::unpin`] of a plain word, in a straight line. False is no answer.
    #[inline(always)]
    pub fn unpin_fast(&self) -> bool {
        let word = Word(self.word.load(Ordering::Relaxed));
        if word.pins() == 0 || word.is_discarded() {
            return false;
        }
        // Orderings: see `unpin`.
        let change = self.word.compare_exchange_weak(
            word.0,
            word.0 - PIN,
            Ordering::Release,
            Ordering::Relaxed,
        );
        change.is_ok()
    }

    /// Gives one pin back; lock-free. A put too many changes nothing, not even for a moment.
    #[inline]
    pub fn unpin(&self) -> UnpinResult {
        let mut word = Word(self.word.load(Ordering::Relaxed));
        loop {
            if word.pins() == 0 {
                return UnpinResult::NotPinned;
            }
            // Release pairs with the acquire of the claim: what was done under the pin happened before the slot's reuse.
            match self.word.compare_exchange_weak(
                word.0,
                word.0 - PIN,
                Ordering::Release,
                Ordering::Relaxed,
            ) {
                Ok(_) if word.pins() == 1 && word.is_discarded() => {
                    return UnpinResult::LastOfDiscarded;
                }
                Ok(_) => return UnpinResult::Unpinned,
                Err(now) => word = Word(now),
            }
        }
    }

    /// Whether the table is dirty, in the one order of all `mark_dirty`s and changes of the dirty set.
    pub fn is_dirty_seq_cst(&self) -> bool {
        Word(self.word.load(Ordering::SeqCst)).is_dirty()
    }

    /// Marks a pinned table dirty; lock-free. False if nobody pins it.
    ///
    /// Always a read-modify-write, also if the flag is set already: it orders the caller's change of the table before
    /// it. A write-back either clears the flag after this (its acquire sees the change) or before (the flag is set again).
    pub fn mark_dirty(&self) -> bool {
        let mut word = self.word();
        loop {
            if word.pins() == 0 {
                return false;
            }
            if word.is_discarded() {
                // Nobody will write it.
                return true;
            }
            // Sequentially consistent for `DirtySet::clear_stale`.
            match self.word.compare_exchange_weak(
                word.0,
                word.0 | DIRTY,
                Ordering::SeqCst,
                Ordering::Acquire,
            ) {
                Ok(_) => return true,
                Err(now) => word = Word(now),
            }
        }
    }

    fn update(&self, mut to: impl FnMut(Word) -> Option<Word>) -> Option<Word> {
        let mut word = self.word();
        loop {
            let next = to(word)?;
            // Acquire pairs with `unpin`; release with `pin` and `word`.
            match self.word.compare_exchange_weak(
                word.0,
                next.0,
                Ordering::AcqRel,
                Ordering::Acquire,
            ) {
                Ok(_) => return Some(word),
                Err(now) => word = Word(now),
            }
        }
    }

    /// The next word of a slot that is free, loading or releasing, which nobody changes without the structure lock. Returns the word
    /// before. Structure lock held.
    fn update_idle(&self, to: impl FnOnce(Word) -> Word) -> Word {
        // Relaxed: whoever stored it held the lock, too.
        let word = Word(self.word.load(Ordering::Relaxed));
        debug_assert!(!word.is_resident(), "pins may change it meanwhile");
        // Release pairs with the acquire of `pin` and `word`: contents and offset come before "resident".
        self.word.store(to(word).0, Ordering::Release);
        word
    }

    /// Free → loading `offset`. Structure lock held.
    pub fn allocate(&self, offset: u64) -> bool {
        let free = self.word().state() == FREE;
        if free {
            self.update_idle(|w| w.next(LOADING));
            self.set_offset(offset);
        }
        free
    }

    /// A droppable table gives its slot to `offset`: → loading. Returns the word before, for its hits. Structure
    /// lock held; the caller has read the old offset.
    pub fn evict_for(&self, offset: u64) -> Option<Word> {
        let before = self.update(|w| w.is_droppable().then(|| w.next(LOADING)))?;
        self.set_offset(offset);
        Some(before)
    }

    /// Release: whoever sees this offset, and then looks at the word behind an acquire fence, sees the claim that was made for it, and so
    /// does not take the bytes of the table before for this one's.
    fn set_offset(&self, offset: u64) {
        self.offset.store(offset, Ordering::Release);
    }

    /// A droppable table goes: → free. Structure lock held.
    pub fn drop_clean(&self) -> Option<Word> {
        self.update(|w| w.is_droppable().then(|| w.next(FREE)))
    }

    /// A droppable table moves to another slot: → loading here, until the copy is made. Returns the word before.
    /// Structure lock held.
    pub fn begin_move(&self) -> Option<Word> {
        self.update(|w| w.is_droppable().then(|| w.next(LOADING)))
    }

    /// The load succeeded: loading → resident, clean, with one pin. If it was discarded meanwhile: → free, and false.
    /// Structure lock held.
    pub fn finish_load(&self) -> bool {
        let before = self.update_idle(|w| {
            if w.is_discarded() {
                w.next(FREE)
            } else {
                Word(w.0 & VERSION_MASK | RESIDENT | PIN)
            }
        });
        !before.is_discarded()
    }

    /// The load failed, or the table was lifted out: loading → free. Returns whether it was discarded meanwhile (and is
    /// no longer in the index). Structure lock held.
    pub fn abandon_load(&self) -> bool {
        self.update_idle(|w| w.next(FREE)).is_discarded()
    }

    /// Dirty → being written. False if there is nothing to write or somebody writes it. Structure lock held.
    pub fn begin_write(&self) -> bool {
        self.update(|w| {
            let writable = w.is_readable() && w.is_dirty() && !w.is_writing();
            writable.then_some(Word((w.0 & !DIRTY) | WRITING))
        })
        .is_some()
    }

    /// The write ended; a failed one leaves the table dirty. Returns the word after. Structure lock held.
    pub fn end_write(&self, failed: bool) -> Word {
        let after = |w: Word| {
            let redirty = failed && !w.is_discarded();
            Word((w.0 & !WRITING) | if redirty { DIRTY } else { 0 })
        };
        let before = self.update(|w| Some(after(w)));
        before.map_or_else(|| self.word(), after)
    }

    /// The table left the index. Returns the word before, too. Structure lock held.
    pub fn discard(&self) -> (Discard, Word) {
        let at_once = |w: Word| w.is_resident() && w.pins() == 0 && !w.is_writing();
        let before = self.update(|w| {
            Some(if at_once(w) {
                w.next(FREE)
            } else {
                Word((w.0 | DISCARDED) & !DIRTY)
            })
        });
        let before = before.unwrap_or_else(|| self.word());
        let how = if at_once(before) {
            Discard::Freed
        } else {
            Discard::Deferred
        };
        (how, before)
    }

    /// Frees a discarded slot that nobody pins or writes any more; returns the word before. Structure lock held.
    pub fn free_discarded(&self) -> Option<Word> {
        self.update(|w| w.is_last_of_discarded().then(|| w.next(FREE)))
    }

    /// Free → releasing: nobody allocates it while its memory is given back. Structure lock held.
    pub fn begin_release(&self) -> bool {
        let free = self.word().state() == FREE;
        if free {
            self.update_idle(|w| Word(w.0 | RELEASING));
        }
        free
    }

    /// Releasing → free. Structure lock held.
    pub fn end_release(&self) {
        let before = self.update_idle(|w| w.next(FREE));
        debug_assert!(before.is_releasing());
    }
}

#[cfg(all(test, not(any(loom, shuttle))))]
mod tests {
    use super::*;

    /// However long a table stays: nearly every pin is one at once, and no hit is lost.
    #[test]
    fn a_table_that_is_hit_often_is_pinned_at_once() {
        const PINS: u64 = 100_000;
        let slot = Slot::default();
        let spilled = AtomicU64::new(0);
        assert!(slot.allocate(4096));
        assert!(slot.finish_load());
        assert_eq!(slot.unpin(), UnpinResult::Unpinned);
        let mut at_length = 0;
        for _ in 0..PINS {
            if !slot.pin_fast() {
                at_length += 1;
                assert!(slot.pin(&spilled));
            }
            assert!(slot.unpin_fast() || slot.unpin() == UnpinResult::Unpinned);
        }
        assert_eq!(spilled.into_inner() + slot.word().hits(), PINS);
        assert_eq!(at_length, PINS >> (HITS_BITS - 1));
    }

    #[test]
    fn a_discarded_table_is_pinned_by_nobody_more() {
        let slot = Slot::default();
        let spilled = AtomicU64::new(0);
        assert!(slot.allocate(4096));
        assert!(slot.finish_load());
        assert_eq!(slot.discard().0, Discard::Deferred);
        assert!(!slot.pin_fast());
        assert!(!slot.pin(&spilled));
        assert!(!slot.unpin_fast());
        assert_eq!(slot.unpin(), UnpinResult::LastOfDiscarded);
    }
}
