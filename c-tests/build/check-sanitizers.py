#!/usr/bin/env python3
# SPDX-License-Identifier: MIT OR Apache-2.0
"""Prints whether each sanitizer sees the C side and the Rust side.

Fails if a sanitizer that was asked for is missing.

usage: check-sanitizers.py ARCHIVE LIBRARY C_SANITIZER RUST_SANITIZER
"""

import subprocess
import sys

# calls in instrumented code
CALLS = {"address": "__asan_report_", "thread": "__tsan_read"}
RUNTIME = {"address": "libasan", "thread": "libtsan"}


def run(*command):
    return subprocess.run(
        command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ).stdout


def main(archive, library, c_sanitizer, rust_sanitizer):
    ok = True
    symbols = run("nm", "--undefined-only", archive)
    needed = run("readelf", "-dW", library)
    for name, calls in CALLS.items():
        rust = calls in symbols
        # the library has no C code of its own; the linker adds the runtime
        c_side = RUNTIME[name] in needed
        if rust or c_side or name in (c_sanitizer, rust_sanitizer):
            sides = ["yes" if side else "no" for side in (c_side, rust)]
            print("%s sanitizer: C side %s, Rust side %s" % (name, *sides))
        if (name in c_sanitizer.split(",")) != c_side:
            print("the C side is not as -Db_sanitize=%s says" % c_sanitizer)
            ok = False
        if rust_sanitizer == name and not rust:
            print("the Rust side is not as -Dsanitize_rust=%s says" % rust_sanitizer)
            ok = False
        if rust and not c_side:
            print("the Rust side needs the runtime: give -Db_sanitize=%s" % name)
            ok = False
    return 0 if ok else 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
