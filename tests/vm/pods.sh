#!/usr/bin/env bash
# Tests of the suite tests/cri in the guest, for what depends on the machine: the systemd cgroup driver, limits on cgroup v2,
# crun as a handler, checkpoints by CRIU. Its arguments are filters of the test binary; there is no crictl in the guest.
set -uo pipefail
export TMPDIR=/var/tmp RUST_BACKTRACE=0
cd /vm/in/debug/deps || exit 1
modprobe -a overlay bridge veth iptable_nat nf_nat xt_comment xt_MASQUERADE 2>/dev/null
timeout 900 ./cri --show-output --test-threads 2 --skip crictl "$@" >/var/tmp/pods.log 2>&1
code=$?
grep -E '^test .* \.\.\. |^SKIP: ' /var/tmp/pods.log
grep -E 'panicked at|left behind' -A 6 /var/tmp/pods.log
result=$(grep '^test result: ' /var/tmp/pods.log)
if [[ -z $result || $result == *" 0 passed"* ]]; then
    tail -n 20 /var/tmp/pods.log
    code=1
fi
printf '%s\n== pods %s: exit code %d\n' "${result:-no result}" "$*" "$code"
exit "$code"
