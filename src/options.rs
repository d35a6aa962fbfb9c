// SPDX-License-Identifier: MIT OR Apache-2.0
//! From the user's cache options and an image's geometry to the number and size of the tables of
//! its two caches, and the cleaning interval, by the rules of QEMU's qcow2 driver.
//!
//! *Need* is what the L2 tables of the whole image take: `virtual_size / cluster_size` (rounded
//! up) entries of `l2_entry_size` bytes, rounded up to whole clusters.
//!
//! | `cache-size` | `l2-cache-size` | `refcount-cache-size` | L2 cache | refcount cache |
//! |---|---|---|---|---|
//! | – | – | – | min(need, 32 MiB) | 0 |
//! | – | a | – | min(need, a) | 0 |
//! | – | – | b | min(need, 32 MiB) | b |
//! | – | a | b | min(need, a) | b |
//! | c | a ≤ c | – | min(need, a) | c − L2 cache |
//! | c | – | b ≤ c | c − b (even above need) | b |
//! | c ≥ need + 4 clusters | – | – | need | c − need |
//! | c < need + 4 clusters | – | – | c − refcount cache | min(c, 4 clusters) |
//! | c | a | b | refused | refused |
//!
//! The bytes are then divided, rounding down, into L2 tables of `l2-cache-entry-size` and refcount
//! blocks of one cluster, and raised to the minimum of 2 tables and 4 blocks: the minimum wins over
//! every option, `cache-size` too, and gives the 0 of the table its meaning. `l2-cache-entry-size`
//! is by default the cluster size when the L2 cache holds need, else 4 KiB, at most a cluster.
//!
//! Everything here is plain arithmetic on its arguments: any thread, no lock, never waits, nothing
//! is allocated but error messages. No input panics or overflows.

use std::time::Duration;

use crate::error::{Errno, Error, Result};

/// Whether unused table memory can be given back to the kernel, so that cleaning makes sense.
const CAN_CLEAN: bool = cfg!(target_os = "linux");

/// Most bytes of L2 cache that an image gets when no option says otherwise: 32 MiB, which covers
/// 256 GiB of an image with 64 KiB clusters; 8 MiB where unused tables cannot be cleaned away.
/// Source: QEMU, `DEFAULT_L2_CACHE_MAX_SIZE` in block/qcow2.h, and docs/qcow2-cache.txt.
pub const DEFAULT_L2_CACHE_MAX: u64 = if CAN_CLEAN { 32 << 20 } else { 8 << 20 };

/// Seconds between two cleaning passes when `cache-clean-interval` is not set: 600; 0, which is
/// never, where unused tables cannot be cleaned away.
/// Source: QEMU, `DEFAULT_CACHE_CLEAN_INTERVAL` in block/qcow2.h.
pub const DEFAULT_CACHE_CLEAN_INTERVAL: u64 = if CAN_CLEAN { 600 } else { 0 };

/// Longest `cache-clean-interval`, in seconds: `UINT_MAX`, about 136 years.
/// Source: QEMU, block/qcow2.c, which keeps the interval in an `unsigned`.
pub const MAX_CACHE_CLEAN_INTERVAL: u64 = u32::MAX as u64;

/// Fewest L2 tables: copy on write looks at two at once.
/// Source: QEMU, `MIN_L2_CACHE_SIZE` in block/qcow2.h.
pub const MIN_L2_TABLES: u64 = 2;

/// Fewest refcount blocks: growing the refcount table needs four at once.
/// Source: QEMU, `MIN_REFCOUNT_CACHE_SIZE` in block/qcow2.h.
pub const MIN_REFCOUNT_TABLES: u64 = 4;

/// Most tables in one cache: `INT_MAX`. Source: QEMU, block/qcow2.c, which counts them in an `int`.
pub const MAX_TABLES: u64 = i32::MAX as u64;

/// Smallest cluster, and smallest L2 table in the cache, in bytes.
/// Source: the qcow2 specification (`cluster_bits` is at least 9).
pub const MIN_TABLE_SIZE: u32 = 512;

