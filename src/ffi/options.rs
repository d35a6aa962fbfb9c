// SPDX-License-Identifier: MIT OR Apache-2.0
//! Options and geometry, as C has them.

use std::ffi::c_int;

use super::{
    CStruct, call, call_set_up, error::q2c_error, out, out_struct, read_optional_struct,
    read_struct,
};
use crate::error::{Errno, Error, Result};
use crate::options::{Geometry, Options, Resolved};

/// `cache_size` is set.
pub const Q2C_OPTION_CACHE_SIZE: u32 = 1;
/// `l2_cache_size` is set.
pub const Q2C_OPTION_L2_CACHE_SIZE: u32 = 2;
/// `refcount_cache_size` is set.
pub const Q2C_OPTION_REFCOUNT_CACHE_SIZE: u32 = 4;
/// `l2_cache_entry_size` is set.
pub const Q2C_OPTION_L2_CACHE_ENTRY_SIZE: u32 = 8;
/// `cache_clean_interval` is set.
pub const Q2C_OPTION_CACHE_CLEAN_INTERVAL: u32 = 16;

const ALL: u32 = Q2C_OPTION_CACHE_SIZE
    | Q2C_OPTION_L2_CACHE_SIZE
    | Q2C_OPTION_REFCOUNT_CACHE_SIZE
    | Q2C_OPTION_L2_CACHE_ENTRY_SIZE
    | Q2C_OPTION_CACHE_CLEAN_INTERVAL;

/// The cache options that the user set, as QEMU's qcow2 driver has them. Begin with
/// `q2c_options_init`; set a field and its bit in `set`.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct q2c_options {
    /// sizeof(q2c_options).
    pub struct_size: usize,
    /// `Q2C_OPTION_*` bits of the fields that count; the others may hold anything. Bits that are
    /// none: `-EINVAL`.
    pub set: u32,
    /// `cache-size`: bytes of both caches together.
    pub cache_size: u64,
    /// `l2-cache-size`: most bytes of the L2 cache; an image that needs less gets less. Default: 32
    /// MiB.
    pub l2_cache_size: u64,
    /// `refcount-cache-size`: bytes of the refcount cache. Default: 4 clusters.
    pub refcount_cache_size: u64,
    /// `l2-cache-entry-size`: bytes of one table in the L2 cache, a power of two from 512 to the
    /// cluster size. Default: the cluster size if the cache covers the disk, else 4 KiB at most.
    pub l2_cache_entry_size: u64,
    /// `cache-clean-interval`: seconds, 0 to `UINT_MAX`; 0 is never. Default: 600.
    pub cache_clean_interval: u64,
}

// SAFETY: repr(C), its size first, numbers.
unsafe impl CStruct for q2c_options {
    const NAME: &'static str = "q2c_options";
}

/// What the options depend on in an image.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct q2c_geometry {
    /// sizeof(q2c_geometry).
    pub struct_size: usize,
    /// Bytes of the virtual disk; any value.
    pub virtual_size: u64,
    /// Bytes of a cluster: a power of two from 512 to 2 MiB.
    pub cluster_size: u32,
    /// Bytes of an L2 entry: 8, or 16 in an image with extended L2 entries.
    pub l2_entry_size: u32,
}

// SAFETY: repr(C), its size first, numbers.
unsafe impl CStruct for q2c_geometry {
    const NAME: &'static str = "q2c_geometry";
}

/// The caches that follow from options and geometry.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct q2c_resolved_options {
    /// sizeof(q2c_resolved_options), set by the caller before the call.
    pub struct_size: usize,
    /// Tables in the L2 cache: 2 to `INT_MAX`.
    pub l2_tables: usize,
    /// Bytes of each: a power of two from 512 to the cluster size.
    pub l2_table_size: usize,
    /// Blocks in the refcount cache: 4 to `INT_MAX`.
    pub refcount_tables: usize,
    /// Bytes of each: the cluster size.
    pub refcount_table_size: usize,
    /// Time between two cleaning passes in ns; 0 is never.
    pub clean_interval_ns: u64,
}

// SAFETY: repr(C), its size first, numbers.
unsafe impl CStruct for q2c_resolved_options {
    const NAME: &'static str = "q2c_resolved_options";
}

/// Sets `struct_size`, and no option.
///
/// Any thread, never waits. `-EINVAL`: `options` is NULL.
///
/// # Safety
/// `options` is NULL or has room for a `q2c_options`; nothing need be in it.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn q2c_options_init(options: *mut q2c_options) -> c_int {
    call(|| {
        // SAFETY: NULL or writable, as the caller promised.
        unsafe { out(options) }?.set(q2c_options {
            struct_size: size_of::<q2c_options>(),
            set: 0,
            cache_size: 0,
            l2_cache_size: 0,
            refcount_cache_size: 0,
            l2_cache_entry_size: 0,
            cache_clean_interval: 0,
        });
        Ok(())
    })
}

