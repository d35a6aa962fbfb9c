// SPDX-License-Identifier: MIT OR Apache-2.0
//! Links the release `libqcow2cache.so`, found in `QCOW2CACHE_LIB_DIR` or, if that is not set, in
//! `../target/release`.

use std::path::{Path, PathBuf};
use std::{env, fs, os::unix::fs::symlink};

/// The plain name, which the linker looks for, and the SONAME, which the program looks for.
const NAMES: [&str; 2] = ["libqcow2cache.so", "libqcow2cache.so.0"];

fn main() {
    println!("cargo::rerun-if-env-changed=QCOW2CACHE_LIB_DIR");
    let manifest = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets it"));
    let given = env::var_os("QCOW2CACHE_LIB_DIR").map(PathBuf::from);
    let lib_dir = given.unwrap_or_else(|| manifest.join("../target/release"));
    let library = NAMES
        .iter()
        .map(|name| lib_dir.join(name))
        .find(|path| path.exists())
        .unwrap_or_else(|| {
            panic!(
                "no libqcow2cache.so in {}: run 'cargo build --release' in the library's directory \
                 first, or set QCOW2CACHE_LIB_DIR",
                lib_dir.display()
            )
        });
    let library = fs::canonicalize(library).expect("it exists");
    println!("cargo::rerun-if-changed={}", library.display());
    // Both names in one directory that belongs to this build.
    let names = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets it")).join("lib");
    fs::create_dir_all(&names).expect("OUT_DIR is writable");
    for name in NAMES {
        link(&library, &names.join(name));
    }
    println!("cargo::rustc-link-search=native={}", names.display());
    println!("cargo::rustc-link-lib=dylib=qcow2cache");
    println!("cargo::rustc-link-arg-bins=-Wl,-rpath,{}", names.display());
}

fn link(target: &Path, name: &Path) {
    if fs::read_link(name).is_ok_and(|old| old == target) {
        return;
    }
    let _ = fs::remove_file(name);
    symlink(target, name).expect("OUT_DIR is writable");
}
