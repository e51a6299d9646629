# Functions that the scripts beside this file share; sourced, never run.
#
# A script that starts anything works in one private directory, `$DIR`, whose name is the marker by which everything of
# the script is told: cgroups, mounts, processes. `$DIR` is short, as a unix socket's path has 107 bytes.
# shellcheck shell=bash disable=SC2034

# The checkout.
REPO=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)

# How the binaries are built: release, or dev to save minutes while working on the scripts.
PROFILE=${CORTEN_PROFILE:-release}

die() {
    printf '%s: %s\n' "${0##*/}" "$*" >&2
    exit 1
}

say() {
    printf '\n== %s\n' "$*"
}

need_root() {
    [[ $EUID -eq 0 ]] || die "needs root: sudo $0"
}

# The home of whoever called sudo; root's own otherwise.
caller_home() {
    getent passwd "${SUDO_USER:-root}" | cut -d: -f6
}

# Runs a command as whoever called sudo, so that build directories and caches stay theirs.
as_caller() {
    if [[ -n ${SUDO_USER:-} && $SUDO_USER != root ]]; then
        sudo -u "$SUDO_USER" -H env PATH="$PATH" CORTEN_PROFILE="$PROFILE" "$@"
    else
        "$@"
    fi
}

# sudo drops the directories in which rustup and Go install themselves.
find_toolchains() {
    local home
    home=$(caller_home)
    PATH=$PATH:$home/.cargo/bin:/usr/local/cargo/bin:/usr/local/go/bin:$home/go/bin
    export PATH
    command -v cargo >/dev/null || die "no cargo in $PATH: install Rust (https://rustup.rs) first"
}

