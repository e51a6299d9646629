#!/usr/bin/env bash
# The speed of corten-cri beside Debian's containerd with runc, on the same pods in one run.
#
#   sudo hack/bench-cri.sh [ROUNDS [PODS [CROWD]]]      40 rounds, 100 pods a rate, 200 pods in a crowd
#   sudo hack/bench-cri.sh --network=builtin ...        corten's pods get its built-in network, containerd's the plugins'
#
# Prints p50 and p95 of every call of a pod's life and of ExecSync, pods per second with one client and with eight, the
# throughput of a log, what half of the crowd costs while it is idle (memory of the server, PSS of shim and pause per pod,
# processor time), and how long lists and statistics take with all of it; and corten's share of containerd's.
#
# Both run at once and are asked in turn, with the same chain of Debian's CNI plugins, the same image and the same pause
# program, in a private network and mount namespace. Nothing is left behind.
# CORTEN_PROFILE=dev measures unoptimised binaries, which says little.
set -euo pipefail
# shellcheck source=hack/lib.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/lib.sh"

main() {
    local network=cni
    if [[ ${1:-} == --network=* ]]; then
        network=${1#*=}
        [[ $network == cni || $network == builtin ]] || die "$1: cni or builtin"
        shift
    fi
    local rounds=${1:-40} pods=${2:-100} crowd=${3:-200}
    need_root
    if [[ ${1:-} != --inside ]]; then
        find_toolchains
        install_packages "${BUILD_PACKAGES[@]}" "${RUN_PACKAGES[@]}" "${CNI_PACKAGES[@]}" containerd runc util-linux
        say "build ($PROFILE)"
        build corten corten-shim corten-cri
        # Not measured; optimising them takes minutes.
        PROFILE=dev build bench-cri mkimage registry cri-client
        # Bridges, forwarding and mounts of both servers end with these namespaces.
        exec unshare --net --mount --propagation private -- \
            "$0" "--network=$network" --inside "$(binaries)" "$(PROFILE=dev binaries)" "$rounds" "$pods" "$crowd"
    fi

    local optimised=$2
    BIN=$3 rounds=$4 pods=$5 crowd=$6
    prepare_for_servers
    [[ $network == cni ]] || use_builtin_network
    write_config
    BIN=$optimised start_server
    # The first pod has the shim put its pause program where containerd's image finds it.
    "$BIN/bench-cri" bench --dir "$DIR" --image "$REGISTRY/busybox:latest" --parent "/$MARK" --rounds 1 --pods 1 --crowd 2 \
        "corten=$DIR/run/corten.sock=$SERVER_PID=corten-shim" >/dev/null
    start_containerd
    say "network of corten: $network"
    say "$(containerd --version | cut -d' ' -f1-3), $(runc --version | head -n 1), Linux $(uname -r), $(nproc) processors"
    "$BIN/bench-cri" bench --dir "$DIR" --image "$REGISTRY/busybox:latest" --parent "/$MARK" \
        --rounds "$rounds" --pods "$pods" --crowd "$crowd" \
        "corten=$DIR/run/corten.sock=$SERVER_PID=corten-shim" "containerd=$DIR/c8d.sock=$CONTAINERD_PID=containerd-shim-runc-v2"
}

# Called last: bash has read all of the script before any of it runs.
main "$@"
