// SPDX-License-Identifier: MIT OR Apache-2.0
//! What contenders are made to do: fill, churn, hits, misses, on one thread or several.

use core::ptr::null_mut;
use std::sync::{Barrier, OnceLock};
use std::time::{Duration, Instant};

use contenders::{Contender, TABLE_SIZE};

use crate::measure::{Rng, thread_cpu};
use crate::ours;

/// Sizes of the caches, in tables.
pub fn sizes(quick: bool) -> &'static [usize] {
    if quick {
        &[16, 512, 8192, 32768]
    } else {
        &[16, 128, 512, 2048, 8192, 32768]
    }
}

/// As many operations on random ones of so many tables as leave what belongs to them in the processor's caches.
pub fn warm(tables: usize) -> u64 {
    8 * tables as u64
}

/// A set of table offsets, numbered.
#[derive(Clone, Copy, Debug)]
pub struct Offsets {
    /// Number of the first.
    pub first: u64,
    /// How many.
    pub count: usize,
    /// How they lie.
    place: Place,
}

#[derive(Clone, Copy, Debug)]
enum Place {
    /// So many tables apart.
    Spaced(u64),
    /// All over an image of 256 GiB.
    Scattered,
}

impl Offsets {
    /// `count` neighbours.
    pub fn in_order(count: usize) -> Self {
        Self::in_order_from(0, count)
    }

    /// `count` neighbours, from number `first` on.
    pub fn in_order_from(first: u64, count: usize) -> Self {
        Self {
            first,
            ..Self::spaced(count, 1)
        }
    }

    /// `count` offsets, each `distance` tables behind the one before.
    pub fn spaced(count: usize, distance: u64) -> Self {
        Self {
            first: 0,
            count,
            place: Place::Spaced(distance),
        }
    }

    /// Generation number `generation` of `count` offsets; generations have none in common.
    pub fn scattered(count: usize, generation: u64) -> Self {
        Self {
            first: generation * count as u64,
            count,
            place: Place::Scattered,
        }
    }

    /// The offset with number `i`. One-to-one for 2^26 numbers.
    #[inline]
    pub fn at(&self, i: u64) -> u64 {
        const MASK: u64 = (1 << 26) - 1;
        let number = self.first + i;
        let key = match self.place {
            Place::Spaced(distance) => number * distance,
            Place::Scattered => {
                let mixed = number.wrapping_mul(0x2C1B_3C6D) & MASK;
                mixed ^ mixed >> 13
            }
        };
        (key + 1) * TABLE_SIZE as u64
    }

    /// All of them.
    pub fn all(&self) -> Vec<u64> {
        (0..self.count as u64).map(|i| self.at(i)).collect()
    }
}

/// `count` gets and puts of random offsets of the set.
#[inline(never)]
pub fn hits(on: &Contender, offsets: &Offsets, rng: &mut Rng, count: u64) {
    hits_of(on, rng, count, |random| {
        offsets.at(random.below(offsets.count as u64))
    });
}

/// `count` gets and puts of what `next` names.
#[inline(always)]
pub fn hits_of(on: &Contender, rng: &mut Rng, count: u64, next: impl Fn(&mut Rng) -> u64) {
    let (get, put) = (on.ops.get.expect("has get"), on.ops.put.expect("has put"));
    let mut failed = 0;
    let mut random = *rng;
    for _ in 0..count {
        let mut table = null_mut();
        let offset = next(&mut random);
        // SAFETY: the contender is alive; the table goes back at once.
        unsafe {
            failed |= get(on.handle, offset, &mut table);
            failed |= put(on.handle, &mut table);
        }
    }
    *rng = random;
    assert!(failed == 0, "a hit failed");
}

/// `count` gets and puts, one after the other, of ever new offsets.
#[inline(never)]
pub fn misses(on: &Contender, next: &mut u64, count: u64) {
    let (get, put) = (on.ops.get.expect("has get"), on.ops.put.expect("has put"));
    let offsets = Offsets::scattered(1, *next);
    let mut failed = 0;
    for i in 0..count {
        let mut table = null_mut();
        // SAFETY: as in `hits`.
        unsafe {
            failed |= get(on.handle, offsets.at(i), &mut table);
            failed |= put(on.handle, &mut table);
        }
    }
    *next += count;
    assert!(failed == 0, "a miss failed");
}

