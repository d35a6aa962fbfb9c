// SPDX-License-Identifier: MIT OR Apache-2.0
//! The cache options: cases computed by hand, errors with their exact message, and properties that
//! hold for any input.

use std::time::Duration;

use proptest::prelude::*;
use qcow2cache::error::Errno;
use qcow2cache::options::{
    DEFAULT_CACHE_CLEAN_INTERVAL, DEFAULT_L2_CACHE_MAX, Geometry, MAX_CACHE_CLEAN_INTERVAL,
    MAX_TABLES, Options, Resolved,
};

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;
const TIB: u64 = 1 << 40;

fn geometry(virtual_size: u64, cluster_size: u32, l2_entry_size: u32) -> Geometry {
    Geometry {
        virtual_size,
        cluster_size,
        l2_entry_size,
    }
}

/// An image with clusters of 64 KiB and plain L2 entries, as `qemu-img create` makes it. It needs
/// 1 MiB of L2 tables for every 8 GiB.
fn image(virtual_size: u64) -> Geometry {
    geometry(virtual_size, 65536, 8)
}

/// Options from `cache-size`, `l2-cache-size`, `refcount-cache-size`, `l2-cache-entry-size`.
fn sizes<A, B, C, D>(cache: A, l2: B, refcount: C, entry: D) -> Options
where
    A: Into<Option<u64>>,
    B: Into<Option<u64>>,
    C: Into<Option<u64>>,
    D: Into<Option<u64>>,
{
    Options {
        cache_size: cache.into(),
        l2_cache_size: l2.into(),
        refcount_cache_size: refcount.into(),
        l2_cache_entry_size: entry.into(),
        cache_clean_interval: None,
    }
}

/// L2 tables, bytes of each, refcount blocks.
fn shape(resolved: &Resolved) -> (usize, usize, usize) {
    (
        resolved.l2_tables,
        resolved.l2_table_size,
        resolved.refcount_tables,
    )
}

