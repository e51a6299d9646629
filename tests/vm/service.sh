#!/usr/bin/env bash
# The server as a service of a real systemd, by the units of hack/dist: ready, reloaded, killed, hanging, started by its
# socket; the pod goes on through all of it. Needs corten, corten-cri, corten-shim, registry, mkimage and cri-client among the
# binaries, and hack/dist.
# shellcheck source=tests/vm/lib.sh
source "$(dirname -- "$0")/lib.sh"
WORK=/var/tmp/$NAME
IMAGE=127.0.0.1:5000/busybox:1
DIST=/vm/in/dist
SOCKET=/run/corten/corten.sock

client() {
    "$BINARIES/cri-client" --runtime-endpoint "unix://$SOCKET" "$@"
}

property() {
    systemctl show --property "$1" --value corten-cri.service
}

# shellcheck disable=SC2317  # called by `within`
restarted() {
    [[ $(property NRestarts) == "$1" && $(property ActiveState) == active ]]
}

# restarts_to WHAT COUNT
restarts_to() {
    within 60 restarted "$2"
    equal "$1" "$2 active" "$(property NRestarts) $(property ActiveState)"
}

# The container is the same process, and can be reached.
pod_lives() {
    equal "the container $1" "$process up" \
        "$(pgrep -f '^sleep 98765$') $(client exec --sync "$container" echo up 2>&1)"
}

install_all() {
    mkdir -p "$WORK" "$BUNDLE" /etc/corten/conf.d
    modprobe overlay
    install "$BINARIES"/{corten,corten-cri,corten-shim} /usr/local/bin/
    install -m 644 "$DIST"/systemd/corten-cri.{service,socket} /etc/systemd/system/
    mkdir -p /etc/systemd/system/corten-cri.service.d
    printf '[Service]\nWatchdogSec=3\nTimeoutAbortSec=2\n' >/etc/systemd/system/corten-cri.service.d/short.conf
    printf '[registries."127.0.0.1:5000"]\nplain_http = true\n' >/etc/corten/config.toml
    "$BINARIES/mkimage" --out "$WORK/layout" --name busybox:1 --busybox /bin/busybox >/dev/null || exit 100
    "$BINARIES/registry" --listen 127.0.0.1:5000 --dir "$WORK/layout" >/dev/null &
    systemctl daemon-reload
}

start_pod() {
    jq -n '{
        metadata: { name: "served", namespace: "n", uid: "served", attempt: 0 },
        log_directory: "/var/tmp/logs",
        linux: { security_context: { namespace_options: { network: 2, pid: 1 } } },
    }' >"$WORK/pod.json"
    jq -n --arg image "$IMAGE" '{
        metadata: { name: "one", attempt: 0 },
        image: { image: $image },
        command: ["sleep", "98765"],
        linux: { security_context: { namespace_options: { network: 2, pid: 1 } } },
    }' >"$WORK/container.json"
    client pull "$IMAGE" >/dev/null || exit 100
    pod=$(client runp "$WORK/pod.json") || exit 100
    container=$(client create "$pod" "$WORK/container.json" "$WORK/pod.json") || exit 100
    client start "$container" >/dev/null || exit 100
    process=$(pgrep -f '^sleep 98765$')
}

install_all
succeeds "systemd takes the units" systemd-analyze verify --man=no /etc/systemd/system/corten-cri.{service,socket}
succeeds "the service starts" systemctl start corten-cri.service
equal "it is active, and says where it serves" "active serving at $SOCKET" "$(property ActiveState) $(property StatusText)"
succeeds "and answers at once" client version
equal "its badness for the kernel's choice" -999 "$(cat "/proc/$(property MainPID)/oom_score_adj")"
start_pod
like "cgroup_driver auto is systemd: the container's scope" '*corten-*.scope*' "$(systemctl list-units --plain --no-legend 'corten-*.scope')"
equal "the shim cannot speak for the server" 0 \
    "$(tr '\0' '\n' <"/proc/$(pgrep -o corten-shim)/environ" | grep -cE '^(NOTIFY_SOCKET|WATCHDOG|LISTEN)')"

main=$(property MainPID)
printf '[cni]\ntimeout_s = 41\n' >/etc/corten/conf.d/10.toml
succeeds "a reload" systemctl reload corten-cri.service
like "what is in force" '*cni.timeout_s = 41  # /etc/corten/conf.d/10.toml:2*' "$(corten-cri config show --running)"
printf '[cni]\ntimeout_s = 0\n' >/etc/corten/conf.d/10.toml
refused "a reload of a bad file" '*' systemctl reload corten-cri.service
like "what is in force still" '*cni.timeout_s = 41 *' "$(corten-cri config show --running --toml 2>&1)"
printf '[cni]\ntimeout_s = 42\n' >/etc/corten/conf.d/10.toml
kill -HUP "$main"
sleep 2
like "SIGHUP does the same" '*cni.timeout_s = 42 *' "$(corten-cri config show --running 2>&1)"
equal "the server is the same" "$main active" "$(property MainPID) $(property ActiveState)"

kill -KILL "$main"
restarts_to "restarted after SIGKILL" 1
pod_lives "after it"
sleep 5
equal "its watchdog is content" "1 active" "$(property NRestarts) $(property ActiveState)"
kill -STOP "$(property MainPID)"
restarts_to "restarted by its watchdog when it hangs" 2
pod_lives "after that"

succeeds "the service stops" systemctl stop corten-cri.service
equal "the container without it" "$process" "$(pgrep -f '^sleep 98765$')"
succeeds "systemd listens" systemctl start corten-cri.socket
equal "mode of its socket" 600 "$(stat -c %a $SOCKET)"
succeeds "a call starts the service" client version
equal "it is active by its socket" active "$(property ActiveState)"
pod_lives "with the socket of systemd"
succeeds "the service restarts" systemctl restart corten-cri.service
succeeds "and answers" client version

client stopp "$pod" >/dev/null && client rmp "$pod" >/dev/null
systemctl stop corten-cri.socket corten-cri.service 2>/dev/null
equal "shims that are left" 0 "$(pgrep -c corten-shim)"
finish