/// Which entry of a table is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entry {
    /// One that belongs to the table, a different one for each: what is read often stays in the processor's caches.
    OneEach,
    /// Any: all of the tables' memory is read.
    Any,
}

/// `count` copies of an entry of random tables of the set.
#[inline(never)]
pub fn reads(on: &Contender, offsets: &Offsets, entry: Entry, rng: &mut Rng, count: u64) {
    let read = on.ops.read.expect("has read");
    copies(on, read, offsets, entry, rng, count);
}

/// As [`reads`], but only finds the tables.
#[inline(never)]
pub fn probes(on: &Contender, offsets: &Offsets, rng: &mut Rng, count: u64) {
    let probe = on.ops.probe.expect("has probe");
    copies(on, probe, offsets, Entry::OneEach, rng, count);
}

#[inline(always)]
fn copies(
    on: &Contender,
    read: contenders::Read,
    offsets: &Offsets,
    entry: Entry,
    rng: &mut Rng,
    count: u64,
) {
    let mut failed = 0;
    let mut random = *rng;
    for _ in 0..count {
        let mut copy = 0_u64;
        let number = random.below(offsets.count as u64);
        let entry = match entry {
            Entry::OneEach => number,
            Entry::Any => random.below(TABLE_SIZE as u64 / 8),
        };
        // Each in another set of the processor's caches: tables are 4 KiB apart.
        let at = (entry * 8) as usize % TABLE_SIZE;
        // SAFETY: the contender is alive; 8 bytes inside a table.
        failed |= unsafe { read(on.handle, offsets.at(number), at, (&raw mut copy).cast(), 8) };
    }
    *rng = random;
    assert!(failed == 0, "a read failed");
}

/// Gets and puts each offset of the set once, in order.
pub fn touch_all(on: &Contender, offsets: &Offsets) {
    for i in 0..offsets.count as u64 {
        touch(on, offsets.at(i), false);
    }
}

/// Gets and puts one table, perhaps dirtying it.
pub fn touch(on: &Contender, offset: u64, dirty: bool) {
    let (get, put) = (on.ops.get.expect("has get"), on.ops.put.expect("has put"));
    let mut table = null_mut();
    // SAFETY: as in `hits`; marked while it is pinned.
    let r = unsafe {
        let mut r = get(on.handle, offset, &mut table);
        if dirty {
            let mark = on.ops.mark_dirty.expect("has mark_dirty");
            r |= mark(on.handle, table);
        }
        r | put(on.handle, &mut table)
    };
    assert!(r == 0, "get, put: {r}");
}

/// Calls an operation on the whole cache.
pub fn whole(on: &Contender, operation: Option<contenders::Whole>) -> i32 {
    let operation = operation.expect("has the operation");
    // SAFETY: the contender is alive.
    let r = unsafe { operation(on.handle) };
    assert!(r >= 0, "failed: {r}");
    r
}

/// Makes every offset of the set resident.
pub fn settle(on: &Contender, offsets: &Offsets) {
    for _ in 0..50 {
        let before = ours::loads();
        touch_all(on, offsets);
        if ours::loads() == before {
            return;
        }
    }
    panic!("{} tables do not become resident", offsets.count);
}

/// Fills the cache and replaces everything in it twice, in random order; then the returned set is resident. Sets of different `number`s
/// have no table in common.
pub fn churn(on: &Contender, tables: usize, number: u64) -> Offsets {
    let mut rng = Rng::new(7);
    let generation = |i| Offsets::scattered(tables, number * 3 + i);
    for offsets in [generation(0), generation(1)] {
        for _ in 0..tables {
            touch(on, offsets.at(rng.below(tables as u64)), false);
        }
    }
    settle(on, &generation(2));
    generation(2)
}

/// Operations per second of `threads` threads together, from the first one's beginning to the last one's end: see [`rates`].
pub fn throughput(
    threads: usize,
    slice: Duration,
    warm: u64,
    work: &(dyn Fn(&mut Rng, u64) + Sync),
) -> (f64, bool) {
    let (turns, disturbed) = turns(threads, slice, warm, &|_, rng, count| work(rng, count));
    let begun = turns.iter().map(|turn| turn.begun).min();
    let ended = turns.iter().map(|turn| turn.ended).max();
    let (begun, ended) = begun.zip(ended).expect("there are threads");
    let done: u64 = turns.iter().map(|turn| turn.done).sum();
    (done as f64 / (ended - begun).as_secs_f64(), disturbed)
}

