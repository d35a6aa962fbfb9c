// SPDX-License-Identifier: MIT OR Apache-2.0
//! The tables' memory: pages of the cache's arena. They use no memory until they are touched.

use std::ops::Range;
use std::ptr::NonNull;

use super::arena::{Arena, Pages};
use crate::error::{Errno, Error, Result};

/// Smallest table: qcow2's smallest cluster (QEMU's `MIN_CLUSTER_BITS`, 9).
pub const MIN_TABLE_SIZE: usize = 512;
/// Largest table: qcow2's largest cluster (QEMU's `MAX_CLUSTER_BITS`, 21).
pub const MAX_TABLE_SIZE: usize = 2 << 20;

/// Whether pages can be returned to the kernel. Only Linux's `MADV_DONTNEED` really drops them.
pub const CAN_RELEASE: bool = cfg!(target_os = "linux");

/// Memory for a number of tables of one size.
pub struct Tables {
    pages: Pages,
    table_shift: u32,
    /// `1 << table_shift`.
    table_size: usize,
    /// The bits that are 0 in the byte position of every 8-byte entry of a table.
    not_an_entry: usize,
    count: usize,
    page: usize,
}

// SAFETY: this value alone uses the pages; the slots' states decide who may access which table.
unsafe impl Send for Tables {}
// SAFETY: see `Send`; every method only computes addresses or calls the kernel.
unsafe impl Sync for Tables {}

/// Why the kernel refused a mapping: the limit of the process, if it has one.
fn why_map_failed() -> String {
    let mut limit = libc::rlimit {
        rlim_cur: libc::RLIM_INFINITY,
        rlim_max: libc::RLIM_INFINITY,
    };
    // SAFETY: a valid place for the result.
    unsafe { libc::getrlimit(libc::RLIMIT_AS, &raw mut limit) };
    if limit.rlim_cur == libc::RLIM_INFINITY {
        return "the kernel has no memory or address space left for them".to_owned();
    }
    format!(
        "the process's limit of address space is {} bytes (RLIMIT_AS, ulimit -v)",
        limit.rlim_cur
    )
}

/// Bytes of a page.
fn page_size() -> usize {
    // SAFETY: sysconf reads a constant of the system.
    usize::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) }).unwrap_or(4096)
}

impl Tables {
    /// Memory for `count` tables of `1 << table_shift` bytes, in an arena that has room for
    /// `arrays` more bytes. `ENOMEM`: no address space.
    pub fn new(count: usize, table_shift: u32, arrays: usize) -> Result<(Self, Arena)> {
        let no_room = |why: String| {
            let size = 1_u64 << table_shift;
            Error::new(
                Errno::NOMEM,
                format!("{count} tables of {size} bytes cannot be mapped: {why}"),
            )
        };
        let page = page_size();
        // Both whole pages, so that the tables begin and end at a page's border.
        let whole_pages = |bytes: usize| bytes.checked_next_multiple_of(page);
        let bytes = count.checked_mul(1 << table_shift).and_then(whole_pages);
        let arrays = whole_pages(arrays);
        let whole = bytes.and_then(|bytes| bytes.checked_add(arrays?));
        let (Some(bytes), Some(whole)) = (bytes, whole.filter(|n| isize::try_from(*n).is_ok()))
        else {
            return Err(no_room("they are larger than any address space".to_owned()));
        };
        let mut arena = Arena::new(whole).ok_or_else(|| no_room(why_map_failed()))?;
        let tables = Self {
            pages: arena.take_end(bytes),
            table_shift,
            table_size: 1 << table_shift,
            not_an_entry: !((1 << table_shift) - 8),
            count,
            page,
        };
        #[cfg(any(loom, shuttle))]
        (0..count as u32).for_each(|slot| crate::model::create(tables.table(slot)));
        Ok((tables, arena))
    }

    /// Bytes of one table.
    pub fn table_size(&self) -> usize {
        self.table_size
    }

    /// Whether byte `at` of a table is the first of one of its 8-byte entries: aligned and inside.
    #[inline]
    pub fn is_entry(&self, at: usize) -> bool {
        at & self.not_an_entry == 0
    }

    /// Number of tables.
    pub fn count(&self) -> usize {
        self.count
    }

    /// Address of a slot's table.
    #[inline]
    pub fn table(&self, slot: u32) -> NonNull<u8> {
        debug_assert!((slot as usize) < self.count);
        // SAFETY: slots are below `count` (every slot number comes from this cache's own index,
        // bits or `slot_of`), so the address is inside the mapping.
        unsafe { self.pages.base.add(slot as usize * self.table_size) }
    }

    /// The slot whose table begins exactly at `address`; `None`: there is none.
    #[inline]
    pub fn slot_of(&self, address: usize) -> Option<u32> {
        let distance = address.wrapping_sub(self.pages.base.as_ptr() as usize);
        // If the distance is not a multiple of the table size, its low bits are now the highest
        // bits, so `slot` is larger than any slot's number.
        let slot = distance.rotate_right(self.table_shift);
        (slot < self.count).then_some(slot as u32)
    }

    /// How many neighbouring slots share a page; 1 if a table is at least as large as a page.
    pub fn slots_per_page(&self) -> usize {
        (self.page >> self.table_shift).max(1)
    }

    /// Bytes of table memory of `slots` slots.
    pub fn page_bytes(&self, slots: usize) -> u64 {
        (slots as u64) << self.table_shift
    }

