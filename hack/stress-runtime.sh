#!/usr/bin/env bash
# Whether `run` in the foreground ever hangs, answers with another code than the program's, or leaves anything behind.
#
#   sudo hack/stress-runtime.sh [--runtime PROGRAM] [--count N] [--workers N]
#
# N containers (2,000) one after the other and N by 8 workers at once, first of a program that exits with 0, then of one
# that exits with 173. PROGRAM is any OCI runtime with runc's command line; corten, built here, if none is named.
#
# Prints a row for each of the four and what is left at the end: mounts, cgroups, processes, state directories. The exit
# code is 0 only if there is nothing to complain about.
set -euo pipefail
# shellcheck source=hack/lib.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/lib.sh"

# A run that takes longer hangs.
TIMEOUT=30

RUNTIME=
COUNT=2000
WORKERS=8

usage() {
    sed -n '2,/^set /s/^# \{0,1\}//p' "${BASH_SOURCE[0]}" >&2
    exit 2
}

read_arguments() {
    while [[ $# -gt 0 ]]; do
        [[ $# -ge 2 ]] || usage
        case $1 in
            --runtime) RUNTIME=$2 ;;
            --count) COUNT=$2 ;;
            --workers) WORKERS=$2 ;;
            *) usage ;;
        esac
        shift 2
    done
}

# Writes the bundle $DIR/$1, whose program exits with $1.
write_bundle() {
    local bundle=$DIR/$1
    mkdir -p "$bundle/rootfs"/{bin,dev,proc,sys}
    install -m 0755 /bin/busybox "$bundle/rootfs/bin/sh"
    cat >"$bundle/config.json" <<JSON
{
  "ociVersion": "1.0.2",
  "process": {
    "user": { "uid": 0, "gid": 0 },
    "args": ["/bin/sh", "-c", "exit $1"],
    "env": ["PATH=/bin"],
    "cwd": "/",
    "noNewPrivileges": true
  },
  "root": { "path": "rootfs", "readonly": true },
  "hostname": "stress",
  "mounts": [
    { "destination": "/proc", "type": "proc", "source": "proc" },
    { "destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755", "size=65536k"] },
    { "destination": "/dev/pts", "type": "devpts", "source": "devpts",
      "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"] },
    { "destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["nosuid", "noexec", "nodev", "ro"] }
  ],
  "linux": {
    "cgroupsPath": "/$MARK/CGROUP",
    "resources": { "devices": [{ "allow": false, "access": "rwm" }] },
    "namespaces": [
      { "type": "pid" }, { "type": "network" }, { "type": "ipc" }, { "type": "uts" }, { "type": "mount" }
    ],
    "maskedPaths": ["/proc/kcore", "/sys/firmware"],
    "readonlyPaths": ["/proc/sys"]
  }
}
JSON
}

# Runs $3 containers whose program exits with $2, one after the other, as worker $1: a code for each goes to standard
# output, and what a wrong one came with to $DIR/errors.
run_many() {
    local worker=$1 code=$2 count=$3 bundle=$DIR/$2-$1 number got error=$DIR/error-$1
    # A bundle of its own: the cgroup's path is in it.
    mkdir "$bundle"
    sed "s/CGROUP/$code-$worker/; s|\"rootfs\"|\"$DIR/$code/rootfs\"|" "$DIR/$code/config.json" >"$bundle/config.json"
    for ((number = 0; number < count; number++)); do
        got=0
        timeout --kill-after=5 "$TIMEOUT" "$RUNTIME" --root "$DIR/root" run --bundle "$bundle" \
            "$MARK-$code-$worker-$number" </dev/null >"$error" 2>&1 || got=$?
        echo "$got"
        [[ $got -eq $code ]] || printf '%s instead of %s: %s\n' "$got" "$code" "$(tr '\n' ' ' <"$error")" >>"$DIR/errors"
    done
}

# Runs $COUNT containers that exit with $2 by $1 workers, and prints the row.
run_phase() {
    local workers=$1 code=$2 worker pids=() share start=$EPOCHREALTIME seconds
    for ((worker = 0; worker < workers; worker++)); do
        share=$((COUNT / workers + (worker < COUNT % workers)))
        run_many "$workers.$worker" "$code" "$share" >"$DIR/codes-$worker" &
        pids+=("$!")
    done
    wait "${pids[@]}"
    seconds=$(awk -v from="$start" -v to="$EPOCHREALTIME" 'BEGIN { printf "%.1f", to - from }')
    cat "$DIR"/codes-* | awk -v code="$code" -v workers="$workers" -v seconds="$seconds" '
        $1 == 124 || $1 == 137 { hangs++; next }
        $1 != code { wrong++ }
        END { printf "%-8s %-8s %8d %8d %8d %10s %10.1f\n", workers, code, NR, hangs, wrong, seconds, NR / seconds
              exit hangs + wrong > 0 }' || FAILED=1
    rm -f "$DIR"/codes-*
}

# What carries the marker: `KIND WHAT` lines. The cgroup that holds those of the containers is made by the first of
# them, and nobody's to remove but ours.
leftovers() {
    local pid
    find /sys/fs/cgroup -mindepth 1 -depth -type d -path "*/$MARK" -exec rmdir --ignore-fail-on-non-empty {} + || true
    grep -F -- "$MARK" /proc/self/mountinfo | sed 's/^/mount /' || true
    find /sys/fs/cgroup -type d -path "*$MARK*" -printf 'cgroup %p\n'
    for pid in $(marked_processes "$MARK"); do echo "process $pid $(tr '\0' ' ' <"/proc/$pid/cmdline")"; done
    find "$DIR/root" -mindepth 1 -maxdepth 1 -printf 'state %p\n' 2>/dev/null || true
}

clean_up() {
    local status=$? entry
    trap - EXIT
    for entry in "$DIR"/root/*; do
        if [[ -e $entry ]]; then "$RUNTIME" --root "$DIR/root" delete --force "${entry##*/}" || true; fi
    done
    rm -rf -- "$DIR"
    exit "$status"
}

main() {
    local workers code left
    read_arguments "$@"
    need_root
    if [[ -z $RUNTIME ]]; then
        find_toolchains
        build corten
        RUNTIME=$(binaries)/corten
    fi
    make_dir
    trap clean_up EXIT
    FAILED=0
    printf '%-8s %-8s %8s %8s %8s %10s %10s\n' workers code runs hangs wrong seconds per-second
    for code in 0 173; do
        write_bundle "$code"
        for workers in 1 "$WORKERS"; do run_phase "$workers" "$code"; done
    done
    [[ ! -e $DIR/errors ]] || head -n 20 "$DIR/errors"
    left=$(leftovers)
    echo "left behind: $(grep -c . <<<"$left" || true)"
    [[ -z $left ]] || {
        printf '%s\n' "$left" | head -n 20
        FAILED=1
    }
    [[ $FAILED -eq 0 ]]
}

main "$@"