/// Geometry, options, shape. QEMU 10.0.2 allocates the same, if such an image can be created and
/// there is enough memory.
#[rustfmt::skip]
fn hand_computed_cases() -> Vec<(Geometry, Options, (usize, usize, usize))> {
    let none = None;
    let c = 64 * KIB;
    vec![
        // Nothing set: the need, up to 32 MiB; small tables if the need is larger; minimum 2 and 4.
        (image(8 * GIB), Options::default(), (16, 65536, 4)),
        (image(GIB), Options::default(), (2, 65536, 4)),
        (image(64 * MIB), Options::default(), (2, 65536, 4)),   // need is one cluster
        (image(0), Options::default(), (2, 65536, 4)),
        // 160 KiB of entries, in whole clusters.
        (image(1280 * MIB), Options::default(), (3, 65536, 4)),
        (image(512 * MIB + 1), Options::default(), (2, 65536, 4)),
        (image(1024 * MIB + 1), Options::default(), (3, 65536, 4)),
        (image(256 * GIB), Options::default(), (512, 65536, 4)), // need is 32 MiB to the byte
        (image(256 * GIB + 1), Options::default(), (8192, 4096, 4)),
        (image(64 * TIB), Options::default(), (8192, 4096, 4)),
        (geometry(8 * GIB, 65536, 16), Options::default(), (32, 65536, 4)),
        (geometry(256 * GIB, 65536, 16), Options::default(), (8192, 4096, 4)),
        (geometry(GIB, 512, 8), Options::default(), (32768, 512, 4)),      // need is 16 MiB
        (geometry(8 * GIB, 512, 8), Options::default(), (65536, 512, 4)),  // need is 128 MiB
        (geometry(8 * GIB, 4096, 8), Options::default(), (4096, 4096, 4)),
        (geometry(64 * TIB, 2 << 20, 8), Options::default(), (8192, 4096, 4)), // need is 256 MiB
        (geometry(TIB, 2 << 20, 8), Options::default(), (2, 2 << 20, 4)),      // need is 4 MiB
        (geometry(u64::MAX, 512, 16), Options::default(), (65536, 512, 4)),    // need is 2^59
        (geometry(u64::MAX, 2 << 20, 8), Options::default(), (8192, 4096, 4)),

        // l2-cache-size alone.
        (image(8 * GIB), sizes(none, 256 * KIB, none, none), (64, 4096, 4)),
        (image(8 * GIB), sizes(none, MIB, none, none), (16, 65536, 4)),
        (image(8 * GIB), sizes(none, MIB - 1, none, none), (255, 4096, 4)),
        (image(8 * GIB), sizes(none, GIB, none, none), (16, 65536, 4)),   // no more than needed
        (image(8 * GIB), sizes(none, u64::MAX, none, none), (16, 65536, 4)),
        (image(8 * GIB), sizes(none, 0, none, none), (2, 4096, 4)),
        (image(0), sizes(none, 0, none, none), (2, 65536, 4)),            // 0 covers a need of 0
        // Above the default of 32 MiB.
        (image(TIB), sizes(none, 128 * MIB, none, none), (2048, 65536, 4)),

        // refcount-cache-size alone, and both.
        (image(8 * GIB), sizes(none, none, MIB, none), (16, 65536, 16)),
        (image(8 * GIB), sizes(none, none, 0, none), (16, 65536, 4)),
        (image(8 * GIB), sizes(none, none, 5 * c - 1, none), (16, 65536, 4)),
        (image(8 * GIB), sizes(none, none, 5 * c, none), (16, 65536, 5)),
        (image(8 * GIB), sizes(none, 512 * KIB, 8 * c, none), (128, 4096, 8)),

        // cache-size alone: above need + 4 clusters, the rest goes to the refcount cache.
        (image(8 * GIB), sizes(MIB + 4 * c, none, none, none), (16, 65536, 4)),
        (image(8 * GIB), sizes(MIB + 4 * c - 1, none, none, none), (255, 4096, 4)),
        (image(8 * GIB), sizes(MIB + 5 * c, none, none, none), (16, 65536, 5)),
        (image(8 * GIB), sizes(4 * MIB, none, none, none), (16, 65536, 48)),
        (image(8 * GIB), sizes(MIB, none, none, none), (192, 4096, 4)),
        (image(8 * GIB), sizes(4 * c, none, none, none), (2, 4096, 4)),
        (image(8 * GIB), sizes(0, none, none, none), (2, 4096, 4)),
        (image(0), sizes(0, none, none, none), (2, 65536, 4)),
        // 32 MiB is only a default.
        (image(TIB), sizes(64 * MIB, none, none, none), (16320, 4096, 4)),

        // cache-size with one of the others.
        (image(8 * GIB), sizes(4 * MIB, MIB, none, none), (16, 65536, 48)),
        // 1 MiB is needed, 3 MiB are left.
        (image(8 * GIB), sizes(4 * MIB, 2 * MIB, none, none), (16, 65536, 48)),
        (image(8 * GIB), sizes(MIB, MIB, none, none), (16, 65536, 4)),
        (image(8 * GIB), sizes(MIB, 0, none, none), (2, 4096, 16)),
        // 3 MiB although 1 MiB is needed.
        (image(8 * GIB), sizes(4 * MIB, none, MIB, none), (48, 65536, 16)),
        (image(8 * GIB), sizes(MIB, none, 512 * KIB, none), (128, 4096, 8)),
        (image(8 * GIB), sizes(MIB, none, MIB, none), (2, 4096, 16)),
        (image(8 * GIB), sizes(MIB, none, 0, none), (16, 65536, 4)),

        // l2-cache-entry-size.
        (image(8 * GIB), sizes(none, none, none, 4096), (256, 4096, 4)),
        (image(8 * GIB), sizes(none, none, none, 512), (2048, 512, 4)),
        (image(8 * GIB), sizes(none, 256 * KIB, none, 65536), (4, 65536, 4)),
        (image(8 * GIB), sizes(none, 256 * KIB, none, 512), (512, 512, 4)),
        (geometry(8 * GIB, 512, 8), sizes(none, MIB, none, 512), (2048, 512, 4)),

        // The largest caches that are allowed.
        (geometry(u64::MAX, 512, 16), sizes(none, TIB - 1, none, none), (0x7fff_ffff, 512, 4)),
        (geometry(8 * GIB, 512, 8), sizes(none, none, TIB - 1, none), (65536, 512, 0x7fff_ffff)),
    ]
}

