#!/usr/bin/env python3
# SPDX-License-Identifier: MIT OR Apache-2.0
"""What meson runs to get libqcow2cache.a: cargo, or a copy of an archive that exists already.

Meson wants its output under a name of its own and a depfile that speaks of that name; cargo puts
the archive where the profile says.
"""

import argparse
import os
import pathlib
import re
import shutil
import subprocess
import sys

CRATE = "libqcow2cache"
# ThreadSanitizer changes the ABI of std, which comes without it
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
    """Run cargo; returns the directory with the archive."""
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
        # with a target named, build scripts and proc macros stay as they are
        target = host_target(cargo, environment)
        command.append("--target=" + target)
        directory = directory / target
    subprocess.run([*cargo, *command, *options.arguments], env=environment, check=True)
    return directory / ("debug" if options.profile == "dev" else options.profile)


def write_depfile(options, cargo_depfile):
    """Cargo's dependencies, as those of meson's output."""
    text = cargo_depfile.read_text()
    dependencies = [line.split(": ", 1)[1] for line in text.splitlines() if ": " in line]
    extra = [str(options.source / name) for name in ("Cargo.toml", "Cargo.lock")]
    extra = [name.replace(" ", "\\ ") for name in extra if os.path.exists(name)]
    options.depfile.write_text("%s: %s\n" % (options.output, " ".join(dependencies + extra)))


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--archive", default="")
    parser.add_argument("--cargo", default="cargo")
    parser.add_argument("--profile", choices=["dev", "release"], default="release")
    parser.add_argument("--sanitizer", choices=["none", *RUSTFLAGS], default="none")
    parser.add_argument("--source", type=pathlib.Path, required=True)
    parser.add_argument("--target-dir", type=pathlib.Path, required=True)
    parser.add_argument("--output", type=pathlib.Path, required=True)
    parser.add_argument("--depfile", type=pathlib.Path, required=True)
    parser.add_argument("arguments", nargs="*")
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
