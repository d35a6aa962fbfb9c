// SPDX-License-Identifier: MIT OR Apache-2.0
//! A cache that the process's limit of address space does not admit. There is only one test in this
//! process, because it sets the limit.

mod support;

use std::sync::Arc;

use qcow2cache::cache::{Cache, CacheOptions};
use qcow2cache::error::Errno;
use qcow2cache::host::threads::ThreadHost;
use support::TestStorage;

fn set_limit(bytes: libc::rlim_t) {
    let limit = libc::rlimit {
        rlim_cur: bytes,
        rlim_max: libc::RLIM_INFINITY,
    };
    // SAFETY: a valid limit.
    assert_eq!(unsafe { libc::setrlimit(libc::RLIMIT_AS, &limit) }, 0);
}

#[test]
fn enomem_names_the_limit_of_address_space() {
    const LIMIT: libc::rlim_t = 8 << 30;
    let create = |tables| {
        let options = CacheOptions {
            tables,
            table_size: 1 << 20,
            kind: 0,
            reserved: 0,
        };
        let host = ThreadHost::shared();
        Cache::new(&options, Arc::new(TestStorage::new(4096)), host)
    };
    set_limit(LIMIT);
    let error = create(16 << 10).err().expect("16 GiB were mapped");
    set_limit(libc::RLIM_INFINITY);
    assert_eq!(error.errno(), Errno::NOMEM);
    assert_eq!(
        error.to_string(),
        "16384 tables of 1048576 bytes cannot be mapped: the process's limit of address space is \
         8589934592 bytes (RLIMIT_AS, ulimit -v)"
    );
    assert!(create(16 << 10).is_ok(), "the limit was lifted");
}
