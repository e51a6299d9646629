#!/usr/bin/env bash
# The server on a machine with AppArmor: its default profile, profiles of the node, and pods with ids of their own on
# cgroup v2. Needs corten-cri, corten-shim, registry, mkimage and cri-client among the binaries.
# shellcheck source=tests/vm/lib.sh
source "$(dirname -- "$0")/lib.sh"
WORK=/var/tmp/$NAME
IMAGE=127.0.0.1:5000/busybox:1

client() {
    "$BINARIES/cri-client" --runtime-endpoint "unix://$WORK/run/corten.sock" "$@"
}

serve() {
    mkdir -p "$WORK"
    modprobe overlay
    printf 'cgroup_driver = "cgroupfs"\n[registries."127.0.0.1:5000"]\nplain_http = true\n' >"$WORK/config.toml"
    "$BINARIES/mkimage" --out "$WORK/layout" --name busybox:1 --busybox /bin/busybox >/dev/null || exit 100
    "$BINARIES/registry" --listen 127.0.0.1:5000 --dir "$WORK/layout" >/dev/null &
    "$BINARIES/corten-cri" --config "$WORK/config.toml" --root "$WORK/lib" --state "$WORK/run" \
        --listen "$WORK/run/corten.sock" >"$WORK/cri.log" 2>&1 &
    for _ in {1..600}; do
        client version >/dev/null 2>&1 && return
        sleep 0.1
    done
    cat "$WORK/cri.log"
    exit 100
}

# pod NAME NAMESPACE_OPTIONS: with the node's network, as the guest has no other.
pod() {
    jq -n --arg name "$1" --argjson options "$2" '{
        metadata: { name: $name, namespace: "n", uid: $name, attempt: 0 },
        log_directory: "/var/tmp/logs",
        linux: { security_context: { namespace_options: ({ network: 2, pid: 1 } + $options) } },
    }' >"$WORK/pod.json"
    client runp "$WORK/pod.json"
}

# create POD NAME NAMESPACE_OPTIONS SECURITY_CONTEXT
create() {
    jq -n --arg name "$2" --arg image "$IMAGE" --argjson options "$3" --argjson context "$4" '{
        metadata: { name: $name, attempt: 0 },
        image: { image: $image },
        command: ["sleep", "1000"],
        linux: { security_context: ({ namespace_options: ({ network: 2, pid: 1 } + $options) } + $context) },
    }' >"$WORK/container.json"
    client create "$1" "$WORK/container.json" "$WORK/pod.json" 2>&1
}

# started POD NAME NAMESPACE_OPTIONS SECURITY_CONTEXT
started() {
    local id
    id=$(create "$@") || { echo "$id" >&2; return 1; }
    client start "$id" >/dev/null && printf '%s\n' "$id"
}

sh_in() {
    client exec --sync "$1" sh -c "$2" 2>&1
}

serve
client pull "$IMAGE" >/dev/null || exit 100
like "the default profile is loaded at the start" '*corten-default (enforce)*' "$(cat /sys/kernel/security/apparmor/profiles)"
plain=$(pod plain '{}')
ADMIN='"capabilities": { "add_capabilities": ["SYS_ADMIN"] }'
LABEL='cat /proc/self/attr/apparmor/current'

silent=$(started "$plain" silent '{}' "{ $ADMIN }")
equal "label where nothing is asked for" "corten-default (enforce)" "$(sh_in "$silent" "$LABEL")"
like "a mount under it" '*ermission denied*' "$(sh_in "$silent" 'mount -t tmpfs x /tmp')"
like "a setting of the kernel under it" '*ermission denied*' "$(sh_in "$silent" 'echo 1 >/proc/sys/vm/drop_caches')"
like "the magic keys under it" '*ermission denied*' "$(sh_in "$silent" 'echo h >/proc/sysrq-trigger')"
equal "files, processes and signals under it" "done" \
    "$(sh_in "$silent" 'echo x >/file && sleep 100 & sleep 0.1; kill %1 2>/dev/null || kill $!; cat /proc/1/status >/dev/null && echo done')"

free=$(started "$plain" free '{}' "{ $ADMIN, \"apparmor\": { \"profile_type\": 1 } }")
equal "label of Unconfined" unconfined "$(sh_in "$free" "$LABEL")"
equal "a mount of Unconfined" "" "$(sh_in "$free" 'mount -t tmpfs x /tmp')"

printf 'profile vm-of-the-node flags=(attach_disconnected) { file, capability, signal, deny /denied w, }\n' |
    apparmor_parser --replace --skip-cache || exit 100
named=$(started "$plain" named '{}' '{ "apparmor": { "profile_type": 2, "localhost_ref": "vm-of-the-node" } }')
equal "label of Localhost" "vm-of-the-node (enforce)" "$(sh_in "$named" "$LABEL")"
like "what it denies" '*ermission denied*' "$(sh_in "$named" ': >/denied')"
old=$(started "$plain" old '{}' '{ "apparmor_profile": "localhost/vm-of-the-node" }')
equal "label of the deprecated field" "vm-of-the-node (enforce)" "$(sh_in "$old" "$LABEL")"
like "a profile that is not loaded" '*vm-not-loaded*must be loaded*' \
    "$(create "$plain" missing '{}' '{ "apparmor": { "profile_type": 2, "localhost_ref": "vm-not-loaded" } }')"

printf 'profile corten-default {}\n' | apparmor_parser --remove
again=$(started "$plain" again '{}' '{ "apparmor": { "profile_type": 0 }, "seccomp": { "profile_type": 0 } }')
equal "the default profile comes back when it has gone" "corten-default (enforce)" "$(sh_in "$again" "$LABEL")"
like "with a filter beside it" '*Seccomp:?2*' "$(sh_in "$again" 'grep Seccomp: /proc/self/status')"

MAP='[{ "host_id": 200000, "container_id": 0, "length": 65536 }]'
OWN="{ \"userns_options\": { \"mode\": 0, \"uids\": $MAP, \"gids\": $MAP } }"
mapped=$(pod mapped "$OWN")
inside=$(started "$mapped" inside "$OWN" '{ "seccomp": { "profile_type": 0 } }')
like "ids of a pod of its own" '*0 *200000 *65536' "$(sh_in "$inside" 'cat /proc/self/uid_map')"
equal "owners it sees" "0:0" "$(sh_in "$inside" 'stat -c %u:%g /bin/busybox')"
equal "its label" "corten-default (enforce)" "$(sh_in "$inside" "$LABEL")"

for one in "$plain" "$mapped"; do client stopp "$one" >/dev/null && client rmp "$one" >/dev/null; done
equal "mounts that are left" 0 "$(grep -c "$WORK/run/[sc]" /proc/self/mountinfo)"
finish