/// Largest cluster, in bytes. Source: QEMU, `MAX_CLUSTER_BITS` (21) in block/qcow2.h; the
/// specification lets an implementation draw the line there.
pub const MAX_CLUSTER_SIZE: u32 = 2 << 20;

/// L2 table size in bytes for a cache that does not hold all of the image's tables (or a cluster,
/// where that is less): small ones make loads and evictions cheaper.
/// Source: QEMU since 4.0, block/qcow2.c; the usual block size of a host's file system.
pub const PARTIAL_L2_TABLE_SIZE: u32 = 4096;

const CACHE_SIZE: &str = "cache-size";
const L2_CACHE_SIZE: &str = "l2-cache-size";
const REFCOUNT_CACHE_SIZE: &str = "refcount-cache-size";

/// The cache options that the user set; `None` is an option left alone. `Some(0)` counts as set.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// `cache-size`: bytes of both caches together.
    pub cache_size: Option<u64>,
    /// `l2-cache-size`: most bytes of the L2 cache; an image that needs less gets less.
    pub l2_cache_size: Option<u64>,
    /// `refcount-cache-size`: bytes of the refcount cache.
    pub refcount_cache_size: Option<u64>,
    /// `l2-cache-entry-size`: bytes of one L2 table (slice) in the cache, a power of two from 512
    /// to the cluster size.
    pub l2_cache_entry_size: Option<u64>,
    /// `cache-clean-interval`: seconds, 0 to `UINT_MAX`; 0 is never.
    pub cache_clean_interval: Option<u64>,
}

/// What the options depend on in an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    /// Size of the virtual disk in bytes; any value.
    pub virtual_size: u64,
    /// Bytes per cluster: a power of two from 512 to 2 MiB.
    pub cluster_size: u32,
    /// Bytes per L2 entry: 8, or 16 in an image with extended L2 entries.
    pub l2_entry_size: u32,
}

/// The shape of both caches and the cleaning interval.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Resolved {
    /// Tables (slices) in the L2 cache: 2 to `INT_MAX`.
    pub l2_tables: usize,
    /// Bytes of each: a power of two from 512 to the cluster size.
    pub l2_table_size: usize,
    /// Blocks in the refcount cache: 4 to `INT_MAX`.
    pub refcount_tables: usize,
    /// Bytes of each: the cluster size.
    pub refcount_table_size: usize,
    /// Time between two cleaning passes, in whole seconds; zero is never.
    pub clean_interval: Duration,
}

impl Options {
    /// Works out the caches that these options give an image of this geometry.
    ///
    /// # Errors
    ///
    /// Every message is shorter than 256 bytes and names the option, its value and what is allowed.
    ///
    /// - `EINVAL`: a geometry outside its limits; all three sizes set; `l2-cache-size` or
    ///   `refcount-cache-size` above `cache-size`; an entry size that is not a power of two from
    ///   512 to the cluster size; more than `INT_MAX` tables in a cache; an interval above
    ///   `UINT_MAX`.
    /// - `ENOTSUP`: an interval other than 0 on a platform that cannot give table memory back (any
    ///   but Linux).
    ///
    /// # Examples
    ///
    /// ```
    /// use qcow2cache::options::{Geometry, Options};
    ///
    /// let geometry = Geometry { virtual_size: 8 << 30, cluster_size: 65536, l2_entry_size: 8 };
    /// let options = Options { l2_cache_size: Some(256 << 10), ..Options::default() };
    /// let resolved = options.resolve(&geometry)?;
    /// // 1 MiB would cover the disk, 256 KiB do not: tables of 4 KiB.
    /// assert_eq!((resolved.l2_tables, resolved.l2_table_size), (64, 4096));
    /// assert_eq!((resolved.refcount_tables, resolved.refcount_table_size), (4, 65536));
    /// # Ok::<(), qcow2cache::error::Error>(())
    /// ```
    pub fn resolve(&self, geometry: &Geometry) -> Result<Resolved> {
        geometry.check()?;
        let (l2, refcount) = self.split(geometry)?;
        let l2_table_size = self.l2_table_size(geometry, l2.bytes)?;
        // The limit is told for the table size that holds below it: a cache cut down to it may no
        // longer cover the disk, and then gets small tables by default.
        let limit_size = self.l2_table_size(geometry, 0)?;
        let cluster_size = geometry.cluster_size;
        let l2_tables = l2.tables("L2 tables", l2_table_size, limit_size)?;
        let blocks = refcount.tables("refcount blocks", cluster_size, cluster_size)?;
        Ok(Resolved {
            l2_tables: to_usize(l2_tables.max(MIN_L2_TABLES)),
            l2_table_size: to_usize(l2_table_size.into()),
            refcount_tables: to_usize(blocks.max(MIN_REFCOUNT_TABLES)),
            refcount_table_size: to_usize(cluster_size.into()),
            clean_interval: self.clean_interval()?,
        })
    }