#[test]
fn sizes_match_hand_computed_cases() {
    for (geometry, options, expected) in hand_computed_cases() {
        let resolved = options.resolve(&geometry);
        let resolved = resolved
            .unwrap_or_else(|error| panic!("{options:?} {geometry:?}: {}", error.message()));
        assert_eq!(shape(&resolved), expected, "{options:?} {geometry:?}");
        assert_eq!(
            resolved.refcount_table_size, geometry.cluster_size as usize,
            "{options:?} {geometry:?}"
        );
        assert_eq!(
            resolved.clean_interval,
            Duration::from_secs(DEFAULT_CACHE_CLEAN_INTERVAL)
        );
    }
}

/// Geometry, options, error message. QEMU 10.0.2 rejects the same options with other messages.
#[rustfmt::skip]
fn rejected_cases() -> Vec<(Geometry, Options, &'static str)> {
    let none = None;
    let interval = |seconds| Options { cache_clean_interval: Some(seconds), ..Options::default() };
    vec![
        (image(GIB), sizes(3, 2, 1, none),
         "'cache-size' (3 bytes), 'l2-cache-size' (2 bytes) and 'refcount-cache-size' (1 bytes) \
          are all set: allowed are any two of them"),
        (image(GIB), sizes(0, 0, 0, none),
         "'cache-size' (0 bytes), 'l2-cache-size' (0 bytes) and 'refcount-cache-size' (0 bytes) \
          are all set: allowed are any two of them"),
        // The setting counts, although the image needs only 128 KiB.
        (image(GIB), sizes(MIB, MIB + 1, none, none),
         "'l2-cache-size' is 1048577 bytes: allowed are 0 to 1048576 bytes, the 'cache-size' of \
          both caches"),
        (image(GIB), sizes(0, none, 1, none),
         "'refcount-cache-size' is 1 bytes: allowed are 0 to 0 bytes, the 'cache-size' of both \
          caches"),
        (image(GIB), sizes(none, none, none, 3000),
         "'l2-cache-entry-size' is 3000 bytes: allowed is a power of two from 512 to the cluster \
          size, 65536 bytes"),
        (image(GIB), sizes(none, none, none, 0),
         "'l2-cache-entry-size' is 0 bytes: allowed is a power of two from 512 to the cluster \
          size, 65536 bytes"),
        (image(GIB), sizes(none, none, none, 256),
         "'l2-cache-entry-size' is 256 bytes: allowed is a power of two from 512 to the cluster \
          size, 65536 bytes"),
        (geometry(GIB, 512, 8), sizes(none, none, none, 1024),
         "'l2-cache-entry-size' is 1024 bytes: allowed is a power of two from 512 to the cluster \
          size, 512 bytes"),
        // 2^32 + 4096: must not be taken for 4096.
        (image(GIB), sizes(none, none, none, (1 << 32) + 4096),
         "'l2-cache-entry-size' is 4294971392 bytes: allowed is a power of two from 512 to the \
          cluster size, 65536 bytes"),
        (geometry(u64::MAX, 512, 16), sizes(none, TIB, none, none),
         "'l2-cache-size' is 1099511627776 bytes: allowed are 0 to 1099511627775 bytes \
          (2147483647 L2 tables of 512 bytes)"),
        // The need of 2^51 bytes is 2^31 tables of one cluster each. A smaller cache gets tables of
        // 4 KiB.
        (geometry(u64::MAX, 65536, 8), sizes(none, u64::MAX, none, none),
         "'l2-cache-size' is 18446744073709551615 bytes: allowed are 0 to 8796093022207 bytes \
          (2147483647 L2 tables of 4096 bytes)"),
        (geometry(u64::MAX, 65536, 8), sizes(none, u64::MAX, none, 65536),
         "'l2-cache-size' is 18446744073709551615 bytes: allowed are 0 to 140737488355327 bytes \
          (2147483647 L2 tables of 65536 bytes)"),
        (image(GIB), sizes(none, none, 1 << 47, none),
         "'refcount-cache-size' is 140737488355328 bytes: allowed are 0 to 140737488355327 bytes \
          (2147483647 refcount blocks of 65536 bytes)"),
        // 1 GiB needs 131072 bytes of L2 tables. The rest of cache-size is too large.
        (image(GIB), sizes((1 << 47) + 131_072, none, none, none),
         "'cache-size' is 140737488486400 bytes: allowed are 0 to 140737488486399 bytes \
          (2147483647 refcount blocks of 65536 bytes)"),
        (image(GIB), sizes(1 << 48, 4096, none, none),
         "'cache-size' is 281474976710656 bytes: allowed are 0 to 140737488359423 bytes \
          (2147483647 refcount blocks of 65536 bytes)"),
        // Beside 1000 bytes of refcount cache; beside 4 blocks of 512 bytes.
        (geometry(GIB, 512, 8), sizes(TIB + 1000, none, 1000, none),
         "'cache-size' is 1099511628776 bytes: allowed are 0 to 1099511628775 bytes (2147483647 \
          L2 tables of 512 bytes)"),
        (geometry(u64::MAX, 512, 16), sizes(TIB + 2048, none, none, none),
         "'cache-size' is 1099511629824 bytes: allowed are 0 to 1099511629823 bytes (2147483647 \
          L2 tables of 512 bytes)"),
        (image(GIB), interval(1 << 32),
         "'cache-clean-interval' is 4294967296 seconds: allowed are 0 (never) to 4294967295 \
          seconds"),
        (image(GIB), interval(u64::MAX),
         "'cache-clean-interval' is 18446744073709551615 seconds: allowed are 0 (never) to \
          4294967295 seconds"),
        // Geometry.
        (geometry(GIB, 0, 8), Options::default(),
         "the image's cluster size is 0 bytes: allowed is a power of two from 512 to 2097152 \
          bytes"),
        (geometry(GIB, 256, 8), Options::default(),
         "the image's cluster size is 256 bytes: allowed is a power of two from 512 to 2097152 \
          bytes"),
        (geometry(GIB, 65535, 8), Options::default(),
         "the image's cluster size is 65535 bytes: allowed is a power of two from 512 to 2097152 \
          bytes"),
        (geometry(GIB, 4 << 20, 8), Options::default(),
         "the image's cluster size is 4194304 bytes: allowed is a power of two from 512 to \
          2097152 bytes"),
        (geometry(GIB, 65536, 0), Options::default(),
         "the image's L2 entry size is 0 bytes: allowed are 8 and, with extended L2 entries, 16 \
          bytes"),
        (geometry(GIB, 65536, 32), Options::default(),
         "the image's L2 entry size is 32 bytes: allowed are 8 and, with extended L2 entries, 16 \
          bytes"),
    ]
}

