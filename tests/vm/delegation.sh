#!/usr/bin/env bash
# Cgroups that a container makes below its own: with a user namespace and without, and what stays out of its reach.
# shellcheck disable=SC2016  # the commands are for the container's shell
# shellcheck source=tests/vm/lib.sh
source "$(dirname -- "$0")/lib.sh"
make_bundle
GROUP=$CGROUPS/delegation/nested
WRITABLE='(.mounts[] | select(.type == "cgroup").options) |= (. - ["ro"] + ["rw"])'
MAPPED='.linux.namespaces += [{ type: "user" }]
    | .linux.uidMappings = [{ containerID: 0, hostID: 100000, size: 65536 }] | .linux.gidMappings = .linux.uidMappings'
chown 100000:100000 "$BUNDLE"/rootfs/{tmp,data}

owner() {
    stat -c %u "$1"
}

# A container that is root on the host divides its memory, and moves away from the cgroup it began in.
configure 'cd /sys/fs/cgroup && mkdir -p inner/deeper && echo 0 >inner/deeper/cgroup.procs &&
    echo +memory >cgroup.subtree_control && echo 16777216 >inner/memory.max && touch /tmp/made; sleep 1000' \
    ".linux.cgroupsPath = \"/delegation/nested\" | $WRITABLE"
succeeds "run nested" runtime run --detach --bundle "$BUNDLE" nested
within 20 test -e "$BUNDLE/rootfs/tmp/made"
file_is "$GROUP/inner/memory.max" 16777216
equal "the cgroup of init" 0::/delegation/nested/inner/deeper "$(cat "/proc/$(pid_of nested)/cgroup")"
# The container's cgroup itself takes no process any more: it gives controllers to those below.
succeeds "exec where init has moved below" runtime exec nested cat /proc/self/cgroup
succeeds "pause" runtime pause nested
equal "a paused container" paused "$(status_of nested)"
succeeds "resume" runtime resume nested
echo 1 >"$GROUP/inner/cgroup.freeze"
succeeds "delete --force of a container that is frozen below" runtime delete --force nested
gone "$GROUP"
rm -f "$BUNDLE/rootfs/tmp/made"

# A user namespace's root is nobody on the host: what /sys/kernel/cgroup/delegate lists is made its own, limits are not.
configure 'cd /sys/fs/cgroup && mkdir inner && echo 0 >inner/cgroup.procs && echo made >/tmp/made; sleep 1000' \
    ".linux.cgroupsPath = \"/delegation/nested\" | .linux.resources.memory.limit = 67108864 | $WRITABLE | $MAPPED"
succeeds "run nested" runtime run --detach --bundle "$BUNDLE" nested
within 20 test -e "$BUNDLE/rootfs/tmp/made"
like "a cgroup made in a user namespace" "0::/delegation/nested/inner" "$(cat "/proc/$(pid_of nested)/cgroup")"
equal "owner of the cgroup" 100000 "$(owner "$GROUP")"
for file in cgroup.procs cgroup.subtree_control cgroup.threads; do equal "owner of $file" 100000 "$(owner "$GROUP/$file")"; done
for file in memory.max cpu.max pids.max cgroup.freeze; do equal "owner of $file" 0 "$(owner "$GROUP/$file")"; done
refused "raising its own memory.max" "*ermission denied*" runtime exec nested sh -c 'echo max >/sys/fs/cgroup/memory.max'
file_is "$GROUP/memory.max" 67108864
succeeds "delete --force" runtime delete --force nested
gone "$GROUP"

# Read-only cgroups are nobody's to divide.
configure "sleep 1000" ".linux.cgroupsPath = \"/delegation/nested\" | $MAPPED"
succeeds "run nested" runtime run --detach --bundle "$BUNDLE" nested
equal "owner of the cgroup where the mount is read-only" 0 "$(owner "$GROUP")"
refused "a cgroup made there" "*Read-only*" runtime exec nested mkdir /sys/fs/cgroup/inner
runtime delete --force nested

# cgroup-v2.rst, no internal process constraint: a cgroup with processes gives those below it no controllers.
mkdir "$CGROUPS/delegation/busy"
sleep 1000 &
resident=$!
echo "$resident" >"$CGROUPS/delegation/busy/cgroup.procs"
configure true '.linux.cgroupsPath = "/delegation/busy/below"'
succeeds "a container without limits below a cgroup with processes" runtime run --bundle "$BUNDLE" below
configure true '.linux.cgroupsPath = "/delegation/busy/below" | .linux.resources.memory.limit = 67108864'
refused "with a limit" "*memory.max*" runtime run --bundle "$BUNDLE" below
file_is "$CGROUPS/delegation/busy/cgroup.type" domain
kill "$resident"
within 10 rmdir "$CGROUPS/delegation/busy"
rmdir "$CGROUPS/delegation" || fail "the parent cgroup" empty "$(ls "$CGROUPS/delegation")"
finish
