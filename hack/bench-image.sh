#!/usr/bin/env bash
# The speed of a pull: corten-cri beside Debian's containerd, and beside skopeo and umoci, from one registry on loopback.
#
#   sudo hack/bench-image.sh [ROUNDS [PERCENT]]      5 rounds, images of full size
#
# Two images, made here and the same everywhere: about 1 GB in 10 layers with files of all sizes, and 30,000 small files
# in 3 layers. A round pulls each with each of the three into an empty store, in turn. Prints the medians of wall time
# until the image is ready, of processor time, peak RSS and bytes sent to the disk meanwhile, and corten's share of the
# others'; then the physical limit: inflating and hashing the same bytes in memory, and writing them to the disk.
#
# corten-cri is ready when all is on the disk; containerd syncs what it downloads and not what it unpacks, the tools
# nothing. All run in a private mount namespace, their stores on a new ext4 of 8 GB each time. Nothing is left behind.
# CORTEN_PROFILE=dev measures unoptimised binaries, which says little.
set -euo pipefail
# shellcheck source=hack/lib.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/lib.sh"

write_server_config() {
    cat >"$DIR/config.toml" <<TOML
root = "$DIR/store/root"
state = "$DIR/run"
listen = "$DIR/run/corten.sock"

[registries."$REGISTRY"]
plain_http = true
TOML
}

write_store_config() {
    cat >"$DIR/containerd.toml" <<TOML
version = 2
root = "$DIR/store/root"
state = "$DIR/c8d"

[grpc]
address = "$DIR/c8d.sock"

[plugins."io.containerd.internal.v1.opt"]
path = "$DIR/opt"

[plugins."io.containerd.grpc.v1.cri"]
restrict_oom_score_adj = true
disable_hugetlb_controller = true
TOML
}

# Runs a measured command and adds its line to the file of $1, the peer, and $2, the image.
measured() {
    local file=$DIR/results/$1-$2
    shift 2
    "$BENCH" measure "$@" >>"$file"
}

# A disk of its own for every pull. On one where much was removed lately ext4 looks at each of those inodes again
# before it makes a new one, for minutes: that would be most of what is measured.
new_store() {
    ! mountpoint -q "$DIR/store" || umount "$DIR/store"
    mkfs.ext4 -q -F -E nodiscard,lazy_itable_init=1,lazy_journal_init=1 "$LOOP"
    mount "$LOOP" "$DIR/store"
    sync
}

make_disk() {
    fallocate -l 8G "$DIR/disk"
    LOOP=$(losetup --direct-io=on --find --show "$DIR/disk")
    mkdir "$DIR/store"
}

pull_with_corten() {
    new_store
    BIN=$OPTIMISED start_server
    measured corten "$1" --daemon "$SERVER_PID" -- \
        "$BIN/cri-client" --runtime-endpoint "$ENDPOINT" pull "$REGISTRY/$1:1"
    end_process "$SERVER_PID"
}

pull_with_containerd() {
    local endpoint=unix://$DIR/c8d.sock
    new_store
    containerd --config "$DIR/containerd.toml" </dev/null >"$DIR/containerd.log" 2>&1 &
    CONTAINERD_PID=$!
    wait_for 20 "$BIN/cri-client" --runtime-endpoint "$endpoint" version ||
        die "containerd does not start: $(tail -n 5 "$DIR/containerd.log")"
    measured containerd "$1" --daemon "$CONTAINERD_PID" -- \
        "$BIN/cri-client" --runtime-endpoint "$endpoint" pull "$REGISTRY/$1:1"
    end_process "$CONTAINERD_PID"
}

pull_with_tools() {
    new_store
    # shellcheck disable=SC2016 # expanded by the shell that is measured
    measured tools "$1" -- sh -c 'skopeo copy --quiet --insecure-policy --src-tls-verify=false "docker://$1" "oci:$2/oci:1" &&
        umoci unpack --image "$2/oci:1" "$2/bundle"' tools "$REGISTRY/$1:1" "$DIR/store"
}

# Prints the median of column $2 of the results $1.
median() {
    awk -v column="$2" '{ print $column }' "$DIR/results/$1" | sort -n |
        awk '{ values[NR] = $1 } END { print (values[int((NR + 1) / 2)] + values[int(NR / 2) + 1]) / 2 }'
}

print_table() {
    local image=$1 row column
    printf '%-10s %-18s %12s %12s %12s %12s %12s\n' "" "" corten containerd skopeo+umoci "of c.d" "of s.+u."
    column=0
    for row in "wall, s" "processor, s" "peak RSS, MiB" "written, MiB"; do
        column=$((column + 1))
        awk -v image="$image" -v row="$row" -v own="$(median "corten-$image" $column)" \
            -v containerd="$(median "containerd-$image" $column)" -v tools="$(median "tools-$image" $column)" 'BEGIN {
                unit = row ~ /RSS/ ? 1024 : 1
                printf "%-10s %-18s %12.2f %12.2f %12.2f", image, row, own / unit, containerd / unit, tools / unit
                printf " %12.2f %12.2f\n", own / (containerd + 1e-9), own / (tools + 1e-9)
            }'
    done
}

# What no pull can be faster than, on all processors together: each layer inflated and hashed, and all written at once.
print_limit() {
    local blobs=$DIR/images/blobs/sha256 packed began
    packed=$(find "$blobs" -size +256k)
    began=$EPOCHREALTIME
    xargs -P "$(nproc)" -n 1 "$BENCH" limit --blob <<<"$packed"
    printf 'limit: inflate and hash every layer of both images in memory, %d processors: %.2f s\n' \
        "$(nproc)" "$(bc <<<"$EPOCHREALTIME - $began")"
    new_store
    began=$EPOCHREALTIME
    dd if=/dev/zero of="$DIR/store/dd" bs=1M count=1050 conv=fsync status=none
    printf 'limit: write 1050 MiB to the disk, synced: %.2f s\n' "$(bc <<<"$EPOCHREALTIME - $began")"
}

main() {
    local rounds=${1:-5} percent=${2:-100} round image
    need_root
    if [[ ${1:-} != --inside ]]; then
        find_toolchains
        install_packages "${BUILD_PACKAGES[@]}" bc containerd e2fsprogs mount runc skopeo umoci util-linux
        say "build ($PROFILE)"
        build corten-cri bench-image
        # Neither is measured nor has much to do; optimising them takes minutes.
        PROFILE=dev build registry cri-client
        # Mounts of the daemons end with this namespace, and so does what hides /run.
        exec unshare --mount --propagation private -- "$0" --inside "$(binaries)" "$(PROFILE=dev binaries)" "$rounds" "$percent"
    fi

    BENCH=$2/bench-image OPTIMISED=$2 BIN=$3 rounds=$4 percent=$5
    make_dir
    trap clean_up_servers EXIT
    # containerd puts sockets below /run/containerd whatever its configuration says.
    mount -t tmpfs tmpfs /run
    say "images"
    "$BENCH" make --dir "$DIR/images" --scale "$percent"
    start_registry
    mkdir "$DIR/results"
    make_disk
    write_server_config
    write_store_config
    say "$(containerd --version | cut -d' ' -f1-3), $(skopeo --version), $(umoci --version | head -n 1); $(nproc) processors, $rounds rounds"
    for ((round = 0; round < rounds; round++)); do
        for image in large small; do
            pull_with_corten "$image"
            pull_with_containerd "$image"
            pull_with_tools "$image"
        done
    done
    print_table large
    print_table small
    print_limit
}

# Called last: bash has read all of the script before any of it runs.
main "$@"
