// SPDX-License-Identifier: MIT OR Apache-2.0
//! Concurrent transitions of the state. After a detach no cleaner is left, whichever other
//! transition ran meanwhile. A change of options, an invalidation and a close always return.
#![cfg(shuttle)]

mod model_checking;

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use model_checking::host::{Kind, ModelHost};
use model_checking::storage::ModelStorage;
use model_checking::{INTERVAL, join, sample, spawn};
use qcow2cache::error::Errno;
use qcow2cache::host::Context;
use qcow2cache::options::{Geometry, Options};
use qcow2cache::state::{Config, State};

const KINDS: [Kind; 4] = [Kind::Threads, Kind::Coroutines, Kind::OwnLock, Kind::Tasks];

struct Model {
    host: Arc<ModelHost>,
    state: State,
}

impl Model {
    fn open(kind: Kind) -> Arc<Self> {
        let host = ModelHost::new(kind, false);
        let state = State::open(Config {
            host: host.clone(),
            l2_storage: Arc::new(ModelStorage::default()),
            refcount_storage: Arc::new(ModelStorage::default()),
            l2_kind: 1,
            refcount_kind: 2,
            geometry: Geometry {
                virtual_size: 1 << 20,
                cluster_size: 65536,
                l2_entry_size: 8,
            },
            options: Options::default(),
            clean_interval_ns: INTERVAL,
            context: Context::Default,
        });
        Arc::new(Self {
            host,
            state: state.unwrap(),
        })
    }

    fn change_options(&self, locked: bool) {
        let prepare = || {
            self.state
                .prepare(&Options::default(), None, INTERVAL)
                .unwrap()
        };
        if locked {
            self.state.cleaner().lock().unwrap();
            let update = prepare();
            assert!(self.state.commit(update, true).is_ok());
            self.state.cleaner().unlock().unwrap();
        } else {
            let update = prepare();
            assert!(self.state.commit(update, false).is_ok());
        }
    }

    /// Called when all transitions have returned and the state is detached: only ending instances
    /// of the cleaner may be left.
    fn expect_none_running(&self) {
        assert!(
            !self.state.cleaner().is_running(),
            "a cleaner without a context"
        );
    }

    fn close(&self) {
        assert_eq!(self.state.close(), Ok(()));
        self.host.freed.free();
        self.host.join();
    }
}

/// Runs a detach concurrently with `other`.
fn detach_during(iterations: usize, other: impl Fn(&Model) + Copy + Send + Sync + 'static) {
    for kind in KINDS {
        sample(iterations, move || {
            let model = Model::open(kind);
            let detach = spawn(&model, |m| m.state.detach());
            let other = spawn(&model, move |m| other(m));
            join([detach, other]);
            model.expect_none_running();
            model.close();
        });
    }
}

#[test]
fn detach_during_options_change_leaves_no_cleaner() {
    detach_during(200, |m| m.change_options(false));
    detach_during(200, |m| m.change_options(true));
}

#[test]
fn detach_during_invalidate_leaves_no_cleaner() {
    detach_during(200, |m| m.state.invalidate().unwrap());
}

#[test]
fn last_of_attach_and_detach_takes_effect() {
    for kind in KINDS {
        sample(200, move || {
            let model = Model::open(kind);
            model.state.detach();
            let attach = spawn(&model, |m| m.state.attach(Context::Default).unwrap());
            let detach = spawn(&model, |m| m.state.detach());
            join([attach, detach]);
            // Whether the state is attached is told by another attach.
            match model.state.attach(Context::Default) {
                Err(Errno::ALREADY) => {}
                Ok(()) => assert!(model.state.cleaner().is_running()),
                Err(errno) => panic!("{errno}"),
            }
            assert!(
                model.state.cleaner().is_running(),
                "attached without a cleaner"
            );
            model.state.detach();
            model.expect_none_running();
            model.close();
        });
    }
}

#[test]
fn concurrent_options_changes_leave_one_cleaner() {
    for kind in KINDS {
        sample(200, move || {
            let model = Model::open(kind);
            let changes =
                [true, false].map(|locked| spawn(&model, move |m| m.change_options(locked)));
            let clock = spawn(&model, |m| m.host.advance(INTERVAL));
            join(changes);
            join([clock]);
            assert!(model.state.cleaner().is_running(), "the cleaner was lost");
            assert!(model.state.cleaner().stats().starts >= 2);
            model.close();
        });
    }
}

#[test]
fn options_change_during_invalidate_and_move_keeps_cleaner() {
    for kind in KINDS {
        sample(200, move || {
            let model = Model::open(kind);
            let change = spawn(&model, |m| m.change_options(true));
            let invalidate = spawn(&model, |m| m.state.invalidate().unwrap());
            let moving = spawn(&model, |m| {
                m.state.detach();
                m.state.attach(Context::Default).unwrap();
            });
            join([change, invalidate, moving]);
            assert!(model.state.cleaner().is_running(), "the cleaner was lost");
            assert_eq!(model.host.refuse.load(Relaxed), false);
            model.close();
        });
    }
}
