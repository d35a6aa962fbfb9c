# SPDX-License-Identifier: MIT OR Apache-2.0
# Shared by the test scripts. Sourced, not run, by a script that has defined usage. Handles the
# first argument, whose absolute path is $subject afterwards, and makes the scratch directory $dir.

case ${1:-} in
    --help | -h) usage; exit 0 ;;
    '' | -*) usage >&2; exit 2 ;;
esac
if [ ! -e "$1" ]; then
    echo "scripts/tests/${0##*/}: there is no $1; see --help" >&2
    exit 2
fi
subject=$(realpath "$1")
# shellcheck source=scripts/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/../lib.sh"
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT

# verified NAME IMAGE STRESS-ARGUMENT…: one test of the driver $subject. Its stress verifies what it
# reads; then qemu-img must find no error, and the contents that the stress expects.
verified() {
    local name=$1 image=$2 out
    shift 2
    if ! out=$(timeout 120 "$subject" stress --shadow-out "$dir/shadow" "$@" "$image" 2>&1); then
        fail "$name: stress: $(echo "$out" | tail -n 3)"
    elif ! out=$(qemu-img check "$image" 2>&1); then
        fail "$name: qemu-img check: $out"
    elif ! out=$(qemu-img compare -f qcow2 -F raw "$image" "$dir/shadow" 2>&1); then
        fail "$name: qemu-img compare: $out"
    else
        pass
    fi
    rm -f "$image" "$dir/shadow"
}
