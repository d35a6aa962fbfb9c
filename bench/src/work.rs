// SPDX-License-Identifier: MIT OR Apache-2.0
//! What the contenders have to do: fill, churn, hits, misses, reads, on one thread or several.

use core::ptr::null_mut;
use std::sync::{Barrier, OnceLock};
use std::time::{Duration, Instant};

use contenders::{Contender, TABLE_SIZE};

use crate::measure::{Rng, Samples, thread_cpu};
use crate::ours;

/// Sizes of the measured caches, in tables.
pub fn sizes(quick: bool) -> &'static [usize] {
    if quick {
        &[16, 512, 8192, 32768]
    } else {
        &[16, 128, 512, 2048, 8192, 32768]
    }
}

/// Round by round, the time with 32,768 tables divided by that with 512. Both are among `by_size`.
pub fn flatness(by_size: &[(usize, Samples)]) -> Samples {
    let of = |tables| {
        let found = by_size.iter().find(|(size, _)| *size == tables);
        &found.expect("the size was measured").1
    };
    of(32768).over(of(512))
}

/// The number of operations on random ones of `tables` tables after which the processor's caches
/// hold what belongs to these tables.
pub fn warm(tables: usize) -> u64 {
    8 * tables as u64
}

/// A set of table offsets, numbered.
#[derive(Clone, Copy, Debug)]
pub struct Offsets {
    /// Number of the first.
    pub first: u64,
    /// Number of offsets.
    pub count: usize,
    /// Where they lie in the image.
    place: Place,
}

#[derive(Clone, Copy, Debug)]
enum Place {
    /// At a distance of this number of tables from each other.
    Spaced(u64),
    /// Scattered over an image of 256 GiB.
    Scattered,
}

impl Offsets {
    /// `count` neighbours, from the first on.
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

    /// `count` offsets, each `distance` tables behind the previous one.
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

    /// The offset with number `i` of the set. One-to-one for 2^26 numbers.
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

    /// All offsets of the set.
    pub fn all(&self) -> Vec<u64> {
        (0..self.count as u64).map(|i| self.at(i)).collect()
    }
}

/// Gets and puts `count` random offsets of the set.
#[inline(never)]
pub fn hits(on: &Contender, offsets: &Offsets, rng: &mut Rng, count: u64) {
    hits_of(on, rng, count, |random| {
        offsets.at(random.below(offsets.count as u64))
    });
}

/// Gets and puts `count` offsets that `next` returns.
#[inline(always)]
pub fn hits_of(on: &Contender, rng: &mut Rng, count: u64, next: impl Fn(&mut Rng) -> u64) {
    let (get, put) = (on.ops.get.expect("has get"), on.ops.put.expect("has put"));
    let mut failed = 0;
    let mut random = *rng;
    for _ in 0..count {
        let mut table = null_mut();
        let offset = next(&mut random);
        // SAFETY: the contender is alive; the table is put right after the get.
        unsafe {
            failed |= get(on.handle, offset, &mut table);
            failed |= put(on.handle, &mut table);
        }
    }
    *rng = random;
    assert!(failed == 0, "a hit failed");
}

