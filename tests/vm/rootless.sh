#!/usr/bin/env bash
# An ordinary user with a cgroup delegated to it, as systemd does it for user@.service: limits, their change, the freezer,
# and the end of it; and the same user where nothing is delegated.
# shellcheck source=tests/vm/lib.sh
source "$(dirname -- "$0")/lib.sh"
make_bundle
ID=4321
DELEGATED=$CGROUPS/rootless
FOREIGN=$CGROUPS/rootless-foreign
SINGLE=".linux.namespaces += [{ type: \"user\" }]
    | .linux.uidMappings = [{ containerID: 0, hostID: $ID, size: 1 }] | .linux.gidMappings = .linux.uidMappings"
LIMITS='.linux.resources = { memory: { limit: 67108864 }, pids: { limit: 20 }, cpu: { quota: 50000, period: 200000 } }'

# The runtime as the user, in the cgroup that holds its session.
in_session() {
    local session=$1
    shift
    # shellcheck disable=SC2016  # the inner shell's own
    bash -c 'echo $$ >"$0/cgroup.procs" && exec "$@"' "$session" \
        setpriv --reuid "$ID" --regid "$ID" --clear-groups --bounding-set=-all -- "$RUNTIME" --root "$STATE" "$@"
}

mine() {
    in_session "$DELEGATED/session" "$@"
}

# shellcheck disable=SC2317  # called by name
foreign() {
    in_session "$FOREIGN/session" "$@"
}

echo "+cpu +memory +pids" >"$CGROUPS/cgroup.subtree_control"
mkdir -p "$DELEGATED/session" "$FOREIGN/session"
# What cgroup-v2.rst has to be given away, "Model of Delegation"; the limits of both stay root's.
for directory in "$DELEGATED" "$DELEGATED/session"; do
    chown "$ID:$ID" "$directory" "$directory"/cgroup.{procs,subtree_control,threads}
done
chown -R "$ID:$ID" "$BUNDLE/rootfs" "$STATE"

configure 'sleep 1000' "$SINGLE | $LIMITS"
succeeds "run limited" mine run --detach --bundle "$BUNDLE" limited
init=$(mine state limited | jq .pid)
place=$(sed -n 's/^0:://p' "/proc/$init/cgroup")
like "the cgroup of init" "/rootless/*limited*" "$place"
equal "the user of init" "$ID" "$(stat -c %u "/proc/$init")"
GROUP=$CGROUPS$place
equal "owner of the cgroup" "$ID" "$(stat -c %u "$GROUP")"
file_is "$GROUP/memory.max" 67108864
file_is "$GROUP/pids.max" 20
file_is "$GROUP/cpu.max" "50000 200000"
equal "exec" "0::/" "$(mine exec limited cat /proc/self/cgroup)"
succeeds "update" mine update --memory 33554432 --pids-limit 10 limited
file_is "$GROUP/memory.max" 33554432
file_is "$GROUP/pids.max" 10
# shellcheck disable=SC2016  # the container's shell's own
refused "more processes than pids.max" "*fork*" mine exec limited sh -c 'for i in 1 2 3 4 5 6 7 8 9 10 11 12; do sleep 5 & done; wait'
succeeds pause mine pause limited
equal "a paused container" paused "$(mine state limited | jq -r .status)"
file_is "$GROUP/cgroup.freeze" 1
succeeds resume mine resume limited
succeeds "delete --force" mine delete --force limited
gone "$GROUP"
gone "$STATE/limited"

# Nothing that could hold a limit: an error if one is asked for, and else no cgroup.
refused "a limit where nothing is delegated" "*cgroup*" foreign run --bundle "$BUNDLE" limited
configure 'cat /proc/self/cgroup' "$SINGLE"
succeeds "no limit where nothing is delegated" foreign run --bundle "$BUNDLE" free
gone "$STATE/free"
within 10 rmdir "$FOREIGN/session" "$FOREIGN"
find "$DELEGATED" -depth -mindepth 1 -type d -exec rmdir {} +
within 10 rmdir "$DELEGATED" || fail "the delegated cgroup" empty "$(ls "$DELEGATED")"
finish
