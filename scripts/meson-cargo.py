#!/usr/bin/env python3
# SPDX-License-Identifier: MIT OR Apache-2.0
"""Meson runs this to get libqcow2cache.a: from cargo, or from an existing archive.

Meson needs the archive under the name of its own output, and a depfile for that
name. Cargo puts the archive into a directory that depends on the profile.
"""

import argparse
import os
import pathlib
import re
import shutil
import subprocess
import sys

CRATE = "libqcow2cache"
# ThreadSanitizer changes the ABI. The std that comes with the compiler was built without it.
RUSTFLAGS = {
    "address": "-Zsanitizer=address",
    "thread": "-Zsanitizer=thread -Cunsafe-allow-abi-mismatch=sanitizer",
}


def host_target(cargo, environment):
    """The target triple that cargo builds for by itself."""
    version = subprocess.run(
        [*cargo, "-vV"], env=environment, check=True, stdout=subprocess.PIPE, text=True
    )
    return re.search(r"^host: (.*)$", version.stdout, flags=re.M).group(1)


def build(options):
    """Runs cargo. Returns the directory that contains the archive."""
    environment = dict(os.environ)
    cargo = [options.cargo]
    command = [
        "rustc",  # "build" would link the other crate types, too
        "--lib",
        "--crate-type=staticlib",
        "--profile=" + options.profile,
        "--manifest-path=" + str(options.source / "Cargo.toml"),
        "--target-dir=" + str(options.target_dir),
    ]
    directory = options.target_dir
    if options.sanitizer != "none":
        cargo.append("+nightly")
        flags = environment.get("RUSTFLAGS", "") + " " + RUSTFLAGS[options.sanitizer]
        environment["RUSTFLAGS"] = flags.strip()
        # With a named target, build scripts and proc macros are built without the sanitizer.
        target = host_target(cargo, environment)
        command.append("--target=" + target)
        directory = directory / target
    subprocess.run([*cargo, *command, *options.arguments], env=environment, check=True)
    return directory / ("debug" if options.profile == "dev" else options.profile)


def write_depfile(options, cargo_depfile):
    """Writes cargo's dependencies as those of meson's output."""
    text = cargo_depfile.read_text()
    dependencies = [line.split(": ", 1)[1] for line in text.splitlines() if ": " in line]
    extra = [str(options.source / name) for name in ("Cargo.toml", "Cargo.lock")]
    extra = [name.replace(" ", "\\ ") for name in extra if os.path.exists(name)]
    options.depfile.write_text("%s: %s\n" % (options.output, " ".join(dependencies + extra)))


def main():
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="example:\n"
        "  scripts/meson-cargo.py --source . --target-dir build/cargo \\\n"
        "      --output build/libqcow2cache.a --depfile build/libqcow2cache.d",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--archive", default="", help="copy this archive, run no cargo")
    parser.add_argument("--cargo", default="cargo", help="the cargo to run")
    parser.add_argument("--profile", choices=["dev", "release"], default="release")
    parser.add_argument("--sanitizer", choices=["none", *RUSTFLAGS], default="none")
    parser.add_argument("--source", type=pathlib.Path, required=True)
    parser.add_argument("--target-dir", type=pathlib.Path, required=True)
    parser.add_argument("--output", type=pathlib.Path, required=True)
    parser.add_argument("--depfile", type=pathlib.Path, required=True)
    parser.add_argument("arguments", nargs="*", help="more arguments for cargo")
    options = parser.parse_args()
    if options.archive:
        shutil.copyfile(options.archive, options.output)
        options.depfile.write_text("%s: %s\n" % (options.output, os.path.abspath(options.archive)))
        return
    try:
        directory = build(options)
    except subprocess.CalledProcessError as error:
        sys.exit(error.returncode)
    shutil.copyfile(directory / (CRATE + ".a"), options.output)
    write_depfile(options, directory / (CRATE + ".d"))


if __name__ == "__main__":
    main()
