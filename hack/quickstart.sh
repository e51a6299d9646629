#!/usr/bin/env bash
# Builds Corten and runs a pod with it, from the pull of its image to its removal, and leaves nothing behind.
#
#   sudo hack/quickstart.sh              builds, shows every step with what it printed, cleans up
#   sudo hack/quickstart.sh --keep       leaves the server up, and prints its endpoint and what to try next
#   sudo hack/quickstart.sh --stop DIR   ends a server that --keep has left
#   sudo hack/quickstart.sh --cni        with Debian's CNI plugins instead of the built-in network; also with --keep
#
# It installs the Debian packages it lacks, and works in a directory below /tmp with a bridge of its own: nothing that is
# installed on this machine, no other runtime and no configuration is touched; no CNI plugin is needed. The steps are crictl's; where Go or its
# module proxy cannot be had, cri-client of tests/ drives them instead.
#
# CORTEN_PROFILE=dev builds without optimisation, which saves minutes.
set -euo pipefail
# shellcheck source=hack/lib.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/lib.sh"

keep=
stop=
cni=
while [[ $# -gt 0 ]]; do
    case $1 in
        --keep) keep=yes ;;
        --cni) cni=yes ;;
        --stop)
            stop=${2:?--stop needs the directory that --keep has printed}
            shift
            ;;
        *) die "unknown argument $1: --keep, --cni, --stop DIR or nothing" ;;
    esac
    shift
done

# The port of the node that leads to the pod, with the built-in network.
HOST_PORT=18080

# Shows a command as a user would type it, runs it, and shows what it printed.
step() {
    local word shown=crictl
    for word in "$@"; do
        [[ $word != *[^[:alnum:]/:._=-]* ]] || word=${word@Q}
        shown+=" $word"
    done
    printf '\n$ %s\n' "$shown" >&2
    "${client[@]}" "$@"
}

# Shows the step, keeps what it printed in the variable $1: an id, mostly.
step_into() {
    local -n into=$1
    shift
    into=$(step "$@")
    printf '%s\n' "$into"
}

# Puts crictl, or what stands in for it, into `client`.
choose_client() {
    local crictl=${CARGO_TARGET_DIR:-$REPO/target}/tools/crictl reason
    as_caller mkdir -p "$(dirname -- "$crictl")"
    if reason=$(build_crictl "$crictl" 2>&1); then
        # An empty configuration: this machine's /etc/crictl.yaml may name another runtime.
        : >"$DIR/crictl.yaml"
        client=("$crictl" --config "$DIR/crictl.yaml" --runtime-endpoint "$ENDPOINT" --image-endpoint "$ENDPOINT")
    else
        printf 'crictl cannot be built (%s): cri-client of tests/ drives the steps instead\n' "$(tail -n 1 <<<"$reason")"
        build cri-client
        client=("$BIN/cri-client" --runtime-endpoint "$ENDPOINT")
    fi
}

# What the pod and its container are made of: as a kubelet asks, each container has a process namespace of its own.
write_requests() {
    mkdir -p "$DIR/logs"
    cat >"$DIR/pod.json" <<JSON
{
  "metadata": { "name": "hello", "namespace": "default", "uid": "quickstart", "attempt": 0 },
  "hostname": "hello",
  "log_directory": "$DIR/logs",
  "port_mappings": [{ "container_port": 8080, "host_port": $HOST_PORT }],
  "linux": { "cgroup_parent": "/$MARK", "security_context": { "namespace_options": { "pid": 1 } } }
}
JSON
    sed 's/"hello"/"visitor"/; s/"quickstart"/"quickstart-visitor"/; /port_mappings/d' "$DIR/pod.json" >"$DIR/visitor.json"
    cat >"$DIR/container.json" <<JSON
{
  "metadata": { "name": "main" },
  "image": { "image": "$image" },
  "command": ["sh", "-c", "echo \"a container of Corten, on host \$(hostname), process \$\$\"; echo a page of a pod >/tmp/index.html; exec httpd -f -p 8080 -h /tmp"],
  "log_path": "main.log",
  "labels": { "io.kubernetes.pod.name": "hello", "io.kubernetes.pod.namespace": "default" },
  "linux": { "security_context": { "namespace_options": { "pid": 1 } } }
}
JSON
}

# A pod's whole life; what each step prints is shown.
show() {
    local pod container
    step pull "$image"
    step images
    step_into pod runp "$DIR/pod.json"
    step_into container create "$pod" "$DIR/container.json" "$DIR/pod.json"
    step start "$container"
    step pods
    step ps
    # Without --sync, exec needs the streaming server, which is not built yet.
    step exec --sync "$container" ip -4 -o addr show eth0
    step exec --sync "$container" sh -c 'id; cat /proc/1/cmdline | tr "\0" " "; echo'
    wait_for 10 grep -q 'a container of Corten' "$DIR/logs/main.log" || die "the container has written nothing"
    step logs "$container"
    [[ -n $cni ]] || show_network "$container"
    step stop "$container"
    step ps -a
    step rm "$container"
    step stopp "$pod"
    step rmp "$pod"
}