/// Operations per second of each of `threads` threads at once, each on a processor of its own as far as they suffice, for about
/// `slice`, after `warm` operations each that do not count (and as many as fit into a slice at least; no more than into eight); and whether
/// something else kept them from running.
pub fn rates(threads: usize, slice: Duration, warm: u64, work: &Work<'_>) -> (Vec<f64>, bool) {
    let (turns, disturbed) = turns(threads, slice, warm, work);
    let rate = |turn: &Turn| turn.done as f64 / (turn.ended - turn.begun).as_secs_f64();
    (turns.iter().map(rate).collect(), disturbed)
}

/// What one thread did.
struct Turn {
    done: u64,
    begun: Instant,
    ended: Instant,
}

/// What a thread is to do: its number, and how many operations.
pub type Work<'a> = dyn Fn(usize, &mut Rng, u64) + Sync + 'a;

/// See [`rates`].
fn turns(threads: usize, slice: Duration, warm: u64, work: &Work<'_>) -> (Vec<Turn>, bool) {
    let barrier = Barrier::new(threads);
    let one = |number: usize| {
        pin_to_cpu(number);
        let mut rng = Rng::new(number as u64 + 11);
        let batch = batch_of(|count| work(number, &mut rng, count));
        let mut work_for = |time: Duration, least: u64| {
            let (begun, mut done) = (Instant::now(), 0);
            while begun.elapsed() < time || (done < least && begun.elapsed() < time * 8) {
                work(number, &mut rng, batch);
                done += batch;
            }
            Turn {
                done,
                begun,
                ended: Instant::now(),
            }
        };
        work_for(slice, warm);
        barrier.wait();
        let cpu = thread_cpu();
        let turn = work_for(slice, 0);
        let wall = turn.ended - turn.begun;
        let away = wall.saturating_sub(thread_cpu() - cpu);
        (turn, away > wall.mul_f64(0.03))
    };
    let results: Vec<(Turn, bool)> = std::thread::scope(|scope| {
        let running: Vec<_> = (0..threads).map(|n| scope.spawn(move || one(n))).collect();
        running
            .into_iter()
            .map(|t| t.join().expect("no panic"))
            .collect()
    });
    // More threads than processors are always kept waiting.
    let expected = threads > cpus();
    let disturbed = !expected && results.iter().any(|(_, disturbed)| *disturbed);
    (
        results.into_iter().map(|(turn, _)| turn).collect(),
        disturbed,
    )
}

/// How many operations take about 50 µs: few enough to end in time, so many that the look at the clock costs nothing.
fn batch_of(mut work: impl FnMut(u64)) -> u64 {
    let begun = Instant::now();
    work(16);
    let each = begun.elapsed().as_nanos() as u64 / 16;
    (50_000 / each.max(1)).clamp(1, 1 << 15)
}

/// The processors that the program may use, as it was when this was first asked: pinned threads ask later.
fn allowed() -> &'static [usize] {
    static ALLOWED: OnceLock<Vec<usize>> = OnceLock::new();
    ALLOWED.get_or_init(|| {
        // SAFETY: a set of processors is plain bits, and all-zero is the empty one; the call fills in a local one.
        unsafe {
            let mut set: libc::cpu_set_t = core::mem::zeroed();
            libc::sched_getaffinity(0, size_of_val(&set), &mut set);
            let all = 0..libc::CPU_SETSIZE as usize;
            all.filter(|cpu| libc::CPU_ISSET(*cpu, &set)).collect()
        }
    })
}

/// How many processors the program may use. To be asked before any thread is pinned.
pub fn cpus() -> usize {
    allowed().len().max(1)
}

/// Keeps the calling thread on processor `number`, counted round; best effort.
pub fn pin_to_cpu(number: usize) {
    let Some(cpu) = allowed().get(number % cpus()) else {
        return;
    };
    // SAFETY: as in `allowed`; the processor is one of those that the system named.
    unsafe {
        let mut set: libc::cpu_set_t = core::mem::zeroed();
        libc::CPU_SET(*cpu, &mut set);
        libc::sched_setaffinity(0, size_of_val(&set), &set);
    }
}
