# SPDX-License-Identifier: MIT OR Apache-2.0
# Functions that the scripts share: they install what is missing, build, and count test results.
# Sourced, not run. Changes to the root of the repository, $root.

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$root" || exit 1

# "command:package" pairs, or "pc=module:package" for a library that pkg-config must find.
base_needs=(meson:meson ninja:ninja-build gcc:gcc g++:g++ pkg-config:pkg-config
    qemu-img:qemu-utils python3:python3)

# usage_error MESSAGE: for a wrong command line. Ends the script with exit status 2.
usage_error() {
    echo "scripts/${0##*/}: $1; see --help" >&2
    exit 2
}

# is_missing PROGRAM: PROGRAM is the part of a pair before the colon.
is_missing() {
    case $1 in
        pc=*) ! pkg-config --exists "${1#pc=}" 2>/dev/null ;;
        *) ! command -v "$1" >/dev/null 2>&1 ;;
    esac
}

# need_rust: fails if Rust is missing or too old. It is not installed, since Debian 12's is too old.
need_rust() {
    local wanted version
    wanted=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' Cargo.toml)
    version=$(rustc --version 2>/dev/null | cut -d' ' -f2)
    if ! command -v cargo >/dev/null 2>&1 || [ -z "$version" ]; then
        echo "missing: Rust $wanted or newer (cargo and rustc)" >&2
    elif [ "$(printf '%s\n' "$wanted" "$version" | sort -V | head -n 1)" != "$wanted" ]; then
        echo "too old: Rust $version; $wanted or newer is needed" >&2
    else
        return 0
    fi
    echo "install it first: from https://rustup.rs, or on Debian 13: apt-get install cargo" >&2
    return 1
}

# How many seconds to wait for another package installation.
apt_wait=300

# apt_is_busy: whether a process holds a lock of the package manager, which is one of fcntl(2).
apt_is_busy() {
    python3 - /var/lib/dpkg/lock-frontend /var/lib/apt/lists/lock <<'PY'
import fcntl, sys
for path in sys.argv[1:]:
    try:
        with open(path, "r+b") as lock:
            fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except FileNotFoundError:
        continue
    except OSError:
        sys.exit(0)
sys.exit(1)
PY
}

# wait_for_apt_lists: apt-get update does not wait for the lock of the package lists by itself.
wait_for_apt_lists() {
    local end=$((SECONDS + apt_wait))
    while apt_is_busy && [ $SECONDS -lt $end ]; do sleep 2; done
}

# need PAIR…: installs the Debian packages of what is missing. If it cannot, it says which packages
# to install, and fails.
need() {
    local pair packages=()
    need_rust || return 1
    for pair in "$@"; do
        if is_missing "${pair%%:*}"; then packages+=("${pair##*:}"); fi
    done
    [ ${#packages[@]} -eq 0 ] && return 0
    if [ "$(id -u)" -ne 0 ] || ! command -v apt-get >/dev/null 2>&1; then
        echo "missing: ${packages[*]}" >&2
        echo "install them first, on Debian: sudo apt-get install ${packages[*]}" >&2
        return 1
    fi
    echo "installing ${packages[*]}"
    # Another installation may be running: wait for its lock.
    local log apt=(apt-get -qq -o "DPkg::Lock::Timeout=$apt_wait")
    if apt_is_busy; then
        echo "another package installation is running; waiting for it, up to $apt_wait seconds"
    fi
    log=$(mktemp)
    if ! {
        wait_for_apt_lists && "${apt[@]}" update &&
            DEBIAN_FRONTEND=noninteractive "${apt[@]}" install -y --no-install-recommends \
                "${packages[@]}"
    } >"$log" 2>&1; then
        cat "$log" >&2
        rm -f "$log"
        return 1
    fi
    rm -f "$log"
    for pair in "$@"; do
        if is_missing "${pair%%:*}"; then
            echo "still missing after the installation: ${pair%%:*} (package ${pair##*:})" >&2
            return 1
        fi
    done
}

# release_library: builds the release library and prints the directory that contains it.
release_library() {
    cargo build --release --quiet >&2 && (cd "${CARGO_TARGET_DIR:-target}/release" && pwd)
}

# link_library FROM TO: makes two links in TO to libqcow2cache.so in FROM. A program looks for the
# library by its SONAME, the linker by the plain name.
link_library() {
    local name
    for name in libqcow2cache.so libqcow2cache.so.0; do
        ln -sfn "$1/libqcow2cache.so" "$2/$name"
    done
}

# meson_build DIR [OPTION…]: configures DIR with the options if that was not done before, then
# compiles it.
meson_build() {
    local dir=$1
    shift
    if [ ! -f "$dir/build.ninja" ]; then
        rm -rf "$dir"
        meson setup "$dir" "$@" || return 1
    fi
    meson compile -C "$dir"
}

# pass; fail WHAT; summary: count the results of tests. summary prints the closing line that
# scripts/check reads; it fails if a test failed or none was run.
passed=0
failed=0
pass() { passed=$((passed + 1)); }
fail() {
    failed=$((failed + 1))
    echo "FAILED: $*"
}
summary() {
    echo "$passed passed, $failed failed"
    [ "$failed" -eq 0 ] && [ "$passed" -gt 0 ]
}
