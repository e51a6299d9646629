#!/usr/bin/env bash
# Checkpoint and restore by CRIU on cgroup v2: a counter goes on where it was, within the limits it had.
# shellcheck disable=SC2016  # the commands are for the container's shell
# shellcheck source=tests/vm/lib.sh
source "$(dirname -- "$0")/lib.sh"
make_bundle
IMAGES=/var/tmp/$NAME/images
WORK=/var/tmp/$NAME/work
COUNT=$BUNDLE/rootfs/tmp/count
mkdir -p "$IMAGES" "$WORK"

counted_beyond() {
    [[ $(cat "$COUNT") -gt $1 ]]
}

# The end of CRIU's log, where a command of it has failed.
show_log() {
    [[ $1 -eq $failed ]] || tail -n 8 "$WORK"/*.log
}

configure 'exec </dev/null >/dev/null 2>&1; n=0; while :; do n=$((n + 1)); echo $n >/tmp/count; sleep 0.2; done' \
    '.linux.cgroupsPath = "/checkpoint-test/counter" | .linux.resources = { memory: { limit: 67108864 }, pids: { limit: 20 } }
        | .process.rlimits = [{ type: "RLIMIT_NOFILE", soft: 64, hard: 65 }]'
succeeds "run counter" runtime run --detach --bundle "$BUNDLE" counter
within 20 counted_beyond 3

before=$failed
succeeds "checkpoint --leave-running" runtime checkpoint --leave-running --image-path "$IMAGES/running" --work-path "$WORK" counter
show_log "$before"
equal "state" running "$(status_of counter)"
count=$(cat "$COUNT")
within 20 counted_beyond "$count"
like "it counts on" "[0-9]*" "$(cat "$COUNT")"

before=$failed
succeeds checkpoint runtime checkpoint --image-path "$IMAGES/stopped" --work-path "$WORK" counter
show_log "$before"
runtime delete --force counter
count=$(cat "$COUNT")
sleep 1
equal "the counter stands still" "$count" "$(cat "$COUNT")"
gone "$CGROUPS/checkpoint-test/counter"

mkdir -p "$BUNDLE.strict"
ln -sfn "$BUNDLE/rootfs" "$BUNDLE.strict/rootfs"
jq '.process.rlimits[0].hard = 64' "$BUNDLE/config.json" >"$BUNDLE.strict/config.json"
refused=$(runtime restore --detach --image-path "$IMAGES/stopped" --work-path "$WORK" --bundle "$BUNDLE.strict" counter 2>&1)
like "a limit above the bundle's" "*process.rlimits: it has 65*" "$refused"

before=$failed
succeeds "restore counter" runtime restore --detach --image-path "$IMAGES/stopped" --work-path "$WORK" --bundle "$BUNDLE" counter
show_log "$before"
equal "state after restore" running "$(status_of counter)"
within 20 counted_beyond "$count"
if counted_beyond "$count"; then pass "it counts on from $count" "$(cat "$COUNT")"; else fail "it counts on" "more than $count" "$(cat "$COUNT")"; fi
file_is "$CGROUPS/checkpoint-test/counter/memory.max" 67108864
file_is "$CGROUPS/checkpoint-test/counter/pids.max" 20
equal "the cgroup of init" 0::/checkpoint-test/counter "$(cat "/proc/$(pid_of counter)/cgroup")"
equal "exec after restore" "0::/" "$(runtime exec counter cat /proc/self/cgroup)"
succeeds "delete --force" runtime delete --force counter
gone "$CGROUPS/checkpoint-test/counter"
rmdir "$CGROUPS/checkpoint-test" || fail "the parent cgroup" empty "$(ls "$CGROUPS/checkpoint-test")"
finish
