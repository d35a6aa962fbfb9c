#!/usr/bin/env python3
# SPDX-License-Identifier: MIT OR Apache-2.0
"""Every place has the version of Cargo.toml, and the ABI version of meson.build.

test-library.c compares q2c_version() and q2c_abi_version() with the header.

usage: check-version.py SOURCE_ROOT MESON_VERSION LIBRARY ABI_VERSION SOVERSION
"""

import os
import pathlib
import re
import subprocess
import sys


def main(root, meson_version, library, abi_version, soversion):
    root = pathlib.Path(root)
    header = (root / "include/qcow2cache.h").read_text()
    dl_header = (root / "include/qcow2cache-dl.h").read_text()
    manifest = (root / "Cargo.toml").read_text()
    manifest = re.search(r'^version = "(.*)"', manifest, flags=re.M).group(1)
    lock = (root / "Cargo.lock").read_text()
    dynamic = subprocess.run(
        ["readelf", "-dW", library], check=True, stdout=subprocess.PIPE, text=True
    ).stdout
    versions = {
        "Cargo.lock": re.search(r'name = "qcow2cache"\nversion = "(.*)"', lock).group(1),
        "meson": meson_version,
        "Q2C_VERSION": re.search(r'^#define Q2C_VERSION "(.*)"', header, flags=re.M).group(1),
        "the name of the library": re.search(r"\.so\.(.*)$", os.path.realpath(library)).group(1),
    }
    sonames = {
        "Q2C_DL_LIBRARY": re.search(
            r'^#define Q2C_DL_LIBRARY ".*\.so\.(\d+)"', dl_header, flags=re.M
        ).group(1),
        "SONAME": re.search(r"SONAME.*\.so\.(\d+)\]", dynamic).group(1),
        "the version script": re.search(
            r"^QCOW2CACHE_(\d+)", (root / "src/qcow2cache.map").read_text(), flags=re.M
        ).group(1),
    }
    abi = re.search(r"^#define Q2C_ABI_VERSION (\d+)", header, flags=re.M).group(1)
    wrong = [(name, value, manifest) for name, value in versions.items() if value != manifest]
    wrong += [(name, value, soversion) for name, value in sonames.items() if value != soversion]
    if abi != abi_version:
        wrong.append(("Q2C_ABI_VERSION", abi, abi_version))
    for name, value, expected in wrong:
        print("%s says %s, not %s" % (name, value, expected))
    print("version %s, ABI %s, SONAME %s" % (manifest, abi_version, soversion))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