# Who reaches the pod of container $1: the host, another pod, and whoever asks a port of the host.
show_network() {
    local address visitor guest
    address=$("${client[@]}" exec --sync "$1" ip -4 -o addr show eth0 | awk '{ sub("/.*", "", $4); print $4 }')
    say "the pod from the host, by its address and by a port of the host"
    fetch "http://$address:8080/"
    fetch "http://127.0.0.1:$HOST_PORT/"
    say "the pod from another pod"
    step_into visitor runp "$DIR/visitor.json"
    step_into guest create "$visitor" "$DIR/container.json" "$DIR/visitor.json"
    step start "$guest"
    step exec --sync "$guest" wget -q -O- "http://$address:8080/"
    say "what the built-in network knows"
    printf '\n$ corten-cri network show\n'
    "$BIN/corten-cri" --config "$DIR/config.toml" network show
    step rmp --force "$visitor"
}

# Prints what a server at $1 answers, and fails unless it is the pod's page.
fetch() {
    local page
    printf '\n$ wget -O- %s\n' "$1"
    page=$(busybox wget -q -O- "$1") || die "$1: no answer"
    [[ $page == 'a page of a pod' ]] || die "$1: not the pod's page: $page"
    printf '%s\n' "$page"
}

# Ends what runs in $DIR by its own means first, then by force, and removes the directory.
clean_up() {
    local status=$? left pid
    trap - EXIT
    # Whoever read our output may have gone; what runs must end all the same.
    trap '' PIPE
    if [[ $status -ne 0 && -s $DIR/cri.log ]]; then
        printf '\n-- the end of the log of corten-cri\n' >&2
        tail -n 20 "$DIR/cri.log" >&2
    fi
    for pid in ${SERVER_PID:-} ${REGISTRY_PID:-}; do end_process "$pid"; done
    # The bridge and its table of the packet filter stay with the node, as a server that comes back needs them.
    [[ -n $cni || ! -s $DIR/config.toml ]] || "$BIN/corten-cri" --config "$DIR/config.toml" network remove --force || status=1
    remove_marked "$MARK"
    # Either network turns forwarding on for the whole host.
    [[ ! -s $DIR/ip_forward ]] || cat "$DIR/ip_forward" >/proc/sys/net/ipv4/ip_forward
    rm -rf -- "$DIR"
    left=$(left_behind "$MARK")
    if [[ -n $left ]]; then
        printf 'left behind:\n%s\n' "$left" >&2
        status=1
    elif [[ $status -eq 0 ]]; then
        say "nothing is left: no mount, cgroup, network namespace, bridge, process or file"
    fi
    exit "$status"
}

# Ends a server that --keep has left.
stop_kept() {
    [[ $1 == /tmp/ct-?????? && -s $1/pids ]] || die "$1: not a directory that --keep has made"
    DIR=$1
    MARK=${DIR##*/}
    BIN=$(binaries)
    read -r SERVER_PID REGISTRY_PID <"$DIR/pids"
    ENDPOINT=unix://$DIR/run/corten.sock
    trap clean_up EXIT
    choose_client
    "${client[@]}" rmp --all --force
}

tell_what_next() {
    printf '%s %s\n' "$SERVER_PID" "$REGISTRY_PID" >"$DIR/pids"
    trap - EXIT
    say "corten-cri is up; its log is $DIR/cri.log"
    cat <<TEXT
endpoint:  $ENDPOINT

try next:
  alias crictl='sudo ${client[*]}'
  crictl pull $image
  crictl runp $DIR/pod.json
  crictl create POD $DIR/container.json $DIR/pod.json
  crictl start CONTAINER; crictl ps; crictl logs CONTAINER; crictl exec --sync CONTAINER sh -c 'ps; ip addr'
  sudo kill -9 $SERVER_PID     the pods live on
  sudo $BIN/corten-cri --config $DIR/config.toml &     and are known again

end it:    sudo $0 --stop $DIR
TEXT
}

main() {
    need_root
    find_toolchains
    if [[ -n $stop ]]; then
        stop_kept "$stop"
        exit
    fi

    began=$SECONDS
    install_packages "${BUILD_PACKAGES[@]}" "${RUN_PACKAGES[@]}" ${cni:+"${CNI_PACKAGES[@]}"}
    say "build corten, corten-shim, corten-cri ($PROFILE)"
    build corten corten-shim corten-cri mkimage registry
    BIN=$(binaries)
    make_dir
    trap clean_up EXIT
    trap 'exit 130' INT
    trap 'exit 143' TERM
    cat /proc/sys/net/ipv4/ip_forward >"$DIR/ip_forward"

    say "a registry on loopback with a busybox image, and corten-cri"
    "$BIN/mkimage" --out "$DIR/images" --name busybox:latest
    start_registry
    image=$REGISTRY/busybox:latest
    if [[ -n $cni ]]; then write_cni_config; else use_builtin_network; fi
    write_config
    start_server
    printf 'endpoint %s\n' "$ENDPOINT"
    choose_client
    write_requests

    say "a pod, step by step"
    show
    say "done in $((SECONDS - began)) s"
    [[ -z $keep ]] || tell_what_next
}

# Called last: bash has read all of the script before any of it runs.
main "$@"