/// Gets and puts `count` offsets that were never used before, beginning with number `next`.
#[inline(never)]
pub fn misses(on: &Contender, next: &mut u64, count: u64) {
    let (get, put) = (on.ops.get.expect("has get"), on.ops.put.expect("has put"));
    let offsets = Offsets::scattered(1, *next);
    let mut failed = 0;
    for i in 0..count {
        let mut table = null_mut();
        // SAFETY: the contender is alive; the table is put right after the get.
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
    /// One fixed entry for each table, so that the processor's caches keep what is read often.
    OneEach,
    /// Any entry, so that all of the tables' memory is read.
    Any,
}

/// Copies an entry of `count` random tables of the set.
#[inline(never)]
pub fn reads(on: &Contender, offsets: &Offsets, entry: Entry, rng: &mut Rng, count: u64) {
    let read = on.ops.read.expect("has read");
    copies(on, read, offsets, entry, rng, count);
}

/// Finds `count` random tables of the set, as [`reads`] does, and copies nothing.
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
        // Tables are 4 KiB apart: with the same entry of each, all would fall into the same few
        // sets of the processor's caches.
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

/// Gets and puts one table, and marks it dirty in between if `dirty`.
pub fn touch(on: &Contender, offset: u64, dirty: bool) {
    let (get, put) = (on.ops.get.expect("has get"), on.ops.put.expect("has put"));
    let mut table = null_mut();
    // SAFETY: the contender is alive; the table is marked while it is pinned, then put.
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

/// Calls an operation on the whole cache and returns its result.
pub fn whole(on: &Contender, operation: Option<contenders::Whole>) -> i32 {
    let operation = operation.expect("has the operation");
    // SAFETY: the contender is alive.
    let r = unsafe { operation(on.handle) };
    assert!(r >= 0, "the operation failed: {r}");
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
    panic!("{} tables did not become resident", offsets.count);
}

/// Fills the cache and replaces everything in it twice, in random order. The returned set is
/// resident then. Sets of different `number`s have no table in common.
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

/// Operations per second of `threads` threads together, from the beginning of the first to the end
/// of the last. The arguments are those of [`rates`].
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

/// Runs `threads` threads at the same time for about `slice`. Returns the operations per second of
/// each, and whether something else kept one of them from running.
///
/// Each thread runs on its own processor as long as there are enough. Before, each makes `warm`
/// operations that do not count: for one slice at least, for eight slices at most.
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

/// What a thread has to do. The arguments: the thread's number, its random numbers, and the number
/// of operations.
pub type Work<'a> = dyn Fn(usize, &mut Rng, u64) + Sync + 'a;

/// Runs the threads for [`rates`] and [`throughput`].
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
    // If there are more threads than processors, some always wait.
    let expected = threads > cpus();
    let disturbed = !expected && results.iter().any(|(_, disturbed)| *disturbed);
    (
        results.into_iter().map(|(turn, _)| turn).collect(),
        disturbed,
    )
}

/// How many operations take about 50 µs. These are few enough for a thread to end in time, and so
/// many that reading the clock after them costs nothing in comparison.
fn batch_of(mut work: impl FnMut(u64)) -> u64 {
    let begun = Instant::now();
    work(16);
    let each = begun.elapsed().as_nanos() as u64 / 16;
    (50_000 / each.max(1)).clamp(1, 1 << 15)
}

/// The processors that the program may use, as they were at the first call. Threads call this again
/// when they are pinned already.
fn allowed() -> &'static [usize] {
    static ALLOWED: OnceLock<Vec<usize>> = OnceLock::new();
    ALLOWED.get_or_init(|| {
        // SAFETY: a set of processors is plain bits, and all-zero is the empty set; the call fills
        // in a local one.
        unsafe {
            let mut set: libc::cpu_set_t = core::mem::zeroed();
            libc::sched_getaffinity(0, size_of_val(&set), &mut set);
            let all = 0..libc::CPU_SETSIZE as usize;
            all.filter(|cpu| libc::CPU_ISSET(*cpu, &set)).collect()
        }
    })
}

/// How many processors the program may use. Call it once before any thread is pinned.
pub fn cpus() -> usize {
    allowed().len().max(1)
}

/// Keeps the calling thread on processor `number`, modulo the number of processors. Best effort.
pub fn pin_to_cpu(number: usize) {
    let Some(cpu) = allowed().get(number % cpus()) else {
        return;
    };
    // SAFETY: all-zero is the empty set; the processor is one of those that the system named.
    unsafe {
        let mut set: libc::cpu_set_t = core::mem::zeroed();
        libc::CPU_SET(*cpu, &mut set);
        libc::sched_setaffinity(0, size_of_val(&set), &set);
    }
}
