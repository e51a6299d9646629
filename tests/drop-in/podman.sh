#!/usr/bin/env bash
# Debian's podman with corten as its runtime: containers run, exec, are limited, paused, killed and deleted.
#
#   sudo tests/drop-in/podman.sh                             after `cargo build`
#   sudo OCI_RUNTIME=/usr/sbin/runc tests/drop-in/podman.sh  the control
set -uo pipefail
# shellcheck source=tests/drop-in/lib.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/lib.sh"

# Limits on files and processes that need no capability: podman's own defaults are the highest there are.
CREATE=(--network none --cgroup-parent "/${MARK:-}" --ulimit nofile=1024:1024 --ulimit nproc=1024:1024)

podman() {
    command podman --root "$DIR/root" --runroot "$DIR/run" --tmpdir "$DIR/tmp" --storage-driver vfs \
        --cgroup-manager cgroupfs --events-backend file --runtime "$RUNTIME" "$@"
}

pid_of() {
    podman inspect --format '{{.State.Pid}}' "$1"
}

# shellcheck disable=SC2317  # called by `within`
status_is() {
    [[ $(podman inspect --format '{{.State.Status}}' "$1") == "$2" ]]
}

check_run() {
    succeeds "run to the end" podman run --rm "${CREATE[@]}" "$IMAGE" echo "from inside"
    equal "its output" "from inside" "$output"
    podman run --rm "${CREATE[@]}" "$IMAGE" sh -c 'exit 7' >/dev/null 2>&1
    equal "its exit code" 7 $?
    podman run --rm "${CREATE[@]}" "$IMAGE" /no/such/program >/dev/null 2>&1
    equal "the code of a program that is not there" 127 $?
    equal "standard input" "passed on" "$(echo "passed on" | podman run --rm -i "${CREATE[@]}" "$IMAGE" cat 2>&1)"
    succeeds "a terminal" podman run --rm -t "${CREATE[@]}" "$IMAGE" sh -c 'test -t 0 && echo yes'
    equal "its output" yes "${output%$'\r'}"
    succeeds "read-only, no capabilities, another user" podman run --rm --read-only --cap-drop all --user 1000:1000 \
        --security-opt no-new-privileges "${CREATE[@]}" "$IMAGE" sh -c 'id -u; ! echo 2>/dev/null >/file; cat /proc/self/status'
    equal "the user" 1000 "$(head -n 1 <<<"$output")"
    equal "the capabilities" 0000000000000000 "$(awk '/^CapBnd/ { print $2 }' <<<"$output")"
    equal "the filter" 2 "$(awk '/^Seccomp:/ { print $2 }' <<<"$output")"
}

check_running() {
    local pid
    succeeds "run in the background" podman run --detach --name one --memory 64m --pids-limit 20 --cpu-shares 512 \
        "${CREATE[@]}" "$IMAGE"
    pid=$(pid_of one)
    equal "its memory limit" 67108864 "$(cgroup_file "$pid" memory memory.limit_in_bytes memory.max)"
    equal "its limit of processes" 20 "$(cgroup_file "$pid" pids pids.max pids.max)"
    # shellcheck disable=SC2016  # for the shell in the container
    succeeds "exec" podman exec --env WORD=hello one sh -c 'echo $WORD'
    equal "its output" hello "$output"
    podman exec one sh -c 'exit 3' >/dev/null 2>&1
    equal "its exit code" 3 $?
    succeeds "top" podman top one pid comm
    succeeds "update" podman update --memory 48m one
    equal "its new memory limit" 50331648 "$(cgroup_file "$pid" memory memory.limit_in_bytes memory.max)"
    succeeds "pause" podman pause one
    within "the container is frozen" is_frozen "$pid"
    succeeds "unpause" podman unpause one
    succeeds "exec after the pause" podman exec one true
    succeeds "stats" podman stats --no-stream one
}

check_end() {
    succeeds "kill" podman kill --signal KILL one
    within "the container has exited" status_is one exited
    equal "its exit code" 137 "$(podman inspect --format '{{.State.ExitCode}}' one)"
    succeeds "start again" podman start one
    within "the container runs" status_is one running
    succeeds "stop" podman stop --time 1 one
    succeeds "delete" podman rm one
    succeeds "create" podman create --name two "${CREATE[@]}" "$IMAGE"
    succeeds "start" podman start two
    succeeds "delete by force" podman rm --force --time 0 two
    equal "no container is left" "" "$(podman ps --all --quiet)"
}

run_checks() {
    make_image "$DIR/image.tar"
    succeeds "load the image" podman load --input "$DIR/image.tar"
    check_run
    check_running
    check_end
}

main
