#!/usr/bin/env bash
# Tests of the suite tests/oci in the guest: its arguments are filters of the test binary. What the suite prints of a
# failure, and its totals; the exit status is not 0 if a test has failed.
set -uo pipefail
export TMPDIR=/var/tmp RUST_BACKTRACE=0
cd /vm/in/debug/deps || exit 1
# More threads than processors, as most of a test is waiting; not many more, as in the emulator it is not.
# Each test's line appears when it ends, so that the last of them is known if the machine's time runs out.
timeout 1300 ./oci --show-output --test-threads "$(($(nproc) * 2))" "$@" 2>&1 | tee /var/tmp/suite.log |
    grep --line-buffered '^test .* \.\.\. '
code=${PIPESTATUS[0]}
grep -E '^---- .* stdout|panicked at|left behind' -A 6 /var/tmp/suite.log
grep -hE '^SKIP: ' /var/tmp/suite.log | sort | uniq -c
# A suite that did not end, or has run nothing, has no such line or says 0 passed.
result=$(grep '^test result: ' /var/tmp/suite.log)
if [[ -z $result || $result == *" 0 passed"* ]]; then
    tail -n 20 /var/tmp/suite.log
    code=1
fi
printf '%s\n== suite %s: exit code %d\n' "${result:-no result}" "$*" "$code"
exit "$code"