/// Works out the caches that `options` give an image of this geometry, with the defaults and limits
/// of QEMU's qcow2 driver. `options` NULL: nothing set.
///
/// Any thread, never waits. On an error `*resolved` is left alone, and the message names the
/// option, its value and what is allowed. `error` may be NULL.
///
/// - `-EINVAL`: `geometry` or `resolved` is NULL; a `struct_size` is too small; unknown bits in
///   `set`; a geometry out of its range; all three sizes are set; the L2 or the refcount size is
///   above the combined one; an entry size that is not a power of two from 512 to the cluster size;
///   more than `INT_MAX` tables in a cache; an interval above `UINT_MAX` seconds.
/// - `-ENOTSUP`: an interval other than 0 on a system whose kernel takes no memory back.
///
/// # Safety
/// Pointers are NULL or valid.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn q2c_options_resolve(
    options: *const q2c_options,
    geometry: *const q2c_geometry,
    resolved: *mut q2c_resolved_options,
    error: *mut q2c_error,
) -> c_int {
    let resolve = || {
        // SAFETY: NULL or readable as far as their struct_size says, as the caller promised.
        let (options, geometry) = unsafe { (options_from(options)?, geometry_from(geometry)?) };
        // SAFETY: NULL or writable as far as its struct_size says, as the caller promised.
        let out = unsafe { out_struct(resolved) }?;
        let resolved = options.resolve(&geometry)?;
        out.place.set(to_c(out.struct_size, &resolved));
        Ok(())
    };
    // SAFETY: NULL or writable, as the caller promised.
    unsafe { call_set_up("q2c_options_resolve", error, resolve) }
}

fn to_c(struct_size: usize, resolved: &Resolved) -> q2c_resolved_options {
    q2c_resolved_options {
        struct_size,
        l2_tables: resolved.l2_tables,
        l2_table_size: resolved.l2_table_size,
        refcount_tables: resolved.refcount_tables,
        refcount_table_size: resolved.refcount_table_size,
        clean_interval_ns: u64::try_from(resolved.clean_interval.as_nanos()).unwrap_or(u64::MAX),
    }
}

/// `EINVAL`: too small, or unknown bits. NULL: nothing set.
///
/// # Safety
/// `options` is NULL or readable as far as its `struct_size` says.
pub(super) unsafe fn options_from(options: *const q2c_options) -> Result<Options> {
    // SAFETY: the caller's promise.
    let Some(options) = (unsafe { read_optional_struct(options) })? else {
        return Ok(Options::default());
    };
    let unknown = options.set & !ALL;
    if unknown != 0 {
        return Err(Error::new(
            Errno::INVAL,
            format!(
                "q2c_options.set has the unknown bits {unknown:#x}: allowed are those of {ALL:#x}"
            ),
        ));
    }
    let set = |bit: u32, value: u64| (options.set & bit != 0).then_some(value);
    Ok(Options {
        cache_size: set(Q2C_OPTION_CACHE_SIZE, options.cache_size),
        l2_cache_size: set(Q2C_OPTION_L2_CACHE_SIZE, options.l2_cache_size),
        refcount_cache_size: set(Q2C_OPTION_REFCOUNT_CACHE_SIZE, options.refcount_cache_size),
        l2_cache_entry_size: set(Q2C_OPTION_L2_CACHE_ENTRY_SIZE, options.l2_cache_entry_size),
        cache_clean_interval: set(
            Q2C_OPTION_CACHE_CLEAN_INTERVAL,
            options.cache_clean_interval,
        ),
    })
}

/// `EINVAL`: NULL or too small.
///
/// # Safety
/// `geometry` is NULL or readable as far as its `struct_size` says.
pub(super) unsafe fn geometry_from(geometry: *const q2c_geometry) -> Result<Geometry> {
    // SAFETY: the caller's promise.
    unsafe { read_struct(geometry) }.map(Geometry::from)
}

/// As [`geometry_from`]; NULL is `None`.
///
/// # Safety
/// As [`geometry_from`].
pub(super) unsafe fn optional_geometry_from(
    geometry: *const q2c_geometry,
) -> Result<Option<Geometry>> {
    // SAFETY: the caller's promise.
    let geometry = unsafe { read_optional_struct(geometry) }?;
    Ok(geometry.map(Geometry::from))
}

impl From<q2c_geometry> for Geometry {
    fn from(geometry: q2c_geometry) -> Self {
        Self {
            virtual_size: geometry.virtual_size,
            cluster_size: geometry.cluster_size,
            l2_entry_size: geometry.l2_entry_size,
        }
    }
}