    /// Returns the whole pages inside the memory of `runs` of neighbouring slots to the kernel;
    /// they read as zeros afterwards. The caller made sure that nobody uses these slots. If the
    /// kernel refuses, the memory stays resident.
    ///
    /// Each `madvise` interrupts every other processor that runs this process. So scattered runs go
    /// in one `process_madvise` where the kernel allows it.
    pub fn release(&self, runs: &[Range<usize>]) {
        if !CAN_RELEASE {
            return;
        }
        #[cfg(any(loom, shuttle))]
        for slot in runs.iter().cloned().flatten() {
            crate::model::zero(self.table(slot as u32));
        }
        let pages: Vec<libc::iovec> = runs
            .iter()
            .filter_map(|run| self.whole_pages(run))
            .collect();
        for batch in pages.chunks(MAX_RANGES) {
            let done = if batch.len() > 1 {
                release_vectored(batch)
            } else {
                0
            };
            for range in &batch[done..] {
                // SAFETY: see `release_vectored`.
                unsafe { libc::madvise(range.iov_base, range.iov_len, libc::MADV_DONTNEED) };
            }
        }
    }

    fn whole_pages(&self, slots: &Range<usize>) -> Option<libc::iovec> {
        let start = (slots.start << self.table_shift).next_multiple_of(self.page);
        let end = slots.end << self.table_shift;
        let end = if slots.end == self.count {
            // The tables have whole pages; they need not fill the last one.
            end.next_multiple_of(self.page)
        } else {
            end & !(self.page - 1)
        };
        (start < end).then(|| libc::iovec {
            // SAFETY: `start` is inside the tables' pages.
            iov_base: unsafe { self.pages.base.as_ptr().add(start).cast() },
            iov_len: end - start,
        })
    }
}

/// The most ranges that one `process_madvise` takes: Linux's `UIO_MAXIOV`.
const MAX_RANGES: usize = 1024;

/// Calls `process_madvise` on this process. Returns how many of the ranges, counted from the first,
/// were released whole. Linux allows `MADV_DONTNEED` there since 6.13, and `PIDFD_SELF` since 6.14.
/// An older kernel refuses; the call is not tried again then.
#[cfg(target_os = "linux")]
fn release_vectored(ranges: &[libc::iovec]) -> usize {
    use std::sync::atomic::{AtomicBool, Ordering};
    static REFUSED: AtomicBool = AtomicBool::new(false);
    const PIDFD_SELF_THREAD_GROUP: libc::c_int = -10001;
    if REFUSED.load(Ordering::Relaxed) {
        return 0;
    }
    // SAFETY: whole pages inside the mapping, of slots in state `releasing`: nobody has them
    // pinned, and a copy without a pin checks the slot's version afterwards.
    let released = unsafe {
        libc::syscall(
            libc::SYS_process_madvise,
            PIDFD_SELF_THREAD_GROUP,
            ranges.as_ptr(),
            ranges.len(),
            libc::MADV_DONTNEED,
            0,
        )
    };
    let Ok(mut left) = usize::try_from(released) else {
        REFUSED.store(true, Ordering::Relaxed);
        return 0;
    };
    let whole = ranges.iter().take_while(|range| {
        let fits = range.iov_len <= left;
        left = left.saturating_sub(range.iov_len);
        fits
    });
    whole.count()
}

#[cfg(not(target_os = "linux"))]
fn release_vectored(_ranges: &[libc::iovec]) -> usize {
    0
}

#[cfg(any(loom, shuttle))]
impl Drop for Tables {
    fn drop(&mut self) {
        (0..self.count as u32).for_each(|slot| crate::model::remove(self.table(slot)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn touched(tables: &Tables) -> Vec<u32> {
        let first_byte = |slot: &u32| {
            // SAFETY: inside the mapping, which only this test uses.
            unsafe { tables.table(*slot).read() != 0 }
        };
        (0..tables.count() as u32).filter(first_byte).collect()
    }

    fn filled(count: usize, table_shift: u32) -> Tables {
        let (tables, _) = Tables::new(count, table_shift, 0).unwrap();
        for slot in 0..count as u32 {
            // SAFETY: inside the mapping, which only this test uses.
            unsafe { tables.table(slot).write_bytes(1, tables.table_size()) };
        }
        tables
    }

    #[test]
    fn release_zeroes_only_the_given_scattered_runs() {
        let tables = filled(3000, 12);
        let runs: Vec<_> = (0..1500).map(|i| i * 2..i * 2 + 1).collect();
        tables.release(&runs);
        assert_eq!(
            touched(&tables),
            (0..1500).map(|i| i * 2 + 1).collect::<Vec<_>>()
        );
    }

    #[test]
    fn release_skips_partial_pages() {
        let tables = filled(32, 9);
        let unit = tables.slots_per_page();
        let run = 1..unit * 2 + 1;
        tables.release(std::slice::from_ref(&run));
        let gone = unit..unit * 2;
        assert_eq!(
            touched(&tables),
            (0..32)
                .filter(|s| !gone.contains(&(*s as usize)))
                .collect::<Vec<_>>()
        );
    }

    #[test]
    fn slot_of_accepts_only_exact_table_addresses() {
        let (tables, _) = Tables::new(4, 9, 0).unwrap();
        let base = tables.table(0).as_ptr() as usize;
        assert_eq!(tables.slot_of(base), Some(0));
        assert_eq!(tables.slot_of(base + 3 * 512), Some(3));
        for foreign in [base + 1, base + 4 * 512, base - 512, 0, usize::MAX] {
            assert_eq!(tables.slot_of(foreign), None);
        }
    }

    #[test]
    fn new_fails_with_enomem_if_tables_exceed_address_space() {
        assert_eq!(
            Tables::new(usize::MAX, 21, 0).err().unwrap().errno(),
            Errno::NOMEM
        );
    }
}
