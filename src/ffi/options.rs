// SPDX-License-Identifier: MIT OR Apache-2.0
//! Options and geometry, as C has them.

use std::ffi::c_int;

use super::{
    CStruct, call, call_set_up, error::q2c_error, out, out_struct, read_optional_struct,
    read_struct,
};
use crate::error::{Errno, Error, Result};
use crate::options::{Geometry, Options, Resolved};

/// Bit of `q2c_options.set`: `cache_size` is set.
pub const Q2C_OPTION_CACHE_SIZE: u32 = 1;
/// Bit of `q2c_options.set`: `l2_cache_size` is set.
pub const Q2C_OPTION_L2_CACHE_SIZE: u32 = 2;
/// Bit of `q2c_options.set`: `refcount_cache_size` is set.
pub const Q2C_OPTION_REFCOUNT_CACHE_SIZE: u32 = 4;
/// Bit of `q2c_options.set`: `l2_cache_entry_size` is set.
pub const Q2C_OPTION_L2_CACHE_ENTRY_SIZE: u32 = 8;
/// Bit of `q2c_options.set`: `cache_clean_interval` is set.
pub const Q2C_OPTION_CACHE_CLEAN_INTERVAL: u32 = 16;

const ALL: u32 = Q2C_OPTION_CACHE_SIZE
    | Q2C_OPTION_L2_CACHE_SIZE
    | Q2C_OPTION_REFCOUNT_CACHE_SIZE
    | Q2C_OPTION_L2_CACHE_ENTRY_SIZE
    | Q2C_OPTION_CACHE_CLEAN_INTERVAL;

/// The cache options that the user set, as QEMU's qcow2 driver has them. Begin with
/// `q2c_options_init`; then set a field and its bit in `set`.
///
/// *Need* is what the L2 tables of the whole disk take. If `cache_size` is set and neither of the
/// other two sizes, the L2 cache gets its need, at most what `cache_size` leaves after 4 clusters,
/// and the refcount cache gets the rest. Whatever the options say, the L2 cache has 2 tables at
/// least and the refcount cache 4 blocks.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct q2c_options {
    /// `sizeof(q2c_options)`.
    pub struct_size: usize,
    /// `Q2C_OPTION_*` bits of the fields that count; the other fields may hold anything. Unknown
    /// bits are `-EINVAL`.
    pub set: u32,
    /// `cache-size`: bytes of both caches together. May not be set together with both of the next
    /// two.
    pub cache_size: u64,
    /// `l2-cache-size`: most bytes of the L2 cache, at most `cache_size` if that is set. An image
    /// that needs less gets less. Default without `cache_size`: 32 MiB (8 MiB where the kernel
    /// takes no memory back). Default with `cache_size` and `refcount_cache_size`: what the latter
    /// leaves, even if that is more than the need. With `cache_size` alone: see above.
    pub l2_cache_size: u64,
    /// `refcount-cache-size`: bytes of the refcount cache, at most `cache_size` if that is set.
    /// Default without `cache_size`: 4 clusters. Default with it: what the L2 cache leaves of it.
    pub refcount_cache_size: u64,
    /// `l2-cache-entry-size`: bytes of one table in the L2 cache, a power of two from 512 to the
    /// cluster size. Default: the cluster size if the cache covers the disk, else 4 KiB, or the
    /// cluster size if that is less.
    pub l2_cache_entry_size: u64,
    /// `cache-clean-interval`: seconds between two cleaning passes, 0 to `UINT_MAX`; 0 means never.
    /// Default: 600 (0 where the kernel takes no memory back).
    pub cache_clean_interval: u64,
}

// SAFETY: repr(C), its size first, numbers.
unsafe impl CStruct for q2c_options {
    const NAME: &'static str = "q2c_options";
}

/// The properties of an image that its caches depend on.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct q2c_geometry {
    /// `sizeof(q2c_geometry)`.
    pub struct_size: usize,
    /// Size of the virtual disk in bytes; any value.
    pub virtual_size: u64,
    /// Size of a cluster in bytes: a power of two from 512 to 2097152 (2 MiB).
    pub cluster_size: u32,
    /// Size of an L2 entry in bytes: 8, or 16 in an image with extended L2 entries.
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
    /// `sizeof(q2c_resolved_options)`, set by the caller before the call.
    pub struct_size: usize,
    /// Number of tables in the L2 cache: 2 to `INT_MAX`.
    pub l2_tables: usize,
    /// Size of each in bytes: a power of two from 512 to the cluster size.
    pub l2_table_size: usize,
    /// Number of blocks in the refcount cache: 4 to `INT_MAX`.
    pub refcount_tables: usize,
    /// Size of each in bytes: the cluster size.
    pub refcount_table_size: usize,
    /// Time between two cleaning passes in ns; 0 means never.
    pub clean_interval_ns: u64,
}

// SAFETY: repr(C), its size first, numbers.
unsafe impl CStruct for q2c_resolved_options {
    const NAME: &'static str = "q2c_resolved_options";
}

/// Sets `struct_size`, and marks every option as not set.
///
/// Context: any thread; never waits.
///
/// Returns: 0 on success.
/// - `-EINVAL`: `options` is NULL.
///
/// # Safety
/// `options` is NULL or has room for a `q2c_options`, which need not be initialised.
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
/// of QEMU's qcow2 driver.
///
/// Parameters:
/// - `options`: NULL means that no option is set.
/// - `geometry`: must not be NULL.
/// - `resolved`: receives the result; its `struct_size` must be set and stays as it is. Must not be
///   NULL.
/// - `error`: may be NULL. Its message names the option, its value and what is allowed.
///
/// Context: any thread; never waits.
///
/// Returns: 0 on success.
/// - `-EINVAL`: `geometry` or `resolved` is NULL; a `struct_size` is too small; `set` has unknown
///   bits; a field of the geometry is out of its range; all three sizes are set; the L2 or the
///   refcount size is above the combined one; the entry size is not a power of two from 512 to the
///   cluster size; a cache would have more than `INT_MAX` tables; the interval is above `UINT_MAX`
///   seconds.
/// - `-ENOTSUP`: the interval is not 0, and the kernel takes no memory back.
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

/// `resolved` as C has it, with the caller's `struct_size`.
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

/// The core's options on a copy of C's; NULL means that no option is set. `EINVAL`: `struct_size`
/// is too small, or `set` has unknown bits.
///
/// # Safety
/// `options` is NULL or readable as far as its `struct_size` says.
pub(super) unsafe fn options_from(options: *const q2c_options) -> Result<Options> {
    // SAFETY: the caller keeps this function's contract.
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

/// The core's geometry on a copy of C's. `EINVAL`: NULL, or `struct_size` is too small.
///
/// # Safety
/// `geometry` is NULL or readable as far as its `struct_size` says.
pub(super) unsafe fn geometry_from(geometry: *const q2c_geometry) -> Result<Geometry> {
    // SAFETY: the caller keeps this function's contract.
    unsafe { read_struct(geometry) }.map(Geometry::from)
}

/// [`geometry_from`], but NULL is `None`.
///
/// # Safety
/// The contract of [`geometry_from`].
pub(super) unsafe fn optional_geometry_from(
    geometry: *const q2c_geometry,
) -> Result<Option<Geometry>> {
    // SAFETY: the caller keeps this function's contract.
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
