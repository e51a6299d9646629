#!/usr/bin/env bash
# The speed of corten beside Debian's crun and runc, on the same containers in one run.
#
#   sudo hack/bench-runtime.sh [ROUNDS [SECONDS]]       50 rounds, 30 seconds of the parallel case
#
# Prints medians in milliseconds and corten's share of each other's: run, create, start, delete, and exec of /bin/true, as
# it is, with Docker's seccomp profile, and on an overlay of 40 layers; then the peak RSS of a create, the smallest memory
# limit under which a container starts, containers per second with eight at a time, and system calls per run.
#
# All three run alternately in a private mount namespace, in which a hybrid host's cgroup v2 mount is hidden: crun
# refuses such a host. Nothing is left behind.
# CORTEN_PROFILE=dev measures unoptimised binaries, which says little.
set -euo pipefail
# shellcheck source=hack/lib.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/lib.sh"

# What Docker denies by default, as `linux.seccomp`.
SECCOMP=$REPO/tests/oci/seccomp/docker.json

# Prints the system calls of one `run` with each of the runtimes, all their processes and the container's together.
count_system_calls() {
    local peer name
    printf '%-34s' "run, system calls"
    for peer in "$@"; do
        name=${peer%%=*}
        jq --arg path "/$MARK/strace-$name" '.linux.cgroupsPath = $path | .process.args = ["/bin/true"]' \
            "$DIR/plain/config.json" >"$DIR/config.json"
        mv "$DIR/config.json" "$DIR/plain/config.json"
        strace -f -c -o "$DIR/strace" "${peer#*=}" --root "$DIR/strace-$name" \
            run --bundle "$DIR/plain" "strace-$name" </dev/null
        printf '%12s' "$(awk '$NF == "total" { print $4 }' "$DIR/strace")"
    done
    echo
}

clean_up() {
    local status=$?
    trap - EXIT
    umount -l "$DIR" || true
    umount /sys/fs/cgroup/unified 2>/dev/null || true
    remove_marked "$MARK"
    rm -rf -- "$DIR"
    exit_leaving_nothing "$status"
}

main() {
    local rounds=${1:-50} seconds=${2:-30} peers
    need_root
    if [[ ${1:-} != --inside ]]; then
        find_toolchains
        install_packages "${BUILD_PACKAGES[@]}" busybox-static crun jq runc strace util-linux
        say "build ($PROFILE)"
        build corten
        # Only the runtimes are measured; optimising the program that starts them takes minutes.
        PROFILE=dev build bench-runtime
        exec unshare --mount --propagation private -- "$0" --inside "$(binaries)" "$(PROFILE=dev binaries)" "$rounds" "$seconds"
    fi

    BIN=$2 BENCH=$3/bench-runtime rounds=$4 seconds=$5
    make_dir
    trap clean_up EXIT
    # States are on a tmpfs on real nodes too, below /run.
    mount -t tmpfs tmpfs "$DIR"
    # Something of our own in its place: crun would make directories in what lies beneath.
    if [[ -d /sys/fs/cgroup/memory ]] && mountpoint -q /sys/fs/cgroup/unified; then
        umount /sys/fs/cgroup/unified
        mount -t tmpfs tmpfs /sys/fs/cgroup/unified
    fi
    peers=(corten="$BIN/corten" crun="$(command -v crun)" runc="$(command -v runc)")
    say "$(crun --version | head -n 1), $(runc --version | head -n 1), Linux $(uname -r), $(nproc) processors"
    "$BENCH" --dir "$DIR" --rounds "$rounds" --seconds "$seconds" --seccomp "$SECCOMP" "${peers[@]}"
    count_system_calls "${peers[@]}"
}

# Called last: bash has read all of the script before any of it runs.
main "$@"
