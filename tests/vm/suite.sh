#!/usr/bin/env bash
# Tests of the suite tests/oci in the guest: its arguments are filters of the test binary. What the suite prints of a
# failure, and its totals; the exit status is not 0 if a test has failed.
set -u
export TMPDIR=/var/tmp RUST_BACKTRACE=0
cd /vm/in/debug/deps || exit 1
# More threads than processors, as most of a test is waiting; not many more, as in the emulator it is not.
timeout 1200 ./oci --show-output --test-threads "$(($(nproc) * 2))" "$@" >/var/tmp/suite.log 2>&1
code=$?
grep -E '^(test .* FAILED|---- .* stdout)|panicked at|left behind' -A 4 /var/tmp/suite.log
grep -hE '^SKIP: ' /var/tmp/suite.log | sort | uniq -c
# A suite that did not end, or has run nothing, has no such line or says 0 passed.
result=$(grep '^test result: ' /var/tmp/suite.log)
if [[ -z $result || $result == *" 0 passed"* ]]; then
    tail -n 20 /var/tmp/suite.log
    code=1
fi
printf '%s\n== suite %s: exit code %d\n' "${result:-no result}" "$*" "$code"
exit "$code"
