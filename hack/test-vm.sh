#!/usr/bin/env bash
# The tests that need the virtual machine of hack/vm.sh: the scripts of tests/vm, and the OCI suite on cgroup v2.
#
#   sudo hack/test-vm.sh                              the round that hack/test.sh runs
#   sudo hack/test-vm.sh all                          every script, and the whole OCI suite, with both kernels
#   sudo hack/test-vm.sh -k bookworm limits.sh 'suite.sh mounts:: exec::'
#                                                     these alone; options before them are those of `hack/vm.sh run`
#   sudo hack/test-vm.sh power                        images across a power cut, alone
#   sudo hack/test-vm.sh confinement                  the server on a machine with AppArmor, alone
#   sudo hack/test-vm.sh service                      the server as a service of systemd, alone
#   sudo hack/test-vm.sh pods                         pods by the systemd driver, on cgroup v2 and from checkpoints, alone
#   sudo hack/test-vm.sh OCI_RUNTIME=/usr/bin/crun limits.sh
#                                                     with the guest's crun, or /usr/sbin/runc, in the place of corten:
#                                                     the control of the scripts themselves
set -euo pipefail
# shellcheck source=hack/lib.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/lib.sh"
PROFILE=dev

# With systemd: cgroups by both drivers, AppArmor, capabilities.
ROUND=(limits.sh devices.sh delegation.sh rootless.sh systemd.sh apparmor.sh privileges.sh checkpoint.sh)

# Of the suite what v2 makes different. Without systemd: with it some of these fail. It owns the root cgroup, and may well
# take back controllers there that no unit of its own needs, while tests in parallel make and remove cgroups below it.
SUITE="suite.sh cgroup::corten mounts::corten namespaces::corten exec::corten checkpoint::corten"

# Images: many layers, mapped layers, views, quotas; what of it falls back on the older kernel.
IMAGES="images.sh snapshot quota"

# Pods: scopes of systemd, limits on v2, crun as a handler, CRIU.
PODS="pods.sh cgroup_driver update:: resources:: mounts:: why:: checkpoint_criu"

SCRIPTS=(
    apparmor.sh checkpoint.sh delegation.sh devices.sh limits.sh privileges.sh rootless.sh systemd.sh
)

# With Linux 6.1: what falls back where the kernel lacks a call.
OLD_ROUND=(devices.sh "suite.sh mounts::corten rootfs::corten" "$IMAGES")

# Builds what the guest runs, unless the caller names the suites' executables in $OCI_SUITE, $IMAGE_SUITE and $CRI_SUITE: then all of it
# is there, as hack/test.sh has built it. Cargo would build dependencies again, because fewer packages ask for fewer features of them.
build_for_guest() {
    [[ -z ${OCI_SUITE:-} || -z ${IMAGE_SUITE:-} || -z ${CRI_SUITE:-} ]] || return 0
    say "build for the virtual machine"
    (cd "$REPO" && as_caller cargo build --quiet -p corten-runtime -p corten-shim -p corten-cri -p corten-tests --bins)
    OCI_SUITE=$(suite oci)
    IMAGE_SUITE=$(suite image)
    CRI_SUITE=$(suite cri)
}

# The executable of the test suite $1.
suite() {
    (cd "$REPO" && as_caller cargo test --quiet -p corten-tests --test "$1" --no-run --message-format=json |
        jq -r --arg name "$1" 'select(.profile.test and .target.name == $name).executable // empty')
}

# Puts it into $stage, without debug information: an input beyond 64 MiB costs a boot.
stage_binaries() {
    local bin program
    bin=$(binaries)
    mkdir -p "$stage/debug/deps"
    for program in corten probe as-user; do strip -o "$stage/debug/$program" "$bin/$program"; done
    strip -o "$stage/debug/deps/oci" "$OCI_SUITE"
    strip -o "$stage/debug/deps/image" "$IMAGE_SUITE"
    mkdir -p "$stage/pods/debug/deps"
    for program in corten corten-shim corten-cri; do strip -o "$stage/pods/debug/$program" "$bin/$program"; done
    strip -o "$stage/pods/debug/deps/cri" "$CRI_SUITE"
    mkdir -p "$stage/server/debug"
    for program in corten corten-cri corten-shim registry mkimage cri-client; do strip -o "$stage/server/debug/$program" "$bin/$program"; done
}