# Installs the Debian packages that are not there yet.
install_packages() {
    local missing=() package
    for package in "$@"; do
        dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q 'ok installed' || missing+=("$package")
    done
    [[ ${#missing[@]} -gt 0 ]] || return 0
    say "install ${missing[*]}"
    export DEBIAN_FRONTEND=noninteractive
    apt-get update -qq
    apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
}

# What building needs (a linker, libc for ring's C parts, libseccomp for the runtime), and what running pods needs.
BUILD_PACKAGES=(gcc libc6-dev libseccomp-dev)
RUN_PACKAGES=(busybox-static ca-certificates iproute2 procps)
# What pods need of the node where their network is made by plugins.
CNI_PACKAGES=(containernetworking-plugins iptables)

# The directory of built binaries, for the target that .cargo/config.toml chooses.
binaries() {
    local host dir=$PROFILE
    host=$(rustc -vV | sed -n 's/^host: //p')
    [[ $PROFILE != dev ]] || dir=debug
    printf '%s/%s/%s\n' "${CARGO_TARGET_DIR:-$REPO/target}" "$host" "$dir"
}

# Builds binaries by name; quiet unless it fails.
build() {
    local flags=() name
    for name in "$@"; do flags+=(--bin "$name"); done
    (cd "$REPO" && as_caller cargo build --quiet --profile "$PROFILE" --workspace "${flags[@]}")
}

# Puts crictl, at the version that hack/tools/go.mod pins, at $1; fails where Go or its module proxy cannot be had.
build_crictl() {
    local bin=$1
    command -v go >/dev/null || {
        echo "no go in PATH" >&2
        return 1
    }
    [[ ! -x $bin ]] || return 0
    (cd "$REPO/hack/tools" && as_caller env GOFLAGS=-mod=readonly CGO_ENABLED=0 GOBIN="$(dirname -- "$bin")" \
        timeout 1200 go install -trimpath sigs.k8s.io/cri-tools/cmd/crictl)
}

# Makes $DIR, with a name that nothing else has.
make_dir() {
    DIR=$(mktemp -d /tmp/ct-XXXXXX)
    MARK=${DIR##*/}
}

# Waits up to $1 seconds until the rest of the arguments, a command, succeeds.
wait_for() {
    local deadline=$((SECONDS + $1))
    shift
    until "$@" >/dev/null 2>&1; do
        [[ $SECONDS -lt $deadline ]] || return 1
        sleep 0.1
    done
}

# Starts the registry of tests/ on a free port of loopback with the images in $DIR/images; sets REGISTRY.
start_registry() {
    "$BIN/registry" --listen 127.0.0.1:0 --dir "$DIR/images" >"$DIR/registry.log" 2>&1 &
    REGISTRY_PID=$!
    wait_for 10 grep -q '^listening on ' "$DIR/registry.log" || die "the registry does not start: $(cat "$DIR/registry.log")"
    REGISTRY=$(sed -n 's/^listening on //p' "$DIR/registry.log")
}

# Prints a subnet that nothing on this host has a route to, but for the default one.
free_subnet() {
    local octet
    for octet in {100..250}; do
        ip route show to match "10.$octet.77.1" | grep -qv ^default || break
    done
    printf '10.%s.0.0/16\n' "$octet"
}

# Has corten-cri use its built-in network, with a bridge of $DIR's own; for write_config.
use_builtin_network() {
    BUILTIN_SUBNET=$(free_subnet)
}

# Writes the CNI configuration of $DIR: a bridge of our own, on a subnet that nobody here routes to.
write_cni_config() {
    local subnet
    subnet=$(free_subnet)
    BRIDGE=$MARK
    mkdir -p "$DIR/cni"
    cat >"$DIR/cni/10-$MARK.conflist" <<JSON
{
  "cniVersion": "1.0.0",
  "name": "$MARK",
  "plugins": [
    {
      "type": "bridge",
      "bridge": "$BRIDGE",
      "isGateway": true,
      "ipMasq": false,
      "ipam": {
        "type": "host-local",
        "dataDir": "$DIR/leases",
        "ranges": [[{ "subnet": "$subnet" }]],
        "routes": [{ "dst": "0.0.0.0/0" }]
      }
    }
  ]
}
JSON
}

# Writes the server's configuration of $DIR.
write_config() {
    local conf_dir=$DIR/cni
    # Beside a configuration for another server the built-in network would not be used.
    [[ -z ${BUILTIN_SUBNET:-} ]] || conf_dir=$DIR/no-cni
    cat >"$DIR/config.toml" <<TOML
root = "$DIR/lib"
state = "$DIR/run"
listen = "$DIR/run/corten.sock"
netns_dir = "$DIR/run/netns"
cgroup_parent = "/$MARK"

[cni]
conf_dir = "$conf_dir"
bin_dirs = ["/opt/cni/bin", "/usr/lib/cni"]

[registries."$REGISTRY"]
plain_http = true

[network]
bridge = "$MARK"
subnets = ["${BUILTIN_SUBNET:-$(free_subnet)}"]
TOML
}

# Starts corten-cri in $DIR and waits for its socket; sets SERVER_PID and ENDPOINT.
start_server() {
    ENDPOINT=unix://$DIR/run/corten.sock
    # In a session of its own: --keep leaves it running when this terminal goes.
    setsid "$BIN/corten-cri" --config "$DIR/config.toml" </dev/null >"$DIR/cri.log" 2>&1 &
    SERVER_PID=$!
    wait_for 20 test -S "$DIR/run/corten.sock" || die "corten-cri does not start: $(tail -n 5 "$DIR/cri.log")"
}

# Writes containerd's configuration of $DIR, for the same network and registry as write_config's.
write_containerd_config() {
    cat >"$DIR/containerd.toml" <<TOML
version = 2
root = "$DIR/c8d/root"
state = "$DIR/c8d/run"

[grpc]
address = "$DIR/c8d.sock"

[plugins."io.containerd.internal.v1.opt"]
path = "$DIR/c8d/opt"

[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "$REGISTRY/pause:latest"
# Without CAP_SYS_RESOURCE nobody can lower oom_score_adj below his own.
restrict_oom_score_adj = true
disable_hugetlb_controller = true

[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "/usr/lib/cni"
conf_dir = "$DIR/cni"
TOML
}

# Starts Debian's containerd in $DIR and waits until it answers; sets CONTAINERD_PID. Its infra container runs our pause
# program, which a shim of ours must have put at $DIR/lib/pause before, so that pods compare.
start_containerd() {
    install -D "$DIR/lib/pause/pause" "$DIR/pause/pause"
    "$BIN/mkimage" --out "$DIR/images" --name pause:latest --add "$DIR/pause" --entrypoint /pause >/dev/null
    write_containerd_config
    containerd --config "$DIR/containerd.toml" </dev/null >"$DIR/containerd.log" 2>&1 &
    CONTAINERD_PID=$!
    wait_for 20 "$BIN/cri-client" --runtime-endpoint "unix://$DIR/c8d.sock" version ||
        die "containerd does not start: $(tail -n 5 "$DIR/containerd.log")"
}

# The beginning of a script that compares servers on pods, in network and mount namespaces of its own: $DIR, a registry with
# busybox, and a CNI configuration. The programs are in $BIN.
prepare_for_servers() {
    make_dir
    trap clean_up_servers EXIT
    ip link set lo up
    # containerd puts the sockets of its shims below /run/containerd, and results of plugins below /var/lib/cni, whatever its
    # configuration says.
    mount -t tmpfs tmpfs /run
    mount -t tmpfs tmpfs /var/lib
    "$BIN/mkimage" --out "$DIR/images" --name busybox:latest >/dev/null
    start_registry
    write_cni_config
}

# The end of a script that has started servers: everything of $DIR goes, and the exit code says whether it did.
clean_up_servers() {
    local status=$? pid
    trap - EXIT
    # Whoever read our output may have gone; what runs must end all the same.
    trap '' PIPE
    if [[ $status -ne 0 ]]; then tail -n 10 "$DIR"/*.log >&2 || true; fi
    for pid in ${SERVER_PID:-} ${CONTAINERD_PID:-} ${REGISTRY_PID:-}; do end_process "$pid"; done
    remove_marked "$MARK"
    [[ -z ${LOOP:-} ]] || losetup --detach "$LOOP"
    rm -rf -- "$DIR"
    exit_leaving_nothing "$status"
}

# Ends a process of ours and waits for it; SIGKILL after ten seconds.
end_process() {
    local pid=$1
    kill -TERM "$pid" 2>/dev/null || return 0
    wait_for 10 gone "$pid" || kill -KILL "$pid" 2>/dev/null || true
    wait "$pid" 2>/dev/null || true
}

# Whether a process has ended; a zombie has.
gone() {
    ! grep -qs '^State:[[:space:]]*[^ZX[:space:]]' "/proc/$1/status"
}

# Processes that carry the marker $1 in their arguments, this script, its subshells and its callers aside: with --stop,
# the marker is an argument of theirs too.
marked_processes() {
    local cmdline pid own=" " parent=$$
    while [[ $parent -gt 1 ]]; do
        own+="$parent "
        parent=$(awk '/^PPid:/ { print $2 }' "/proc/$parent/status")
    done
    for cmdline in /proc/[0-9]*/cmdline; do
        pid=${cmdline//[!0-9]/}
        [[ $own != *" $pid "* ]] || continue
        if grep -qsaF -- "$1" "$cmdline" && ! cmp -s "$cmdline" "/proc/$$/cmdline"; then echo "$pid"; fi
    done
}

# Processes of cgroups that carry the marker $1.
marked_cgroup_processes() {
    marked_cgroups "$1" | while read -r cgroup; do cat "$cgroup/cgroup.procs" 2>/dev/null || true; done | sort -u
}

# Cgroups that carry the marker $1, the deepest first.
marked_cgroups() {
    find /sys/fs/cgroup -depth -type d -path "*/$1*" 2>/dev/null || true
}

# Mount points that carry the marker $1, the latest first.
marked_mounts() {
    awk -v mark="$1" 'index($0, mark) { print $5 }' /proc/self/mountinfo | tac
}

# Removes by force what carries the marker $1. Where the server has done its work there is only the parent cgroup, which
# the script named and therefore owns, and the bridge, which a CNI plugin leaves to the administrator.
remove_marked() {
    local mark=$1 item
    for item in $(marked_cgroup_processes "$mark") $(marked_processes "$mark"); do kill -KILL "$item" 2>/dev/null || true; done
    marked_mounts "$mark" | while read -r item; do umount -l "$item" 2>/dev/null || true; done
    marked_cgroups "$mark" | while read -r item; do rmdir "$item" 2>/dev/null || true; done
    ip link delete "$mark" 2>/dev/null || true
}

# Everything of the marker $1 that is left, one line each.
left_behind() {
    local mark=$1 pid
    marked_mounts "$mark" | sed 's/^/mount /'
    marked_cgroups "$mark" | sed 's/^/cgroup /'
    ip -o link show | awk -F': ' -v mark="$mark" 'index($2, mark) || index($0, "master " mark) { print "link " $2 }'
    for pid in $(marked_processes "$mark"); do printf 'process %s %s\n' "$pid" "$(tr '\0' ' ' <"/proc/$pid/cmdline")"; done
    find /run/netns -maxdepth 1 -name "*$mark*" -printf 'netns %p\n' 2>/dev/null || true
    find /tmp -maxdepth 1 -name "$mark" -printf 'directory %p\n'
}

# Ends a script with $1, its exit code, and with a failure if anything of $MARK is left.
exit_leaving_nothing() {
    local left
    left=$(left_behind "$MARK")
    [[ -n $left ]] || exit "$1"
    printf 'left behind:\n%s\n' "$left" >&2
    exit 1
}
