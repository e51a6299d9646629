#!/usr/bin/env bash
# Thousands of pods one after the other, a container each, and what stays of them: nothing.
#
#   sudo hack/soak.sh [PODS]      5000 pods
#
# Each pod is run with a network of Debian's CNI plugins; its container writes a line and ends, the log is read, and all is
# removed. Prints memory, threads and descriptors of the server, and processes, mounts, cgroups, links, network
# namespaces, files and addresses before and after; fails if anything has grown. Runs in a private network, mount and pid
# namespace, beside whatever else the machine does.
set -euo pipefail
# shellcheck source=hack/lib.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/lib.sh"

main() {
    local pods=${1:-5000}
    need_root
    if [[ ${1:-} != --inside ]]; then
        find_toolchains
        install_packages "${BUILD_PACKAGES[@]}" "${RUN_PACKAGES[@]}" "${CNI_PACKAGES[@]}" util-linux
        say "build ($PROFILE)"
        build corten corten-shim corten-cri
        PROFILE=dev build bench-cri mkimage registry
        exec unshare --net --mount --propagation private --pid --fork --kill-child --mount-proc -- \
            "$0" --inside "$(binaries)" "$(PROFILE=dev binaries)" "$pods"
    fi

    local optimised=$2
    BIN=$3 pods=$4
    prepare_for_servers
    write_config
    BIN=$optimised start_server
    say "$pods pods, Linux $(uname -r), $(nproc) processors"
    "$BIN/bench-cri" soak --dir "$DIR" --image "$REGISTRY/busybox:latest" --parent "/$MARK" --pods "$pods" \
        "corten=$DIR/run/corten.sock=$SERVER_PID=corten-shim"
}

# Called last: bash has read all of the script before any of it runs.
main "$@"
