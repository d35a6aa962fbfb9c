# SPDX-License-Identifier: MIT OR Apache-2.0
# What scripts/check, scripts/demo and scripts/bench share: where things are, and how a fresh machine gets what it lacks.
# Sourced, not run.

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$root" || exit 1

# "command:package" pairs, or "pc=module:package" for a library that pkg-config must find.
base_needs=(meson:meson ninja:ninja-build gcc:gcc g++:g++ pkg-config:pkg-config qemu-img:qemu-utils python3:python3)

is_missing() {
    case $1 in
        pc=*) ! pkg-config --exists "${1#pc=}" 2>/dev/null ;;
        *) ! command -v "$1" >/dev/null 2>&1 ;;
    esac
}

# need PAIR…: installs the Debian packages of those that are missing, or says exactly which ones to install and fails.
need() {
    local pair packages=()
    command -v cargo >/dev/null 2>&1 || {
        echo "missing: cargo (Rust 1.85 or newer; Debian 13: apt-get install cargo, else https://rustup.rs)" >&2
        return 1
    }
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
    local log
    log=$(mktemp)
    if ! { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${packages[@]}"; } >"$log" 2>&1; then
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

# meson_build DIR [OPTION…]: configures DIR if it is not, and compiles it.
meson_build() {
    local dir=$1
    shift
    if [ ! -f "$dir/build.ninja" ]; then
        rm -rf "$dir"
        meson setup "$dir" "$@" || return 1
    fi
    meson compile -C "$dir"
}
