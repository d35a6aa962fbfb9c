#!/usr/bin/env python3
# SPDX-License-Identifier: MIT OR Apache-2.0
"""Checks that the code in a text is the code that the tests compile and run.

In the text, a line "<!-- code: NAME -->" stands before a block of C. In the source, the same code
stands between the comments "porting: NAME" and "end".

usage: check-porting.py TEXT SOURCE
"""

import pathlib
import re
import sys


def main(text, source):
    text = pathlib.Path(text).read_text()
    source = pathlib.Path(source).read_text()
    parts = dict(re.findall(r"^/\* porting: (\S+) \*/\n(.*?)^/\* end \*/$", source, re.M | re.S))
    blocks = re.findall(r"^<!-- code: (\S+) -->\n```c\n(.*?)^```$", text, re.M | re.S)
    wrong = ["a block of C without '<!-- code: NAME -->'"] * (
        len(re.findall(r"^```c$", text, re.M)) - len(blocks)
    )
    wrong += ["%s: not in the source" % name for name, _ in blocks if name not in parts]
    wrong += ["%s: not in the text" % name for name in parts if name not in dict(blocks)]
    wrong += ["%s: text and source differ" % n for n, code in blocks if parts.get(n, code) != code]
    for line in wrong:
        print(line)
    print("%d parts of code" % len(blocks))
    return 1 if wrong or not blocks else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
