#!/usr/bin/env python3
# SPDX-License-Identifier: MIT OR Apache-2.0
"""Fails if an exported function is not called by any C test.

usage: check-coverage.py SYMBOLS C_TESTS [PREFIX_TESTED_ELSEWHERE...]
"""

import pathlib
import re
import sys


def main(symbols, tests, *elsewhere):
    called = set()
    for source in pathlib.Path(tests).rglob("test-*.c"):
        called.update(re.findall(r"\b(q2c_\w+)\(", source.read_text()))
    names = pathlib.Path(symbols).read_text().split()
    missing = [name for name in names if name not in called and not name.startswith(elsewhere)]
    for name in missing:
        print("no C test calls " + name)
    print("%d functions" % len(names))
    return 1 if missing else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
