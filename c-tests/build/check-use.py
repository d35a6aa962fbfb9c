#!/usr/bin/env python3
# SPDX-License-Identifier: MIT OR Apache-2.0
"""A program of another project uses the library as a meson subproject, or as it was installed.

usage: check-use.py subproject|installed|installed-archive SOURCE_ROOT BUILD_ROOT ARCHIVE LIBRARY
"""

import os
import pathlib
import shlex
import shutil
import subprocess
import sys
import tempfile

PROGRAM = """\
#include <qcow2cache.h>
#include <stdio.h>
#include <string.h>

int main(void)
{
    puts(q2c_version());
    return strcmp(q2c_version(), Q2C_VERSION) != 0;
}
"""

PROJECT = """\
project('user', 'c', version: '1')
qcow2cache = dependency('qcow2cache', fallback: 'qcow2cache', version: '>=0')
executable('user', 'user.c', dependencies: qcow2cache)
"""


def run(*command, **options):
    print("+ " + " ".join(str(word) for word in command), flush=True)
    return subprocess.run(command, check=True, **options)


def output(*command, **options):
    return run(*command, stdout=subprocess.PIPE, text=True, **options).stdout.strip()


def use_subproject(directory, source_root, _build_root, archive, _library):
    """`dependency('qcow2cache')` of a parent finds the subproject."""
    project = directory / "user"
    (project / "subprojects").mkdir(parents=True)
    (project / "subprojects" / "qcow2cache").symlink_to(source_root)
    (project / "user.c").write_text(PROGRAM)
    (project / "meson.build").write_text(PROJECT)
    build = directory / "build"
    run("meson", "setup", "--wrap-mode=forcefallback", "-Dqcow2cache:archive=%s" % archive, build,
        project)
    run("meson", "compile", "-C", build, "-j2")
    run(build / "user")
    if (build / "subprojects" / "qcow2cache" / "c-tests").exists():
        sys.exit("a subproject builds its tests")


def install(directory, build_root, *options):
    run("meson", "install", "--no-rebuild", "--quiet", "-C", build_root, *options)
    found = list(directory.rglob("qcow2cache.pc"))
    if len(found) != 1:
        sys.exit("%d pkg-config files were installed" % len(found))
    return found[0].parent


def compile_and_run(directory, cflags, libs, library_path=None):
    (directory / "user.c").write_text(PROGRAM)
    compiler = shlex.split(os.environ.get("CC", "cc"))
    run(*compiler, "-o", directory / "user", directory / "user.c", *cflags, *libs)
    environment = dict(os.environ)
    if library_path:
        environment["LD_LIBRARY_PATH"] = str(library_path)
    run(directory / "user", env=environment)
    return output("readelf", "-dW", directory / "user")


def use_installed(directory, _source_root, build_root, _archive, _library):
    """A program builds with what `meson install` installed; pkg-config finds it."""
    root = directory / "root"
    pc = install(root, build_root, "--destdir", root)
    environment = dict(os.environ, PKG_CONFIG_PATH=str(pc), PKG_CONFIG_SYSROOT_DIR=str(root))
    cflags = shlex.split(output("pkg-config", "--cflags", "qcow2cache", env=environment))
    libs = shlex.split(output("pkg-config", "--libs", "qcow2cache", env=environment))
    library_dir = next(root.rglob("libqcow2cache.so")).parent
    if "libqcow2cache.so.0" not in compile_and_run(directory, cflags, libs, library_dir):
        sys.exit("the program was not linked to libqcow2cache.so.0")


def use_installed_archive(directory, _source_root, build_root, _archive, _library):
    """A program builds with the installed archive and Libs.private, without the shared library."""
    root = directory / "root"
    pc = install(root, build_root, "--destdir", root)
    environment = dict(os.environ, PKG_CONFIG_PATH=str(pc), PKG_CONFIG_SYSROOT_DIR=str(root))
    cflags = shlex.split(output("pkg-config", "--cflags", "qcow2cache", env=environment))
    libs = shlex.split(output("pkg-config", "--static", "--libs", "qcow2cache", env=environment))
    libs = ["-l:libqcow2cache.a" if word == "-lqcow2cache" else word for word in libs]
    if "libqcow2cache.so" in compile_and_run(directory, cflags, libs):
        sys.exit("the program was linked to the shared library")


def main(how, *arguments):
    use = {
        "subproject": use_subproject,
        "installed": use_installed,
        "installed-archive": use_installed_archive,
    }[how]
    directory = pathlib.Path(tempfile.mkdtemp(prefix="qcow2cache-use-"))
    try:
        use(directory, *(pathlib.Path(argument).resolve() for argument in arguments))
    except subprocess.CalledProcessError as error:
        sys.exit(str(error))
    finally:
        shutil.rmtree(directory)


if __name__ == "__main__":
    main(*sys.argv[1:])
