#!/usr/bin/env bash
# Runs, in the guest, each argument: a script beside this one with its own arguments, in one word, or VARIABLE=VALUE for
# those that follow. Prints how long each took; the exit status is the number of those that failed.
set -u
cd "$(dirname -- "$0")/vm" || exit 1
printf 'guest: Linux %s, process 1 %s, controllers %s\n' "$(uname -r)" "$(cat /proc/1/comm)" "$(cat /sys/fs/cgroup/cgroup.controllers)"
failed=0
for script in "$@"; do
    if [[ ${script%% *} == *=* ]]; then
        export "${script?}"
        continue
    fi
    began=$SECONDS
    # Words are what the caller made of them: names of tests and of scripts have no blanks.
    # shellcheck disable=SC2086
    timeout 1400 bash ./$script || failed=$((failed + 1))
    printf '   %s: %d s\n' "${script%% *}" "$((SECONDS - began))"
done
exit "$failed"
