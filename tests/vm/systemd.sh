#!/usr/bin/env bash
# The systemd driver: a container is a transient scope that systemd knows with its limits, from create to delete.
# shellcheck disable=SC2016  # the commands are for the container's shell
# shellcheck source=tests/vm/lib.sh
source "$(dirname -- "$0")/lib.sh"
make_bundle
RUNTIME_NAME=${RUNTIME##*/}

driven() {
    runtime --systemd-cgroup "$@"
}

property() {
    systemctl show --property "$2" --value "$1"
}

# property_is UNIT PROPERTY EXPECTED
property_is() {
    equal "$1 $2" "$3" "$(property "$1" "$2")"
}

# shellcheck disable=SC2317  # called by `within`
unloaded() {
    [[ $(property "$1" LoadState) == not-found || $(property "$1" ActiveState) == inactive ]]
}

unit_gone() {
    within 20 unloaded "$1"
    equal "$1 is unloaded" "not-found inactive" "$(property "$1" LoadState) $(property "$1" ActiveState)"
}

LIMITS='.linux.resources = {
    memory: { limit: 67108864, swap: 100663296, reservation: 33554432 },
    cpu: { shares: 512, quota: 50000, period: 200000, cpus: "0", mems: "0" },
    pids: { limit: 20 },
    devices: [{ allow: false, access: "rwm" }, { allow: true, type: "c", major: 10, minor: 200, access: "r" }] }'
SCOPE=test-driven.scope
GROUP=$CGROUPS/test.slice/test-one.slice/$SCOPE

limits_are() {
    local when=$1 memory=$2 pids=$3
    file_is "$GROUP/memory.max" "$memory"
    file_is "$GROUP/memory.low" 33554432
    file_is "$GROUP/pids.max" "$pids"
    file_is "$GROUP/cpu.max" "50000 200000"
    file_is "$GROUP/cpu.weight" 59
    file_is "$GROUP/cpuset.cpus" 0
    property_is $SCOPE MemoryMax "$memory"
    property_is $SCOPE TasksMax "$pids"
    printf '   (%s)\n' "$when"
}

# Start.
configure "mknod /dev/k c 10 200; sleep 1000" ".linux.cgroupsPath = \"test-one.slice:test:driven\" | $LIMITS"
succeeds "create" driven create --bundle "$BUNDLE" driven
equal "state" created "$(status_of driven)"
property_is $SCOPE ActiveState active
succeeds start driven start driven
equal "the cgroup of init" "0::/test.slice/test-one.slice/$SCOPE" "$(cat "/proc/$(pid_of driven)/cgroup")"
limits_are "when started" 67108864 20
property_is $SCOPE MemorySwapMax 33554432
property_is $SCOPE MemoryLow 33554432
property_is $SCOPE CPUQuotaPerSecUSec 250ms
property_is $SCOPE CPUQuotaPeriodUSec 200ms
property_is $SCOPE CPUWeight 59
property_is $SCOPE AllowedCPUs 0
property_is $SCOPE AllowedMemoryNodes 0
property_is $SCOPE Delegate yes
property_is $SCOPE Slice test-one.slice
property_is $SCOPE ControlGroup "/test.slice/test-one.slice/$SCOPE"
property_is $SCOPE DevicePolicy strict
within 10 test -e "/proc/$(pid_of driven)/root/dev/k"
equal "a device that is allowed for reading" "read" "$(driven exec driven sh -c '(: </dev/k) && echo read; (: >/dev/k) 2>/dev/null && echo written')"

# systemd writes what it believes again: nothing may be lost.
systemctl daemon-reload
limits_are "after daemon-reload" 67108864 20
equal "devices after daemon-reload" "read" "$(driven exec driven sh -c '(: </dev/k) && echo read; (: >/dev/k) 2>/dev/null && echo written')"

# Update.
succeeds update driven update --memory 50331648 --memory-swap 100663296 --pids-limit 33 driven
limits_are "after update" 50331648 33
systemctl daemon-reload
limits_are "after update and daemon-reload" 50331648 33

# D-Bus costs an exec more than everything else in it.
succeeds exec strace -f -qq -e trace=connect -o "$BUNDLE/trace" "$RUNTIME" --root "$STATE" --systemd-cgroup exec driven true
equal "sockets that exec connects to" "" "$(grep -E 'dbus|systemd' "$BUNDLE/trace")"
equal "the cgroup of exec" "0::/" "$(driven exec driven cat /proc/self/cgroup)"

succeeds pause driven pause driven
equal "state when paused" paused "$(status_of driven)"
succeeds resume driven resume driven

# Stop and delete.
succeeds kill driven kill driven KILL
within 20 unloaded $SCOPE
succeeds delete driven delete --force driven
unit_gone $SCOPE
gone "$GROUP"

# Whoever stops the scope stops the container.
succeeds "run driven" driven run --detach --bundle "$BUNDLE" driven
succeeds "systemctl stop" systemctl stop $SCOPE
within 10 eval '[[ $(status_of driven) == stopped ]]'
equal "state after systemctl stop" stopped "$(status_of driven)"
succeeds "delete after systemctl stop" driven delete driven
unit_gone $SCOPE

# Without a path: the slice of system services, and the runtime's own name.
configure "sleep 1000"
succeeds "run nameless" driven run --detach --bundle "$BUNDLE" nameless
equal "the cgroup without a path" "0::/system.slice/$RUNTIME_NAME-nameless.scope" "$(cat "/proc/$(pid_of nameless)/cgroup")"
succeeds "delete --force" driven delete --force nameless
unit_gone "$RUNTIME_NAME-nameless.scope"

# Properties by annotation.
configure "sleep 1000" '.linux.cgroupsPath = "system.slice:test:annotated" | .annotations = {
    "org.systemd.property.TimeoutStopUSec": "uint64 7000000", "org.systemd.property.CollectMode": "\"inactive-or-failed\"" }'
succeeds "run annotated" driven run --detach --bundle "$BUNDLE" annotated
property_is test-annotated.scope TimeoutStopUSec 7s
property_is test-annotated.scope CollectMode inactive-or-failed
driven delete --force annotated

# A container in systemd's and one in its own way know nothing of each other.
configure "sleep 1000" '.linux.cgroupsPath = "/systemd-test/plain"'
succeeds "run plain" runtime run --detach --bundle "$BUNDLE" plain
file_is "$CGROUPS/systemd-test/plain/pids.max" max
runtime delete --force plain
rmdir "$CGROUPS/systemd-test"

# Failures leave no unit.
configure true '.linux.cgroupsPath = "system.slice:test:failed" | .process.args = ["/nowhere"]'
refused "a program that is not there" "*nowhere*" driven run --bundle "$BUNDLE" failed
unit_gone test-failed.scope
configure true '.linux.cgroupsPath = "/not/of/systemd"'
refused "a path that is not SLICE:PREFIX:NAME" "*cgroupsPath*" driven run --bundle "$BUNDLE" failed
systemctl stop test-one.slice test.slice
finish
