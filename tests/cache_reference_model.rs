// SPDX-License-Identifier: MIT OR Apache-2.0
//! Random sequences of operations on real caches and on a reference model. Every result, the order
//! of all storage calls, and every byte are compared.

mod reference_model;
mod support;

use std::collections::BTreeMap;

use proptest::prelude::*;
use qcow2cache::error::Errno;
use reference_model::GetMode;
use reference_model::harness::{Harness, Op, Shape};

/// How many tables each cache's region of the image has: more than any cache has slots.
const REGION_TABLES: u64 = 12;

fn shape() -> impl Strategy<Value = Shape> {
    let cache = (1_usize..=8, 9_u32..=12, 0_usize..=2)
        .prop_map(|(tables, shift, reserved)| (tables, 1 << shift, reserved.min(tables)));
    let max_iov = prop_oneof![Just(1), Just(2), Just(1024)];
    (
        proptest::collection::vec(cache, 2..=3),
        max_iov,
        any::<bool>(),
    )
        .prop_map(|(caches, max_iov, one_device)| Shape {
            caches,
            max_iov,
            one_device,
        })
}

fn get_mode() -> impl Strategy<Value = GetMode> {
    prop_oneof![
        4 => Just(GetMode::Locked),
        1 => Just(GetMode::Empty),
        3 => Just(GetMode::Unlocked),
        1 => Just(GetMode::Try),
    ]
}

fn op(caches: usize) -> impl Strategy<Value = Op> {
    let c = 0..caches;
    let table = 0..REGION_TABLES;
    let pin = 0..64_usize;
    let at = prop_oneof![8 => (0_usize..512).prop_map(|at| at / 8 * 8), 1 => 0_usize..8192];
    prop_oneof![
        14 => (c.clone(), table.clone(), get_mode()).prop_map(|(c, t, mode)| Op::Get(c, t, mode)),
        1 => (c.clone(), prop_oneof![Just(0), 0_u64..1 << 17]).prop_map(|(c, o)| Op::GetRaw(c, o)),
        14 => pin.clone().prop_map(Op::Put),
        8 => (pin.clone(), at.clone(), any::<u64>()).prop_map(|(p, at, v)| Op::Change(p, at, v)),
        1 => (pin.clone(), at.clone(), any::<u64>()).prop_map(|(p, at, v)| Op::Store(p, at, v)),
        1 => pin.prop_map(Op::MarkDirty),
        3 => (c.clone(), table.clone(), at, 0_usize..600)
            .prop_map(|(c, t, at, n)| Op::Read(c, t, at, n / 8 * 8 + n % 8 / 7)),
        2 => c.clone().prop_map(Op::Write),
        2 => c.clone().prop_map(Op::Flush),
        1 => c.clone().prop_map(Op::Empty),
        3 => (c.clone(), c.clone()).prop_map(|(a, b)| Op::SetDependency(a, b)),
        2 => c.clone().prop_map(Op::DependsOnFlush),
        2 => (c.clone(), table.clone()).prop_map(|(c, t)| Op::DiscardOffset(c, t)),
        1 => (c.clone(), 0_u64..20_000, 0_u64..20_000)
            .prop_map(|(c, a, n)| Op::DiscardRange(c, a, n)),
        1 => (c.clone(), table.clone()).prop_map(|(c, t)| Op::DiscardTable(c, t)),
        1 => (c.clone(), table.clone(), table).prop_map(|(c, a, b)| Op::DiscardStale(c, a, b)),
        1 => c.clone().prop_map(Op::DiscardAll),
        1 => c.clone().prop_map(Op::GiveUp),
        1 => c.clone().prop_map(Op::Replace),
        2 => c.prop_map(Op::Clean),
    ]
}

fn scenario() -> impl Strategy<Value = (Shape, Vec<Op>)> {
    shape().prop_flat_map(|shape| {
        let ops = proptest::collection::vec(op(shape.caches.len()), 1..120);
        (Just(shape), ops)
    })
}

fn faults() -> impl Strategy<Value = BTreeMap<usize, Errno>> {
    let errno = prop_oneof![Just(Errno::IO), Just(Errno::NOSPC)];
    proptest::collection::btree_map(0_usize..80, errno, 0..40)
}

fn config() -> ProptestConfig {
    ProptestConfig {
        cases: 400,
        failure_persistence: None,
        ..ProptestConfig::default()
    }
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn cache_matches_reference_model((shape, ops) in scenario()) {
        let mut harness = Harness::new(&shape, REGION_TABLES, &BTreeMap::new());
        for op in &ops {
            // `apply` has compared the result. Errors that the caller causes are expected.
            let _ = harness.apply(op);
        }
        harness.finish();
    }

    #[test]
    fn cache_with_storage_faults_matches_reference_model(
        (shape, ops) in scenario(), faults in faults(),
    ) {
        let mut harness = Harness::new(&shape, REGION_TABLES, &faults);
        for op in &ops {
            let _ = harness.apply(op);
        }
        harness.finish();
    }
}
