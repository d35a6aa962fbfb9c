#!/usr/bin/env python3
# SPDX-License-Identifier: MIT OR Apache-2.0
"""Checks the includes of the host's files against the table of layers in README.md.

A file is in exactly one layer. It includes headers of its own and of lower layers only, and each of
them is named in the table's column "Uses". No headers include each other in a cycle.

usage: check-layers.py DIRECTORY
"""

import fnmatch
import re
import sys
from pathlib import Path

# | 4 | `coroutine.h` `coroutine.c` | what it does | base, stack, `qcow2cache.h` |
ROW = re.compile(r"\|\s*(\d+)\s*\|([^|]*)\|[^|]*\|([^|]*)\|\s*$")
INCLUDE = re.compile(r'\s*#\s*include\s*"([^"]+)"')
LAYER_COMMENT = re.compile(r"Layer (\d+)\.")


def read_table(text):
    """[(layer, patterns of files, what they use)], as the rows stand."""
    rows = []
    for line in text.splitlines():
        match = ROW.match(line)
        if match:
            uses = {name.strip(" `") for name in match[3].split(",")}
            rows.append((int(match[1]), re.findall(r"`([^`]+)`", match[2]), uses))
    return rows


def find_cycle(includes):
    """A list of files, each of which includes the next and the last the first; or None."""
    done = set()

    def visit(name, path):
        if name in path:
            return path[path.index(name) :] + [name]
        if name in done:
            return None
        for target in includes.get(name, ()):
            cycle = visit(target, path + [name])
            if cycle:
                return cycle
        done.add(name)
        return None

    for name in sorted(includes):
        cycle = visit(name, [])
        if cycle:
            return cycle
    return None


def check(directory):
    """The mistakes, one string each."""
    rows = read_table((directory / "README.md").read_text())
    files = sorted(p.name for p in directory.iterdir() if p.suffix in (".c", ".h"))
    mistakes = []
    layer, uses, includes = {}, {}, {}

    if [row[0] for row in rows] != list(range(1, len(rows) + 1)) or not rows:
        mistakes.append("README.md: the layers are not numbered 1, 2, 3, ...")
    for number, patterns, used in rows:
        for pattern in patterns:
            matching = fnmatch.filter(files, pattern)
            if not matching:
                mistakes.append(f"README.md: layer {number} has no file {pattern}")
            for name in matching:
                if name in layer:
                    mistakes.append(f"README.md: {name} is in layers {layer[name]} and {number}")
                layer[name], uses[name] = number, used

    for name in files:
        text = (directory / name).read_text()
        includes[name] = [m[1] for m in map(INCLUDE.match, text.splitlines()) if m]
        if name not in layer:
            mistakes.append(f"{name}: in no layer of README.md")
            continue
        stated = LAYER_COMMENT.search(text)
        if stated and int(stated[1]) != layer[name]:
            mistakes.append(f"{name}: says layer {stated[1]}, README.md says {layer[name]}")
        for target in includes[name]:
            if layer.get(target, 0) > layer[name]:
                mistakes.append(
                    f"{name} (layer {layer[name]}) includes {target} (layer {layer[target]})"
                )
            elif layer.get(target) != layer[name]:
                used = target if target not in layer else Path(target).stem
                if used not in uses[name]:
                    mistakes.append(f"{name}: README.md does not say that it uses {used}")
    cycle = find_cycle(includes)
    if cycle:
        mistakes.append("cycle: " + " -> ".join(cycle))
    return mistakes


def main():
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    mistakes = check(Path(sys.argv[1]))
    for mistake in mistakes:
        print(f"error: {mistake}")
    return bool(mistakes)


sys.exit(main())