#[test]
fn error_messages_name_option_value_and_range() {
    for (geometry, options, message) in rejected_cases() {
        let error = options.resolve(&geometry).expect_err(message);
        assert_eq!(error.message(), message);
        assert_eq!(error.errno(), Errno::INVAL, "{message}");
    }
}

/// Zero turns cleaning off on every system. Any other interval needs a kernel to which memory can
/// be released.
#[test]
fn clean_interval_is_in_seconds_up_to_uint_max() {
    for seconds in [0, 1, 600, 86_400, MAX_CACHE_CLEAN_INTERVAL] {
        let options = Options {
            cache_clean_interval: Some(seconds),
            ..Options::default()
        };
        let resolved = options.resolve(&image(GIB));
        if seconds == 0 || cfg!(target_os = "linux") {
            assert_eq!(
                resolved.map(|resolved| resolved.clean_interval),
                Ok(Duration::from_secs(seconds))
            );
        } else {
            assert_eq!(resolved.map_err(|error| error.errno()), Err(Errno::NOTSUP));
        }
    }
}

#[cfg(target_os = "linux")]
#[test]
fn defaults_are_32_mib_and_600_seconds() {
    assert_eq!(DEFAULT_L2_CACHE_MAX, 33_554_432);
    let resolved = Options::default()
        .resolve(&image(GIB))
        .expect("nothing is set");
    assert_eq!(resolved.clean_interval, Duration::from_secs(600));
}

