# SPDX-License-Identifier: MIT OR Apache-2.0
# For test scripts: counts, and says what failed. Sourced. Wants $drv, the qcow2drv to test.

passed=0
failed=0
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT

pass() { passed=$((passed + 1)); }
fail() {
    failed=$((failed + 1))
    echo "FAILED: $*"
}
summary() {
    echo "$passed passed, $failed failed"
    [ "$failed" -eq 0 ] && [ "$passed" -gt 0 ]
}

# verified NAME IMAGE STRESS-ARGUMENT…: the stress verifies, check is clean, compare identical.
verified() {
    local name=$1 image=$2 out
    shift 2
    if ! out=$(timeout 120 "$drv" stress --shadow-out "$dir/shadow" "$@" "$image" 2>&1); then
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
