#!/usr/bin/env bash
# What takes CAP_SYS_RESOURCE, which test machines often withhold: raising hard limits, lowering the OOM score.
# shellcheck disable=SC2016  # the commands are for the container's shell
# shellcheck source=tests/vm/lib.sh
source "$(dirname -- "$0")/lib.sh"
make_bundle
prlimit --pid $$ --nofile=1024:4096

configure 'ulimit -Sn; ulimit -Hn; cat /proc/self/oom_score_adj' \
    '.process.rlimits = [{ type: "RLIMIT_NOFILE", soft: 65536, hard: 131072 }] | .process.oomScoreAdj = -900'
succeeds "a hard limit above the runtime's, an OOM score below its own" runtime run --bundle "$BUNDLE" raised
equal "what the container has" "65536;131072;-900" "${output//$'\n'/;}"

configure 'sleep 1000' '.process.rlimits = [{ type: "RLIMIT_NOFILE", soft: 65536, hard: 131072 }] | .process.oomScoreAdj = -900'
succeeds "run held" runtime run --detach --bundle "$BUNDLE" held
equal "the same in exec" "131072" "$(runtime exec held sh -c 'ulimit -Hn')"
equal "OOM score of init" -900 "$(cat "/proc/$(pid_of held)/oom_score_adj")"
equal "OOM score of this script" 0 "$(cat /proc/$$/oom_score_adj)"
runtime delete --force held
finish