# Runs one guest with scripts; remembers what failed.
guest() {
    local name=$1 options=()
    shift
    while [[ $1 == -* ]]; do
        options+=("$1")
        if [[ $1 == -[kiorxtmca] ]]; then
            options+=("$2")
            shift
        fi
        shift
    done
    say "$name"
    "$REPO/hack/vm.sh" run -t 1500 -i "$stage/debug" -i "$REPO/tests/vm" "${options[@]}" "$REPO/tests/vm/round.sh" "$@" ||
        failed+=("$name: exit status $?")
}

# The server with everything it runs: AppArmor, and user namespaces on v2.
confinement() {
    say "the server, with systemd"
    "$REPO/hack/vm.sh" run -s -t 600 -i "$stage/server/debug" -i "$REPO/tests/vm" "$REPO/tests/vm/round.sh" confinement.sh ||
        failed+=("confinement.sh: exit status $?")
}

# The server as a service, by the units of hack/dist.
service() {
    say "the server as a service"
    "$REPO/hack/vm.sh" run -s -t 600 -i "$stage/server/debug" -i "$REPO/tests/vm" -i "$REPO/hack/dist" \
        "$REPO/tests/vm/round.sh" service.sh || failed+=("service.sh: exit status $?")
}

# Images across a power cut: the machine ends in the middle of a pull, and right after one, and starts again on its disk.
power_cut() {
    local moment code disk=$stage/power.img
    local run=("$REPO/hack/vm.sh" run -t 300 -r "$disk" -i "$stage/server/debug" -i "$REPO/tests/vm")
    for moment in half pull; do
        say "power cut: $moment"
        rm -f -- "$disk"
        code=0
        "${run[@]}" -x 'CUT NOW' "$REPO/tests/vm/round.sh" "power.sh $moment" || code=$?
        [[ $code == 137 ]] || failed+=("power.sh $moment: exit status $code")
        "${run[@]}" "$REPO/tests/vm/round.sh" "power.sh check-$moment" || failed+=("power.sh check-$moment")
    done
}

# Pods, in a guest of their own: with the binaries of the others the input would cost a boot more.
pods() {
    say "pods"
    "$REPO/hack/vm.sh" run -s -t 1500 -i "$stage/pods/debug" -i "$REPO/tests/vm" "$REPO/tests/vm/round.sh" "$PODS" ||
        failed+=("pods.sh: exit status $?")
}

main() {
    need_root
    find_toolchains
    began=$SECONDS
    install_packages binutils jq
    "$REPO/hack/vm.sh" build
    stage=$(mktemp -d /tmp/corten-vm-stage-XXXXXX)
    trap 'rm -rf -- "$stage"' EXIT
    build_for_guest
    stage_binaries
    failed=()
    case ${1:-} in
        "")
            guest "Linux 6.12 with systemd" -s "${ROUND[@]}"
            guest "Linux 6.12" "$SUITE" "$IMAGES"
            guest "Linux 6.1" -k bookworm "${OLD_ROUND[@]}"
            confinement
            service
            pods
            power_cut
            ;;
        all)
            for kernel in trixie bookworm; do
                guest "everything with systemd, kernel of $kernel" -s -k "$kernel" "${SCRIPTS[@]}"
                guest "the suites, kernel of $kernel" -k "$kernel" suite.sh "$IMAGES"
            done
            confinement
            pods
            power_cut
            ;;
        power) power_cut ;;
        confinement) confinement ;;
        service) service ;;
        pods) pods ;;
        *) guest "as asked" "$@" ;;
    esac
    printf '\n== virtual machine: %d s\n' "$((SECONDS - began))"
    [[ ${#failed[@]} -eq 0 ]] || die "$(printf '[%s] ' "${failed[@]}")"
}

# Called last: bash has read all of the script before any of it runs.
main "$@"
