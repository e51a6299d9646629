#!/usr/bin/env bash
# Debian's containerd with corten in the place of runc (`ctr run --runc-binary`): containers run, exec, are limited, paused,
# killed and deleted.
#
#   sudo tests/drop-in/containerd.sh                             after `cargo build`
#   sudo OCI_RUNTIME=/usr/sbin/runc tests/drop-in/containerd.sh  the control
set -uo pipefail
# shellcheck source=tests/drop-in/lib.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/lib.sh"

ctr() {
    command ctr --address "$DIR/containerd.sock" --namespace drop-in "$@"
}

# The flags of `ctr run`, for the container of this name.
container() {
    printf '%s\n' --runc-binary "$RUNTIME" --runc-root "$DIR/runtime" --snapshotter native --cgroup "/$MARK/$1"
}

start_containerd() {
    cat >"$DIR/config.toml" <<-END
		version = 2
		root = "$DIR/root"
		state = "$DIR/state"
		disabled_plugins = ["io.containerd.grpc.v1.cri"]
		[grpc]
		address = "$DIR/containerd.sock"
		[ttrpc]
		address = "$DIR/containerd.sock.ttrpc"
	END
    containerd --config "$DIR/config.toml" >"$DIR/containerd.log" 2>&1 &
    within "containerd answers" ctr version
}

pid_of() {
    ctr task list | awk -v id="$1" '$1 == id { print $2 }'
}

# shellcheck disable=SC2317  # called by `within`
status_is() {
    [[ $(ctr task list | awk -v id="$1" '$1 == id { print $3 }') == "$2" ]]
}

check_run() {
    local flags
    mapfile -t flags < <(container first)
    # ctr loses the output of a program that ends at once, with runc too: about one in twenty.
    succeeds "run to the end" ctr run --rm "${flags[@]}" "$IMAGE" first sh -c 'echo "from inside"; sleep 0.3'
    equal "its output" "from inside" "$output"
    ctr run --rm "${flags[@]}" "$IMAGE" first sh -c 'exit 7' >/dev/null 2>&1
    equal "its exit code" 7 $?
    succeeds "with a filter" ctr run --rm --seccomp "${flags[@]}" "$IMAGE" first sh -c 'cat /proc/self/status; sleep 0.3'
    equal "the filter" 2 "$(awk '/^Seccomp:/ { print $2 }' <<<"$output")"
    if output=$(ctr run --rm "${flags[@]}" "$IMAGE" first /no/such/program 2>&1); then
        fail "a program that is not there" "no error"
    else
        equal "a program that is not there is named" /no/such/program "$(grep -o -m 1 /no/such/program <<<"$output" | head -n 1)"
    fi
}

check_running() {
    local flags pid
    mapfile -t flags < <(container one)
    succeeds "run in the background" ctr run --detach --memory-limit 67108864 "${flags[@]}" "$IMAGE" one
    within "the container runs" status_is one RUNNING
    pid=$(pid_of one)
    equal "its memory limit" 67108864 "$(cgroup_file "$pid" memory memory.limit_in_bytes memory.max)"
    succeeds "exec" ctr task exec --exec-id e1 one sh -c 'echo "from exec"; sleep 0.3'
    equal "its output" "from exec" "$output"
    ctr task exec --exec-id e2 one sh -c 'exit 3' >/dev/null 2>&1
    equal "its exit code" 3 $?
    succeeds "its processes" ctr task ps one
    succeeds "its statistics" ctr task metrics one
    succeeds "pause" ctr task pause one
    within "the container is frozen" is_frozen "$pid"
    equal "its status" PAUSED "$(ctr task list | awk '$1 == "one" { print $3 }')"
    succeeds "resume" ctr task resume one
    succeeds "exec after the pause" ctr task exec --exec-id e3 one true
}

check_end() {
    local flags
    succeeds "kill" ctr task kill --signal SIGKILL one
    within "the container has stopped" status_is one STOPPED
    succeeds "delete the task" ctr task delete one
    succeeds "delete the container" ctr container delete one
    mapfile -t flags < <(container two)
    succeeds "run another" ctr run --detach "${flags[@]}" "$IMAGE" two
    ctr task delete --force two >/dev/null 2>&1
    equal "delete by force" "" "$(ctr task list --quiet)"
    succeeds "delete the container" ctr container delete two
    equal "the runtime has none left" "" "$("$RUNTIME" --root "$DIR/runtime/drop-in" list --quiet)"
}

run_checks() {
    make_image "$DIR/image.tar"
    start_containerd
    succeeds "load the image" ctr image import --snapshotter native "$DIR/image.tar"
    check_run
    check_running
    check_end
    kill %1
    wait
}

main
