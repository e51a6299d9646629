#!/usr/bin/env bash
# Limits of every controller of cgroup v2, read back from the container's cgroup, and those that can be felt, felt.
# shellcheck disable=SC2016  # the commands are for the container's shell
# shellcheck source=tests/vm/lib.sh
source "$(dirname -- "$0")/lib.sh"
make_bundle
GROUP=$CGROUPS/limits/all
disk=$(cat "$(dirname -- "$(grep -lx root /sys/block/vd*/serial)")/dev")

# Without a value every file still holds what a new cgroup has.
configure "sleep 1000" '.linux.cgroupsPath = "/limits/none"'
succeeds "run none" runtime run --detach --bundle "$BUNDLE" none
for file in memory.max memory.swap.max pids.max; do file_is "$CGROUPS/limits/none/$file" max; done
file_is "$CGROUPS/limits/none/cpu.weight" 100
file_is "$CGROUPS/limits/none/cpu.max" "max 100000"
runtime delete --force none

configure "sleep 1000" '.linux.cgroupsPath = "/limits/all" | .linux.resources = {
    memory: { limit: 67108864, swap: 100663296, reservation: 33554432 },
    cpu: { shares: 512, quota: 50000, period: 200000, burst: 1000, cpus: "0", mems: "0" },
    pids: { limit: 20 },
    hugepageLimits: [{ pageSize: "2MB", limit: 4194304 }],
    unified: { "memory.high": "50331648" }
}'
succeeds "run all" runtime run --detach --bundle "$BUNDLE" all
file_is "$GROUP/memory.max" 67108864
# The specification limits memory and swap together, v2 swap alone.
file_is "$GROUP/memory.swap.max" 33554432
file_is "$GROUP/memory.low" 33554432
file_is "$GROUP/memory.high" 50331648
file_is "$GROUP/cpu.max" "50000 200000"
file_is "$GROUP/cpu.max.burst" 1000
file_is "$GROUP/cpu.weight" 59
file_is "$GROUP/cpuset.cpus" 0
file_is "$GROUP/cpuset.cpus.effective" 0
file_is "$GROUP/cpuset.mems" 0
file_is "$GROUP/pids.max" 20
file_is "$GROUP/hugetlb.2MB.max" 4194304
file_is "$GROUP/hugetlb.2MB.rsvd.max" 4194304
equal "the cgroup of init" "0::/limits/all" "$(cat "/proc/$(pid_of all)/cgroup")"
equal "the same, as the container sees it" "0::/" "$(runtime exec all cat /proc/self/cgroup)"
equal "its control files inside" 67108864 "$(runtime exec all cat /sys/fs/cgroup/memory.max)"
equal "processors it may use" "Cpus_allowed_list:	0" "$(runtime exec all grep Cpus_allowed_list /proc/self/status)"
runtime delete --force all
gone "$GROUP"

# One line per device, with what is not limited.
device='major: '${disk%:*}', minor: '${disk#*:}
configure "sleep 1000" ".linux.cgroupsPath = \"/limits/io\" | .linux.resources.blockIO = {
    throttleReadBpsDevice: [{ $device, rate: 1048576 }], throttleWriteIOPSDevice: [{ $device, rate: 100 }] }"
succeeds "run io" runtime run --detach --bundle "$BUNDLE" io
file_is "$CGROUPS/limits/io/io.max" "$disk rbps=1048576 wbps=max riops=max wiops=100"
runtime delete --force io

# The weight of a device needs a scheduler that knows weights.
scheduler=/sys/dev/block/$disk/queue/scheduler
modprobe bfq 2>/dev/null
if echo bfq >"$scheduler" 2>/dev/null; then
    configure "sleep 1000" '.linux.cgroupsPath = "/limits/weight" | .linux.resources.blockIO = { weight: 500 }'
    succeeds "run weight" runtime run --detach --bundle "$BUNDLE" weight
    like "io.bfq.weight" "*500*" "$(cat "$CGROUPS/limits/weight/io.bfq.weight")"
    runtime delete --force weight
else
    skip io.bfq.weight "this kernel has no BFQ"
fi

# rdma.max takes a device's name; a software one does.
modprobe rdma_rxe 2>/dev/null && ip link add rdma0 type dummy && ip link set rdma0 up
if rdma link add test0 type rxe netdev rdma0 2>/dev/null; then
    configure "sleep 1000" '.linux.cgroupsPath = "/limits/rdma" | .linux.resources.rdma = { test0: { hcaHandles: 3, hcaObjects: 1000 } }'
    succeeds "run rdma" runtime run --detach --bundle "$BUNDLE" rdma
    like "rdma.max" "*test0 hca_handle=3 hca_object=1000*" "$(cat "$CGROUPS/limits/rdma/rdma.max")"
    runtime delete --force rdma
    rdma link delete test0
else
    configure true '.linux.cgroupsPath = "/limits/rdma" | .linux.resources.rdma = { test0: { hcaHandles: 3 } }'
    refused "rdma of a device that is not there" "*rdma*" runtime run --bundle "$BUNDLE" rdma
    gone "$CGROUPS/limits/rdma"
fi

# misc has a line per resource of the processor, of which an emulated one has none.
configure true '.linux.cgroupsPath = "/limits/misc" | .linux.resources.unified = { "misc.max": "sev 1" }'
refused "misc of a resource that is not there" "*misc.max*" runtime run --bundle "$BUNDLE" misc
gone "$CGROUPS/limits/misc"

# Felt: memory, with the verdict; processes; processor time.
configure 'dd if=/dev/zero of=/dev/null bs=64M count=1' \
    '.linux.cgroupsPath = "/limits/oom" | .linux.resources.memory = { limit: 33554432, swap: 33554432 }'
succeeds "create oom" runtime create --bundle "$BUNDLE" oom
runtime start oom
within 20 grep -qx 'oom_kill 1' "$CGROUPS/limits/oom/memory.events"
like "memory.events of an allocation beyond memory.max" "*oom_kill 1"* "$(cat "$CGROUPS/limits/oom/memory.events")"
runtime delete --force oom

# Busybox' shell gives up at the first fork that fails.
configure 'n=0; while [ $n -lt 30 ]; do sleep 20 & n=$((n + 1)); done' \
    '.linux.cgroupsPath = "/limits/pids" | .linux.resources.pids = { limit: 10 }'
refused "a fork beyond pids.max" "*fork*" runtime run --bundle "$BUNDLE" pids

configure 'n=0; while [ $n -lt 5000 ]; do n=$((n + 1)); done; cat /sys/fs/cgroup/cpu.stat' \
    '.linux.cgroupsPath = "/limits/cpu" | .linux.resources.cpu = { quota: 10000, period: 100000 }'
succeeds "a loop with a tenth of a processor" runtime run --bundle "$BUNDLE" cpu
throttled=$(sed -n 's/^nr_throttled //p' <<<"$output")
if [[ ${throttled:-0} -gt 0 ]]; then pass nr_throttled "$throttled"; else fail nr_throttled "more than 0" "$throttled"; fi

# Refused before anything is made, or undone.
for case in 'cpu = { cpus: "4095" }' 'unified = { "memory.nosuch": "1" }' 'unified = { "../escape": "1" }' 'memory = { swappiness: 5 }'; do
    configure true ".linux.cgroupsPath = \"/limits/refused\" | .linux.resources.$case"
    refused "$case" "*" runtime run --bundle "$BUNDLE" refused
    gone "$CGROUPS/limits/refused"
done
rmdir "$CGROUPS/limits" || fail "the parent cgroup" "empty" "$(ls "$CGROUPS/limits")"
finish
