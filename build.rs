// SPDX-License-Identifier: MIT OR Apache-2.0
//! Generates `include/qcow2cache.h` from `src/ffi`, compiles the header alone as C and as C++, and
//! sets the name of the shared library.

use std::path::{Path, PathBuf};
use std::{env, fs};

const HEADER: &str = "include/qcow2cache.h";

fn main() {
    for input in ["build.rs", "cbindgen.toml", "src/ffi", HEADER] {
        println!("cargo::rerun-if-changed={input}");
    }
    // Builds for the model checkers have no C API.
    if env::var_os("CARGO_CFG_LOOM").is_some() || env::var_os("CARGO_CFG_SHUTTLE").is_some() {
        return;
    }
    name_shared_library();
    let root = PathBuf::from(variable("CARGO_MANIFEST_DIR"));
    write_header(&root);
    compile_header_alone(&root.join("include"));
}

fn variable(name: &str) -> String {
    env::var(name).unwrap_or_else(|error| panic!("cargo sets {name}: {error}"))
}

/// Sets the SONAME. Also keeps the library in memory after `dlclose`: a thread that ran Rust code
/// runs that code's destructors when it ends.
fn name_shared_library() {
    if variable("CARGO_CFG_TARGET_OS") == "linux" {
        println!("cargo::rustc-link-arg-cdylib=-Wl,-soname,libqcow2cache.so.0");
        println!("cargo::rustc-link-arg-cdylib=-Wl,-z,nodelete");
    }
}

fn write_header(root: &Path) {
    let path = root.join(HEADER);
    let new = generate_header(root);
    if fs::read(&path).is_ok_and(|old| old == new) {
        // The file is not written again, so that a read-only checkout builds.
        return;
    }
    let written = path.parent().map_or(Ok(()), fs::create_dir_all);
    if let Err(error) = written.and_then(|()| fs::write(&path, new)) {
        panic!(
            "{HEADER} does not match src/ffi, and cannot be written: {error}. \
             Make it writable, or build from a checkout that is."
        );
    }
}

fn generate_header(root: &Path) -> Vec<u8> {
    let mut config = cbindgen::Config::from_file(root.join("cbindgen.toml"))
        .unwrap_or_else(|error| panic!("cbindgen.toml: {error}"));
    // The version is written down only in Cargo.toml.
    config.after_includes = Some(format!(
        "\n/**\n * Version of this header: \"major.minor.patch\".\n */\n#define Q2C_VERSION \"{}\"",
        variable("CARGO_PKG_VERSION")
    ));
    let bindings = cbindgen::Builder::new()
        .with_config(config)
        .with_src(root.join("src/ffi/mod.rs"))
        .generate()
        .unwrap_or_else(|error| panic!("cbindgen: {error}"));
    let mut header = Vec::new();
    bindings.write(&mut header);
    header
}

/// Checks that the header compiles without another include before it and without a warning. The
/// objects are not used.
fn compile_header_alone(include: &Path) {
    let out = PathBuf::from(variable("OUT_DIR"));
    for (file, standard) in [("header.c", "c11"), ("header.cpp", "c++17")] {
        let source = out.join(file);
        fs::write(&source, "#include \"qcow2cache.h\"\n")
            .unwrap_or_else(|error| panic!("{}: {error}", source.display()));
        let compiled = cc::Build::new()
            .cargo_metadata(false)
            .cpp(standard == "c++17")
            .std(standard)
            .include(include)
            .warnings(true)
            .extra_warnings(true)
            .warnings_into_errors(true)
            .flag("-pedantic")
            .file(&source)
            .try_compile_intermediates();
        if let Err(error) = compiled {
            panic!("{HEADER} cannot be compiled by itself as {standard}: {error}");
        }
    }
}
