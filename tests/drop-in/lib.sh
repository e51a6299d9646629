# What the scripts of this folder share; sourced by them, never run.
#
# Each drives an engine of Debian's with corten in the place of runc, in namespaces of its own (mounts with an empty /run,
# network, ipc, pids): the engine is nobody else's, and ends with the script. Cgroups are the machine's, below a name that
# is the script's own; what is left of them at the end is a failure.
#
# A check prints `PASS NAME: WHAT` or `FAIL NAME: WHAT: why`. OCI_RUNTIME=/usr/sbin/runc is the control.
# shellcheck shell=bash
# shellcheck source=hack/lib.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/../../hack/lib.sh"
PROFILE=${CORTEN_PROFILE:-dev}
NAME=$(basename -- "$0" .sh)
IMAGE=localhost/drop-in:1

failed=0

pass() {
    printf 'PASS %s: %s\n' "$NAME" "$1"
}

fail() {
    failed=$((failed + 1))
    printf 'FAIL %s: %s: %s\n' "$NAME" "$1" "${2//$'\n'/; }"
}

# equal WHAT EXPECTED READ
equal() {
    if [[ $3 == "$2" ]]; then pass "$1"; else fail "$1" "expected $2, read $3"; fi
}

# succeeds WHAT COMMAND..; what it prints is in $output afterwards.
succeeds() {
    local what=$1
    shift
    if output=$("$@" 2>&1 </dev/null); then pass "$what"; else fail "$what" "$output"; fi
}

# within WHAT COMMAND..: succeeds within ten seconds.
within() {
    local what=$1 try
    shift
    for ((try = 0; try < 100; try++)); do
        if "$@" >/dev/null 2>&1; then
            pass "$what"
            return
        fi
        sleep 0.1
    done
    fail "$what" "not within ten seconds"
}

# The cgroup file of a process: `cgroup_file PID V1-CONTROLLER V1-FILE V2-FILE`.
cgroup_file() {
    local path
    path=$(sed -n "s/^[0-9]*:\([^:]*,\)*$2\(,[^:]*\)*:\(.*\)/\3/p" "/proc/$1/cgroup")
    if [[ -n $path ]]; then
        cat "/sys/fs/cgroup/$2$path/$3"
    else
        cat "/sys/fs/cgroup$(sed -n 's/^0:://p' "/proc/$1/cgroup")/$4"
    fi
}

# Holds where the process has stopped in the freezer, by v1 or v2.
is_frozen() {
    case $(cgroup_file "$1" freezer freezer.state cgroup.freeze) in
    FROZEN | 1) true ;;
    *) false ;;
    esac
}

# Writes the image as `docker save` would: busybox, and hard links to it. To $1.
make_image() {
    local work=$DIR/image applet
    mkdir -p "$work/root/bin" "$work/root"/{dev,etc,proc,sys,tmp}
    cp /bin/busybox "$work/root/bin/busybox"
    for applet in cat echo env id ls sh sleep true; do ln "$work/root/bin/busybox" "$work/root/bin/$applet"; done
    echo root:x:0:0:root:/:/bin/sh >"$work/root/etc/passwd"
    tar -C "$work/root" -cf "$work/layer.tar" .
    jq -n --arg layer "sha256:$(sha256sum <"$work/layer.tar" | cut -d' ' -f1)" \
        '{architecture: "amd64", os: "linux", config: {Cmd: ["/bin/sleep", "1000"], Env: ["PATH=/bin"]},
          rootfs: {type: "layers", diff_ids: [$layer]}}' >"$work/config.json"
    jq -n --arg name "$IMAGE" '[{Config: "config.json", RepoTags: [$name], Layers: ["layer.tar"]}]' >"$work/manifest.json"
    tar -C "$work" -cf "$1" manifest.json config.json layer.tar
}

# The cgroups of this script that are left, and takes them away.
clean_cgroups() {
    local left
    left=$(find /sys/fs/cgroup -depth -type d -path "*/$MARK*")
    [[ -z $left ]] && return
    xargs -d '\n' rmdir -- <<<"$left" || true
    # The engine's own stay until somebody takes them: the parent of all, and that of podman's monitors.
    ! grep -E "/$MARK/." <<<"$left" | grep -v "/$MARK/conmon$"
}

# Runs `run_checks` of the script in namespaces of its own, and cleans up after it.
main() {
    if [[ -n ${MARK:-} ]]; then
        mount -t tmpfs tmpfs /run
        ip link set lo up
        run_checks
        exit $((failed > 0))
    fi
    need_root
    find_toolchains
    RUNTIME=${OCI_RUNTIME:-$(binaries)/corten}
    [[ -x $RUNTIME ]] || die "no runtime at $RUNTIME: build it, or set OCI_RUNTIME"
    DIR=$(mktemp -d "/tmp/$NAME-XXXXXX")
    MARK=${DIR##*/}
    export RUNTIME DIR MARK
    local code=0
    unshare --mount --propagation private --net --ipc --pid --fork --kill-child --mount-proc bash "$0" || code=$?
    clean_cgroups || code=1
    rm -rf -- "$DIR"
    exit "$code"
}
