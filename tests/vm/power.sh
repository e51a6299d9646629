#!/usr/bin/env bash
# Images across a power cut, in two runs of hack/vm.sh on one disk that stays (-r):
#
#   power.sh pull        pulls an image and asks for the cut (-x 'CUT NOW') when PullImage has answered
#   power.sh half        asks for it in the middle of the pull
#   power.sh check-pull  after the cut: the image is here, byte for byte
#   power.sh check-half  after the cut: nothing is half here, and a pull succeeds
# shellcheck disable=SC2317  # what `check` calls by name
set -u
BINARIES=/vm/in/debug
WORK=/var/power
failed=0

check() {
    local what=$1
    shift
    if "$@"; then printf 'PASS power: %s\n' "$what"; else
        printf 'FAIL power: %s\n' "$what"
        failed=$((failed + 1))
    fi
}

client() {
    "$BINARIES/cri-client" --runtime-endpoint "unix://$WORK/run/corten.sock" "$@"
}

# The image, on the disk for good before anything is pulled.
make_image() {
    local number
    rm -rf "$WORK"
    mkdir -p "$WORK/tree/small"
    for number in {1..300}; do head -c "$((number * 37))" /dev/urandom >"$WORK/tree/small/$number"; done
    for number in {1..4}; do head -c 4000000 /dev/urandom >"$WORK/tree/large-$number"; done
    "$BINARIES/mkimage" --out "$WORK/layout" --name power:1 --busybox /bin/busybox --add "$WORK/tree"
    printf '[registries."127.0.0.1:5000"]\nplain_http = true\n' >"$WORK/config.toml"
    sync
}

serve() {
    "$BINARIES/registry" --listen 127.0.0.1:5000 --dir "$WORK/layout" >/dev/null &
    "$BINARIES/corten-cri" --config "$WORK/config.toml" --root "$WORK/lib" --state "$WORK/run" \
        --listen "$WORK/run/corten.sock" >"$WORK/cri.log" 2>&1 &
    local tries=0
    until client version >/dev/null 2>&1; do
        tries=$((tries + 1))
        if [[ $tries -gt 300 ]]; then
            cat "$WORK/cri.log"
            exit 1
        fi
        sleep 0.1
    done
}

# Two layers, one of them the tree.
is_whole() {
    local layer
    [[ $(find "$WORK/lib/layers" -mindepth 1 -maxdepth 1 | wc -l) == 2 ]] || return 1
    for layer in "$WORK"/lib/layers/*/fs; do
        if [[ -e $layer/small ]]; then diff -r "$WORK/tree" "$layer" && return 0; fi
    done
    return 1
}

is_listed() {
    client images | grep -q power
}

no_partial() {
    [[ -z $(find "$WORK/lib" -name '*.partial') && -z $(find "$WORK/lib/quarantine" -mindepth 1) ]]
}

modprobe overlay
case $1 in
    pull)
        make_image
        serve
        client pull 127.0.0.1:5000/power:1 && is_whole || exit 1
        echo "CUT NOW"
        sleep 60
        ;;
    half)
        make_image
        serve
        client pull 127.0.0.1:5000/power:1 &
        until [[ -n $(find "$WORK/lib/layers" -path '*.partial/fs/*' 2>/dev/null | head -n 1) ]]; do :; done
        echo "CUT NOW"
        sleep 60
        ;;
    check-pull)
        serve
        check "nothing is half there" no_partial
        check "the image is listed" is_listed
        check "its layers are whole" is_whole
        ;;
    check-half)
        serve
        check "nothing is half there" no_partial
        check "a pull" client pull 127.0.0.1:5000/power:1
        check "the image is listed" is_listed
        check "its layers are whole" is_whole
        ;;
esac
exit "$failed"