    /// The bytes of the L2 cache and of the refcount cache, by the table at the top.
    fn split(&self, geometry: &Geometry) -> Result<(Share, Share)> {
        let need = geometry.l2_need();
        let (l2, refcount) = (self.l2_cache_size, self.refcount_cache_size);
        let Some(all) = self.cache_size else {
            let l2 = Share::l2(l2.unwrap_or(DEFAULT_L2_CACHE_MAX), need);
            return Ok((l2, Share::refcount(refcount.unwrap_or(0))));
        };
        match (l2, refcount) {
            (Some(l2), Some(refcount)) => Err(invalid(format!(
                "'{CACHE_SIZE}' ({all} bytes), '{L2_CACHE_SIZE}' ({l2} bytes) and \
                 '{REFCOUNT_CACHE_SIZE}' ({refcount} bytes) are all set: allowed are any two of \
                 them"
            ))),
            (Some(l2), None) if l2 > all => Err(above_cache_size(L2_CACHE_SIZE, l2, all)),
            (Some(l2), None) => {
                let l2 = Share::l2(l2, need);
                let rest = Share::of_both(all, all - l2.bytes, l2.bytes);
                Ok((l2, rest))
            }
            (None, Some(refcount)) if refcount > all => {
                Err(above_cache_size(REFCOUNT_CACHE_SIZE, refcount, all))
            }
            (None, Some(refcount)) => {
                let rest = Share::of_both(all, all - refcount, refcount);
                Ok((rest, Share::refcount(refcount)))
            }
            (None, None) => {
                // From need + 4 clusters on this is need, below that what the 4 clusters leave.
                let blocks = MIN_REFCOUNT_TABLES * u64::from(geometry.cluster_size);
                let l2 = all.saturating_sub(blocks).min(need);
                let rest = Share::of_both(all, all - l2, l2);
                Ok((Share::of_both(all, l2, blocks), rest))
            }
        }
    }

    /// Bytes of one L2 table in a cache of `l2_bytes`.
    fn l2_table_size(&self, geometry: &Geometry, l2_bytes: u64) -> Result<u32> {
        let cluster_size = geometry.cluster_size;
        let Some(size) = self.l2_cache_entry_size else {
            let covers_disk = l2_bytes >= geometry.l2_need();
            let partial = cluster_size.min(PARTIAL_L2_TABLE_SIZE);
            return Ok(if covers_disk { cluster_size } else { partial });
        };
        match u32::try_from(size) {
            Ok(small) if is_table_size(small, cluster_size) => Ok(small),
            _ => Err(invalid(format!(
                "'l2-cache-entry-size' is {size} bytes: allowed is a power of two from \
                 {MIN_TABLE_SIZE} to the cluster size, {cluster_size} bytes"
            ))),
        }
    }

    fn clean_interval(&self) -> Result<Duration> {
        let set = self.cache_clean_interval;
        let seconds = set.unwrap_or(DEFAULT_CACHE_CLEAN_INTERVAL);
        if seconds > MAX_CACHE_CLEAN_INTERVAL {
            return Err(invalid(format!(
                "'cache-clean-interval' is {seconds} seconds: allowed are 0 (never) to \
                 {MAX_CACHE_CLEAN_INTERVAL} seconds"
            )));
        }
        if seconds != 0 && !CAN_CLEAN {
            let message = format!(
                "'cache-clean-interval' is {seconds} seconds: allowed is 0 (never), as this \
                 platform cannot give table memory back"
            );
            return Err(Error::new(Errno::NOTSUP, message));
        }
        Ok(Duration::from_secs(seconds))
    }
}

