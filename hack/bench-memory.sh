#!/usr/bin/env bash
# Memory of Corten beside Debian's containerd on the same work: one pod with one container.
#
#   sudo hack/bench-memory.sh
#
# Prints the RSS of each daemon idle and with the pod, and the PSS of what one pod costs: shim and pause. Both run the
# same pod from the same registry in a private network and mount namespace, each with directories of its own;
# containerd's pause image holds our pause program, so that the rows compare. Nothing is left behind.
#
# RSS counts shared pages whole, PSS by their share (proc_pid_smaps(5)); both in KiB, from one run.
# CORTEN_PROFILE=dev measures unoptimised binaries, which says little.
set -euo pipefail
# shellcheck source=hack/lib.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/lib.sh"

# How long a daemon may settle before it is measured, in seconds.
SETTLE=3

rss() {
    awk '/^VmRSS:/ { print $2 }' "/proc/$1/status"
}

# PSS of some processes together.
pss() {
    local pid
    for pid in "$@"; do awk '/^Pss:/ { print $2 }' "/proc/$pid/smaps_rollup"; done | awk '{ sum += $1 } END { print sum }'
}

# The one process with this name whose arguments carry the marker.
named() {
    local pid
    for pid in $(marked_processes "$MARK"); do
        if [[ $(basename -- "$(tr '\0' '\n' <"/proc/$pid/cmdline" | head -n 1)") == "$1" ]]; then echo "$pid"; fi
    done
}

# The init of the infra container, below $1, the shim.
pause_of() {
    local pid
    for pid in $(pgrep -P "$1"); do
        if [[ $(cat "/proc/$pid/comm") == pause ]]; then echo "$pid"; fi
    done
}

write_requests() {
    cat >"$DIR/pod.json" <<JSON
{
  "metadata": { "name": "bench", "namespace": "default", "uid": "$1", "attempt": 0 },
  "log_directory": "$DIR/logs-$1",
  "linux": { "cgroup_parent": "/$MARK", "security_context": { "namespace_options": { "pid": 1 } } }
}
JSON
    cat >"$DIR/container.json" <<JSON
{
  "metadata": { "name": "main" },
  "image": { "image": "$REGISTRY/busybox:latest" },
  "command": ["sleep", "1000"],
  "log_path": "main.log",
  "linux": { "security_context": { "namespace_options": { "pid": 1 } } }
}
JSON
}

# Runs the pod through the endpoint $1 with either client.
run_pod() {
    local client=("$BIN/cri-client" --runtime-endpoint "$1") pod container
    "${client[@]}" pull "$REGISTRY/busybox:latest" >/dev/null
    pod=$("${client[@]}" runp "$DIR/pod.json")
    container=$("${client[@]}" create "$pod" "$DIR/container.json" "$DIR/pod.json")
    "${client[@]}" start "$container" >/dev/null
}

remove_pods() {
    "$BIN/cri-client" --runtime-endpoint "$1" rmp --all --force >/dev/null
}

# Measures a daemon with the endpoint $3 and the shim named $4, and prints its row.
measure() {
    local name=$1 daemon=$2 endpoint=$3 shim_name=$4 idle shim pause
    sleep "$SETTLE"
    idle=$(rss "$daemon")
    write_requests "${name%% *}"
    run_pod "$endpoint"
    sleep "$SETTLE"
    shim=$(named "$shim_name")
    pause=$(pause_of "$shim")
    printf '%-22s %12s %12s %12s %12s %12s\n' "$name" "$idle" "$(rss "$daemon")" \
        "$(pss "$shim")" "$(pss "$pause")" "$(pss "$shim" "$pause")"
    remove_pods "$endpoint"
}

measure_corten() {
    write_config
    start_server
    measure "corten" "$SERVER_PID" "$ENDPOINT" corten-shim
    end_process "$SERVER_PID"
}

measure_containerd() {
    start_containerd
    measure "containerd $(containerd --version | cut -d' ' -f3)" "$CONTAINERD_PID" "unix://$DIR/c8d.sock" containerd-shim-runc-v2
    end_process "$CONTAINERD_PID"
}

main() {
    need_root
    if [[ ${1:-} != --inside ]]; then
        find_toolchains
        install_packages "${BUILD_PACKAGES[@]}" "${RUN_PACKAGES[@]}" "${CNI_PACKAGES[@]}" containerd runc util-linux
        say "build ($PROFILE)"
        build corten corten-shim corten-cri mkimage registry cri-client
        # Bridges, forwarding and mounts of both daemons end with these namespaces.
        exec unshare --net --mount --propagation private -- "$0" --inside "$(binaries)"
    fi

    BIN=$2
    prepare_for_servers
    say "one pod of one container, KiB"
    printf '%-22s %12s %12s %12s %12s %12s\n' "" "idle RSS" "RSS" "shim PSS" "pause PSS" "pod PSS"
    measure_corten
    measure_containerd
}

# Called last: bash has read all of the script before any of it runs.
main "$@"