/// Any number, often one near the limit of a rule.
fn bytes() -> impl Strategy<Value = u64> {
    let near = |power: u32, away: i64| (1_u64 << power).saturating_add_signed(away);
    prop_oneof![
        2 => any::<u64>(),
        1 => Just(u64::MAX),
        1 => 0_u64..4096,
        8 => (9_u32..64, -2_i64..3).prop_map(move |(power, away)| near(power, away)),
        4 => (1_u64..300, 9_u32..22).prop_map(|(clusters, bits)| clusters << bits),
    ]
}

/// Numbers from 2^40, each magnitude equally often.
fn huge() -> impl Strategy<Value = u64> {
    (40_u32..64, any::<u64>()).prop_map(|(power, low)| (1 << power) | (low >> (64 - power)))
}

fn maybe(strategy: impl Strategy<Value = u64>) -> impl Strategy<Value = Option<u64>> {
    proptest::option::of(strategy)
}

fn any_options() -> impl Strategy<Value = Options> {
    let entry = prop_oneof![3 => (9_u32..22).prop_map(|bits| 1 << bits), 1 => bytes()];
    let interval = prop_oneof![3 => 0..=MAX_CACHE_CLEAN_INTERVAL, 1 => bytes()];
    let all = (
        maybe(bytes()),
        maybe(bytes()),
        maybe(bytes()),
        maybe(entry),
        maybe(interval),
    );
    all.prop_map(|(cache, l2, refcount, entry, interval)| Options {
        cache_clean_interval: interval,
        ..sizes(cache, l2, refcount, entry)
    })
}

fn valid_geometry() -> impl Strategy<Value = Geometry> {
    (bytes(), 9_u32..22, prop_oneof![Just(8), Just(16)])
        .prop_map(|(size, bits, entry)| geometry(size, 1 << bits, entry))
}

fn any_geometry() -> impl Strategy<Value = Geometry> {
    prop_oneof![
        4 => valid_geometry(),
        1 => (bytes(), any::<u32>(), any::<u32>())
            .prop_map(|(size, cluster, entry)| geometry(size, cluster, entry)),
    ]
}

/// Bytes of the image's L2 tables, computed in 128 bits: independent of how `resolve` avoids
/// overflow in 64 bits.
fn need(geometry: &Geometry) -> u128 {
    let cluster = u128::from(geometry.cluster_size);
    let entries = u128::from(geometry.virtual_size).div_ceil(cluster);
    let tables = (entries * u128::from(geometry.l2_entry_size)).div_ceil(cluster);
    tables * cluster
}

fn l2_bytes(resolved: &Resolved) -> u128 {
    resolved.l2_tables as u128 * resolved.l2_table_size as u128
}

