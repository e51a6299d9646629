#!/usr/bin/env bash
# Tests of the suite tests/image in the guest, for what depends on the kernel: overlayfs with many layers, mapped layers,
# views, project quotas. Its arguments are filters of the test binary; a test that was skipped here is a failure.
set -uo pipefail
export TMPDIR=/var/tmp RUST_BACKTRACE=0
cd /vm/in/debug/deps || exit 1
modprobe -a loop overlay quota_v2 2>/dev/null
timeout 900 ./image --show-output --test-threads 2 "$@" >/var/tmp/images.log 2>&1
code=$?
grep -E '^test .* \.\.\. |^SKIP: ' /var/tmp/images.log
grep -E 'panicked at|left behind' -A 6 /var/tmp/images.log
if grep -q '^SKIP: ' /var/tmp/images.log; then code=1; fi
result=$(grep '^test result: ' /var/tmp/images.log)
if [[ -z $result || $result == *" 0 passed"* ]]; then
    tail -n 20 /var/tmp/images.log
    code=1
fi
printf '%s\n== images %s: exit code %d\n' "${result:-no result}" "$*" "$code"
exit "$code"