impl Geometry {
    fn check(&self) -> Result<()> {
        if !is_table_size(self.cluster_size, MAX_CLUSTER_SIZE) {
            return Err(invalid(format!(
                "the image's cluster size is {} bytes: allowed is a power of two from \
                 {MIN_TABLE_SIZE} to {MAX_CLUSTER_SIZE} bytes",
                self.cluster_size
            )));
        }
        match self.l2_entry_size {
            8 | 16 => Ok(()),
            size => Err(invalid(format!(
                "the image's L2 entry size is {size} bytes: allowed are 8 and, with extended L2 \
                 entries, 16 bytes"
            ))),
        }
    }

    /// Bytes of the L2 tables of the whole image, for a checked geometry; whole clusters, as a
    /// table on disk always takes one. No overflow: at most 2^64 / 512 entries of 16 bytes.
    fn l2_need(&self) -> u64 {
        let cluster_size = u64::from(self.cluster_size);
        let entries = self.virtual_size.div_ceil(cluster_size);
        (entries * u64::from(self.l2_entry_size)).next_multiple_of(cluster_size)
    }
}

/// One cache's bytes, and the option they come from, for the message when they are too many.
struct Share {
    bytes: u64,
    option: &'static str,
    /// What that option is set to.
    value: u64,
    /// How much of it goes to the other cache when this one is as large as it may be.
    other: u64,
}

impl Share {
    /// An L2 cache by its own option or default: never more than the image needs.
    fn l2(value: u64, need: u64) -> Self {
        Self {
            bytes: value.min(need),
            option: L2_CACHE_SIZE,
            value,
            other: 0,
        }
    }

    /// A refcount cache by its own option or default.
    fn refcount(value: u64) -> Self {
        Self {
            bytes: value,
            option: REFCOUNT_CACHE_SIZE,
            value,
            other: 0,
        }
    }

    /// A part of `cache-size`.
    fn of_both(value: u64, bytes: u64, other: u64) -> Self {
        Self {
            bytes,
            option: CACHE_SIZE,
            value,
            other,
        }
    }

    /// How many whole tables of `size` bytes this is; an error above `INT_MAX`, which tells the
    /// limit for tables of `limit_size` bytes.
    fn tables(&self, what: &str, size: u32, limit_size: u32) -> Result<u64> {
        let tables = self.bytes / u64::from(size);
        if tables <= MAX_TABLES {
            return Ok(tables);
        }
        // One byte below one table too many is still allowed. No overflow: that is less than
        // `bytes`, and `bytes` and `other` are parts of `value`.
        let most = (MAX_TABLES + 1) * u64::from(limit_size) - 1 + self.other;
        Err(invalid(format!(
            "'{}' is {} bytes: allowed are 0 to {most} bytes ({MAX_TABLES} {what} of {limit_size} \
             bytes)",
            self.option, self.value
        )))
    }
}

/// A power of two from 512 to `most`, in bytes.
fn is_table_size(size: u32, most: u32) -> bool {
    size.is_power_of_two() && (MIN_TABLE_SIZE..=most).contains(&size)
}

/// For numbers up to `INT_MAX`: a supported platform's `usize` has 32 bits at least.
fn to_usize(number: u64) -> usize {
    usize::try_from(number).unwrap_or(usize::MAX)
}

fn above_cache_size(option: &str, value: u64, cache_size: u64) -> Error {
    invalid(format!(
        "'{option}' is {value} bytes: allowed are 0 to {cache_size} bytes, the '{CACHE_SIZE}' of \
         both caches"
    ))
}

fn invalid(message: String) -> Error {
    Error::new(Errno::INVAL, message)
}