fn refcount_bytes(resolved: &Resolved) -> u128 {
    resolved.refcount_tables as u128 * resolved.refcount_table_size as u128
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 4096,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    /// `resolve` never panics. Its result is valid for the caches, or its message fits the 256
    /// bytes of a C caller.
    #[test]
    fn any_input_resolves_or_returns_short_message(
        options in any_options(), geometry in any_geometry(),
    ) {
        match options.resolve(&geometry) {
            Ok(resolved) => {
                let most = MAX_TABLES as usize;
                prop_assert!((2..=most).contains(&resolved.l2_tables));
                prop_assert!((4..=most).contains(&resolved.refcount_tables));
                prop_assert!(resolved.l2_table_size.is_power_of_two());
                let cluster = geometry.cluster_size as usize;
                prop_assert!((512..=cluster).contains(&resolved.l2_table_size));
                prop_assert_eq!(resolved.refcount_table_size, cluster);
                prop_assert!(resolved.clean_interval.as_secs() <= MAX_CACHE_CLEAN_INTERVAL);
            }
            Err(error) => {
                prop_assert!(error.message().len() < 256, "{}", error.message());
                prop_assert!(error.message().contains("allowed"), "{}", error.message());
            }
        }
    }

    /// No cache exceeds its own option, and both together do not exceed `cache-size`, except for
    /// the minimum sizes.
    #[test]
    fn cache_sizes_stay_within_configured_limits(
        options in any_options(), geometry in valid_geometry(),
    ) {
        let Ok(resolved) = options.resolve(&geometry) else { return Ok(()) };
        let (l2, refcount) = (l2_bytes(&resolved), refcount_bytes(&resolved));
        let (l2_least, refcount_least) = (resolved.l2_tables == 2, resolved.refcount_tables == 4);
        if let Some(setting) = options.l2_cache_size {
            prop_assert!(l2 <= u128::from(setting) || l2_least);
            prop_assert!(l2 <= need(&geometry) || l2_least);
        }
        if let Some(setting) = options.refcount_cache_size {
            prop_assert!(refcount <= u128::from(setting) || refcount_least);
        }
        match options.cache_size {
            Some(setting) => {
                prop_assert!(l2 + refcount <= u128::from(setting) || l2_least || refcount_least);
                prop_assert!(l2 <= u128::from(setting) || l2_least);
                prop_assert!(refcount <= u128::from(setting) || refcount_least);
                // Rounding loses less than one table and one block.
                let lost = u128::from(setting).saturating_sub(l2 + refcount);
                let two = resolved.l2_table_size + resolved.refcount_table_size;
                prop_assert!(lost < two as u128);
            }
            None if options.l2_cache_size.is_none() => {
                prop_assert!(l2 <= u128::from(DEFAULT_L2_CACHE_MAX));
                prop_assert!(l2 <= need(&geometry) || l2_least);
            }
            None => {}
        }
    }

    /// The L2 table size is the configured one, or depends on whether the cache covers the disk.
    #[test]
    fn l2_tables_are_small_iff_cache_does_not_cover_disk(
        options in any_options(), geometry in valid_geometry(),
    ) {
        let Ok(resolved) = options.resolve(&geometry) else { return Ok(()) };
        let cluster = geometry.cluster_size as usize;
        match options.l2_cache_entry_size {
            Some(size) => prop_assert_eq!(resolved.l2_table_size as u64, size),
            None if l2_bytes(&resolved) < need(&geometry) => {
                prop_assert_eq!(resolved.l2_table_size, cluster.min(4096));
            }
            // The minimum of two small tables can cover a tiny disk.
            None if resolved.l2_tables == 2 => {
                prop_assert!([cluster, cluster.min(4096)].contains(&resolved.l2_table_size));
            }
            None => prop_assert_eq!(resolved.l2_table_size, cluster),
        }
    }

    /// If there are too many tables, the range in the error message is exact: its upper end is
    /// accepted, and one more is not, unless the cache then covers the disk and gets larger tables.
    #[test]
    fn allowed_range_in_error_message_is_exact(
        geometry in valid_geometry(), entry in maybe((9_u32..22).prop_map(|bits| 1 << bits)),
        which in 0..4, size in huge(),
        refcount in 0_u64..(1 << 40),
    ) {
        let with = |size: u64| match which {
            0 => sizes(None, size, None, entry),
            1 => sizes(None, None, size, entry),
            2 => sizes(size, None, None, entry),
            _ => sizes(size, None, refcount, entry),
        };
        let Err(error) = with(size).resolve(&geometry) else { return Ok(()) };
        let Some(most) = most_allowed(error.message()) else { return Ok(()) };
        let l2_refused = error.message().contains("L2 tables");
        prop_assert!(most < size, "{}", error.message());
        match with(most).resolve(&geometry) {
            Ok(_) => {}
            // One number cannot state two ranges: a smaller `cache-size` may mean small L2 tables.
            Err(next) if which == 2 && !l2_refused => {
                prop_assert!(next.message().contains("L2 tables"), "{}", next.message());
            }
            Err(next) => prop_assert!(false, "{}, then {}", error.message(), next.message()),
        }
        if entry.is_some() || !l2_refused {
            prop_assert!(with(most + 1).resolve(&geometry).is_err(), "{}", error.message());
        }
    }
}

/// The upper end of the range in the error message for too many tables.
fn most_allowed(message: &str) -> Option<u64> {
    let (_, range) = message.split_once(" allowed are 0 to ")?;
    let (most, tables) = range.split_once(" bytes (2147483647 ")?;
    (tables.starts_with("L2 tables of ") || tables.starts_with("refcount blocks of "))
        .then(|| most.parse().ok())?
}
