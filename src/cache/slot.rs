// SPDX-License-Identifier: MIT OR Apache-2.0
//! One slot's state: a word that pins change by compare-and-swap, and the offset of the slot's
//! table.
//!
//! The word holds, from its low end:
//!
//! | bits | hold |
//! |---|---|
//! | 24 | version: +1 at every transition that ends what the slot held (`Word::next`) |
//! | 2 | state |
//! | 3 | flags: `DIRTY`, `WRITING`, `DISCARDED` |
//! | 1 | nothing |
//! | 14 | hits that are not yet counted elsewhere |
//! | 20 | pins: at the top, so that arithmetic on them cannot reach another field |
//!
//! What a copy without a pin looks at is in the lower half.
//!
//! | state | pin | put | claim (eviction, cleaning) | load ends | write begins / ends | a flush fails | discard |
//! |---|---|---|---|---|---|---|---|
//! | free | no | error | → loading (allocation) or releasing (cleaning) | | | | |
//! | loading | no | error | no | → resident, 1 pin; or → free | | | flag `DISCARDED`; → free when the load ends |
//! | resident, clean | +1 | −1 | pins 0: → loading (eviction, move) or free (cleaning) | | | its last write lost: +`DIRTY` | pins 0: → free; else flag `DISCARDED` |
//! | resident, dirty | +1 | −1 | no | | −`DIRTY` +`WRITING` / | | pins 0: → free; else flag `DISCARDED`, −`DIRTY` |
//! | resident, writing | +1 | −1 | no | | / −`WRITING`, failed: +`DIRTY` | +`DIRTY` | flag `DISCARDED`, −`DIRTY` |
//! | resident, discarded | no | −1; the last → free | no | | / the last of pins and writing → free | | |
//! | releasing | no | error | → free when the release ends | | | | |
//!
//! Pin, put and mark_dirty take no lock. All other transitions happen under the cache's structure
//! lock, so they race only with these three. A slot that is free, loading or releasing has no pin
//! and cannot get one, and the three lock-free operations do not change its word. Therefore
//! transitions *from* these states are a load and a store; all others are compare-and-swaps.
//!
//! Why a pin is safe: the offset changes only in state `loading`, which a resident slot enters only
//! with pins = 0, by a compare-and-swap. A pin is a compare-and-swap on the same word in state
//! `resident`. So one of the two comes first. If it is the pin, the claim fails. If it is the
//! claim, the pin fails or lands on the slot's *next* resident table. Because of the latter, the
//! offset has to be looked at after the pin, and not only before it.

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
/// The field's upper bit. Once it is set, the next pin moves the hits to the cache's counter.
const HITS_HALF: u64 = 1 << (HITS_SHIFT + HITS_BITS - 1);

/// A slot's word as it was at one moment.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Word(u64);

impl Word {
    fn state(self) -> u64 {
        self.0 & STATE_MASK
    }

    /// Tells what the slot holds from what it held before and will hold next.
    pub fn version(self) -> u64 {
        self.0 & VERSION_MASK
    }

    /// Number of pins.
    pub fn pins(self) -> u64 {
        self.0 >> PINS_SHIFT
    }

    /// Hits since the field was last emptied.
    pub fn hits(self) -> u64 {
        (self.0 & HITS_MASK) >> HITS_SHIFT
    }

    /// Holds a table that is in the index, or was until it was discarded.
    pub fn is_resident(self) -> bool {
        self.state() == RESIDENT
    }

    /// A load is under way.
    pub fn is_loading(self) -> bool {
        self.state() == LOADING
    }

    /// Its memory is being released to the kernel.
    pub fn is_releasing(self) -> bool {
        self.state() == RELEASING
    }

    /// Changed since it was loaded or last written.
    pub fn is_dirty(self) -> bool {
        self.0 & DIRTY != 0
    }

    /// A write of it is under way.
    pub fn is_writing(self) -> bool {
        self.0 & WRITING != 0
    }

    /// Left the index while it was pinned, being loaded or being written.
    pub fn is_discarded(self) -> bool {
        self.0 & DISCARDED != 0
    }

    /// May be pinned, and read without a pin.
    pub fn is_readable(self) -> bool {
        self.0 & (STATE_MASK | DISCARDED) == RESIDENT
    }

    /// May be dropped: resident, clean, not pinned, not being written.
    pub fn is_droppable(self) -> bool {
        self.0 & (STATE_MASK | DIRTY | WRITING | DISCARDED | PINS_MASK) == RESIDENT
    }

    /// Whether the table that was readable in `before` is still there and still readable.
    pub fn is_same_table(self, before: Word) -> bool {
        (self.0 ^ before.0) & (VERSION_MASK | STATE_MASK | DISCARDED) == 0
    }

    /// The word for what the slot holds next: version + 1, no pins, no flags, no hits.
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
    /// One pin less. It was the last one of a discarded table: call [`Slot::free_discarded`] under
    /// the structure lock.
    LastOfDiscarded,
    /// There was no pin.
    NotPinned,
}

/// What a discard did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Discard {
    /// The slot is free.
    Freed,
    /// The slot will be free when the last pin, the load or the write ends.
    Deferred,
}

/// See the module.
#[derive(Default)]
pub struct Slot {
    word: AtomicU64,
    offset: AtomicU64,
}

impl Slot {
    /// The word now. Acquire: what the load wrote that made the table resident is visible.
    pub fn word(&self) -> Word {
        Word(self.word.load(Ordering::Acquire))
    }

    /// The offset of the table that the slot holds or is loading; any value in a free slot.
    /// Relaxed: a decision that is based on it follows a pin or a claim, whose acquire orders it;
    /// or it follows an acquire fence and another look at the word.
    pub fn offset(&self) -> u64 {
        self.offset.load(Ordering::Relaxed)
    }

    /// The fast path of [`Slot::pin`]: a resident table, room for a pin and a hit, no race. Returns
    /// false if the fast path cannot decide; call [`Slot::pin`] then.
    #[inline(always)]
    pub fn pin_fast(&self) -> bool {
        let word = self.word();
        // The upper bits of both counters stand for "full", so that one test covers everything.
        // `pin` then empties the hits: one pin in about 2^13 takes that path. A table with 2^19
        // pins at a time is no case for a fast path.
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

    /// Pins the slot's table if it is readable, and counts a hit. Lock-free. Returns whether it
    /// did. The caller looks at [`Slot::offset`] afterwards. `spill` receives the hits when their
    /// field is half full.
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
            // Acquire pairs with the release at the end of the load: offset and contents of this
            // table are visible. Release is for the next claim (see `unpin`); the pin itself
            // publishes nothing.
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

    /// The fast path of [`Slot::unpin`]. Returns false if the fast path cannot decide; call
    /// [`Slot::unpin`] then.
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

    /// Removes one pin. Lock-free. A put without a pin changes nothing, not even temporarily.
    #[inline]
    pub fn unpin(&self) -> UnpinResult {
        let mut word = Word(self.word.load(Ordering::Relaxed));
        loop {
            if word.pins() == 0 {
                return UnpinResult::NotPinned;
            }
            // Release pairs with the acquire of the claim: what was done under the pin happened
            // before the slot's reuse.
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

    /// Whether the table is dirty, in the single total order of all calls of `mark_dirty` and all
    /// changes of the dirty set.
    pub fn is_dirty_seq_cst(&self) -> bool {
        Word(self.word.load(Ordering::SeqCst)).is_dirty()
    }

    /// Marks a pinned table dirty. Lock-free. Returns false if nobody has it pinned.
    ///
    /// Unless the table was discarded, this is always a read-modify-write, even if the flag is set
    /// already: it orders the caller's change of the table before it. If a write-back clears the
    /// flag after this, its acquire sees the change. If it clears the flag before this, this sets
    /// the flag again.
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
            // Acquire pairs with the release of `unpin`; release pairs with the acquire of `pin`
            // and `word`.
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

    /// Changes the word of a slot that is free, loading or releasing. Nobody else changes it
    /// without the structure lock. Returns the word from before. Structure lock held.
    fn update_idle(&self, to: impl FnOnce(Word) -> Word) -> Word {
        // Relaxed: the last change of the word was made under the structure lock, too.
        let word = Word(self.word.load(Ordering::Relaxed));
        debug_assert!(
            !word.is_resident(),
            "pin, put and mark_dirty may change a resident slot's word"
        );
        // Release pairs with the acquire of `pin` and `word`: contents and offset come before
        // "resident".
        self.word.store(to(word).0, Ordering::Release);
        word
    }

    /// Free → loading `offset`. Returns whether the slot was free. Structure lock held.
    pub fn allocate(&self, offset: u64) -> bool {
        let free = self.word().state() == FREE;
        if free {
            self.update_idle(|w| w.next(LOADING));
            self.set_offset(offset);
        }
        free
    }

    /// A droppable table's slot goes to `offset`: resident → loading. Returns the word from before,
    /// for its hits; `None` if the table is not droppable. The caller has read the old offset.
    /// Structure lock held.
    pub fn evict_for(&self, offset: u64) -> Option<Word> {
        let before = self.update(|w| w.is_droppable().then(|| w.next(LOADING)))?;
        self.set_offset(offset);
        Some(before)
    }

    /// Release: a reader that sees this offset, and looks at the word after an acquire fence, sees
    /// the claim that was made for this offset. So it does not take the previous table's bytes for
    /// those of the table at this offset.
    fn set_offset(&self, offset: u64) {
        self.offset.store(offset, Ordering::Release);
    }

    /// Drops a droppable table: resident → free. Returns the word from before; `None` if the table
    /// is not droppable. Structure lock held.
    pub fn drop_clean(&self) -> Option<Word> {
        self.update(|w| w.is_droppable().then(|| w.next(FREE)))
    }

    /// Claims a droppable table: resident → loading, still the same version. Then either
    /// [`Slot::return_droppable`] or [`Slot::abandon_load`], under the same hold of the structure
    /// lock. Returns whether the table was droppable.
    pub fn claim_droppable(&self) -> bool {
        let claimed = |w: Word| Word(w.0 & !STATE_MASK | LOADING);
        self.update(|w| w.is_droppable().then(|| claimed(w)))
            .is_some()
    }

    /// Gives back what [`Slot::claim_droppable`] claimed: loading → resident, as before.
    pub fn return_droppable(&self) {
        self.update_idle(|w| Word(w.0 & !STATE_MASK | RESIDENT));
    }

    /// A droppable table moves to another slot: resident → loading here, until the copy is made.
    /// Returns the word from before; `None` if the table is not droppable. Structure lock held.
    pub fn begin_move(&self) -> Option<Word> {
        self.update(|w| w.is_droppable().then(|| w.next(LOADING)))
    }

    /// The load succeeded: loading → resident, clean, with one pin. If the table was discarded
    /// meanwhile: loading → free, and returns false. Structure lock held.
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

    /// The load failed, or the table moved to another slot: loading → free. Returns whether the
    /// table was discarded meanwhile, and so is no longer in the index. Structure lock held.
    pub fn abandon_load(&self) -> bool {
        self.update_idle(|w| w.next(FREE)).is_discarded()
    }

    /// Dirty → being written. Returns false if there is nothing to write, or if a write is under
    /// way already. Structure lock held.
    pub fn begin_write(&self) -> bool {
        self.update(|w| {
            let writable = w.is_readable() && w.is_dirty() && !w.is_writing();
            writable.then_some(Word((w.0 & !DIRTY) | WRITING))
        })
        .is_some()
    }

    /// The write ended. A failed write leaves the table dirty unless it was discarded. Returns the
    /// word from after the change. Structure lock held.
    pub fn end_write(&self, failed: bool) -> Word {
        let after = |w: Word| {
            let redirty = failed && !w.is_discarded();
            Word((w.0 & !WRITING) | if redirty { DIRTY } else { 0 })
        };
        let before = self.update(|w| Some(after(w)));
        before.map_or_else(|| self.word(), after)
    }

    /// Storage may have lost the write of the table that the slot held in `version`: marks it dirty
    /// again, if it is still there and was not discarded. Returns the word from before; `None` if
    /// it is not. Structure lock held.
    pub fn redirty(&self, version: u64) -> Option<Word> {
        self.update(|w| {
            let is_there = w.is_readable() && w.version() == version;
            is_there.then_some(Word(w.0 | DIRTY))
        })
    }

    /// Discards the table, which has left the index. Also returns the word from before. Structure
    /// lock held.
    pub fn discard(&self) -> (Discard, Word) {
        let is_idle = |w: Word| w.is_resident() && w.pins() == 0 && !w.is_writing();
        let before = self.update(|w| {
            Some(if is_idle(w) {
                w.next(FREE)
            } else {
                Word((w.0 | DISCARDED) & !DIRTY)
            })
        });
        let before = before.unwrap_or_else(|| self.word());
        let outcome = if is_idle(before) {
            Discard::Freed
        } else {
            Discard::Deferred
        };
        (outcome, before)
    }

    /// Frees the slot of a discarded table that is no longer pinned or being written. Returns the
    /// word from before; `None` if that is not the case. Structure lock held.
    pub fn free_discarded(&self) -> Option<Word> {
        self.update(|w| w.is_last_of_discarded().then(|| w.next(FREE)))
    }

    /// Free → releasing: nobody allocates the slot while its memory is released. Returns whether
    /// the slot was free. Structure lock held.
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

    /// However long a table stays resident, nearly every pin takes the fast path, and no hit is
    /// lost.
    #[test]
    fn pin_fast_fails_only_when_hits_must_spill() {
        const PINS: u64 = 100_000;
        let slot = Slot::default();
        let spilled = AtomicU64::new(0);
        assert!(slot.allocate(4096));
        assert!(slot.finish_load());
        assert_eq!(slot.unpin(), UnpinResult::Unpinned);
        let mut slow_pins = 0;
        for _ in 0..PINS {
            if !slot.pin_fast() {
                slow_pins += 1;
                assert!(slot.pin(&spilled));
            }
            assert!(slot.unpin_fast() || slot.unpin() == UnpinResult::Unpinned);
        }
        assert_eq!(spilled.into_inner() + slot.word().hits(), PINS);
        assert_eq!(slow_pins, PINS >> (HITS_BITS - 1));
    }

    #[test]
    fn discarded_table_cannot_be_pinned() {
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
