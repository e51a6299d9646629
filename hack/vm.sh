#!/usr/bin/env bash
# A virtual machine for what this machine may not have: cgroup v2 alone, systemd, AppArmor, every capability, other
# kernels. It is made from Debian packages and runs without hardware virtualisation, so it works in any container.
#
#   sudo hack/vm.sh build                             make the root image and the kernels; what is there stays
#   sudo hack/vm.sh snap [-s] [-k K] [-m MIB] [-c N]  keep a booted machine: `run` with the same options begins there
#   sudo hack/vm.sh run [OPTION..] SCRIPT [ARG..]     run SCRIPT as root in the guest
#
#   -s           systemd is process 1, with D-Bus; without, a small init that mounts what a system has
#   -k KERNEL    trixie (Linux 6.12, the default) or bookworm (6.1)
#   -i PATH      a file or directory to put into /vm/in, where the script starts; any number of times
#   -o DIR       what the script leaves in /vm/out is put there
#   -r FILE      a root disk that stays, made if missing: for reboots and power cuts
#   -x REGEX     cut the power when a line of output matches
#   -t SECONDS   how long it may take (300)
#   -m MIB       memory (2048)
#   -c N         processors (2)
#   -a STRING    more of the kernel's command line
#   --cold       boot even if a machine was kept; -r and -a imply it
#
# The script's stdout and stderr come out here as they are written, and its exit status is this command's. Otherwise it
# is 124 out of time, 125 for what this script could not do, 126 for a guest that ended by itself, 137 after a power cut.
# The guest has no network but its loopback. A kept machine repeats its boot_id; its random numbers are seeded anew.
#
# $CORTEN_VM (target/vm) holds everything made, 1.5 GB; remove it to begin again.
set -euo pipefail
# shellcheck source=hack/lib.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/lib.sh"

CACHE=${CORTEN_VM:-${CARGO_TARGET_DIR:-$REPO/target}/vm}
ROOT=$CACHE/root
IMAGE=$CACHE/root.img
MIRROR=${CORTEN_VM_MIRROR:-}
KEYRING=/usr/share/keyrings/debian-archive-keyring.gpg

# Guest and kernels are Debian's; the older kernel is for what has to fall back (no lowerdir+, no idmapped tmpfs).
SUITE=trixie
KERNELS=(trixie bookworm)

HOST_PACKAGES=(busybox-static debian-archive-keyring debootstrap e2fsprogs qemu-system-x86 xz-utils)

# What the tests run in the guest: crun and runc are the controls, CRIU checkpoints, the plugins make pod networks.
GUEST_PACKAGES=(
    apparmor busybox-static containernetworking-plugins criu crun dbus e2fsprogs iproute2 iptables jq kmod procps runc
    strace systemd systemd-sysv uidmap util-linux
)

# Units that cost seconds of an emulated boot and do nothing for a test.
MASKED_UNITS=(
    apt-daily-upgrade.timer apt-daily.timer console-getty.service dpkg-db-backup.timer e2scrub_all.timer
    e2scrub_reap.service fstrim.timer getty.target getty@tty1.service modprobe@configfs.service modprobe@dm_mod.service
    modprobe@drm.service modprobe@efi_pstore.service modprobe@fuse.service modprobe@loop.service serial-getty@ttyS0.service
    systemd-firstboot.service systemd-hwdb-update.service systemd-journal-flush.service systemd-logind.service
    systemd-network-generator.service systemd-networkd.service systemd-pstore.service systemd-random-seed.service
    systemd-timesyncd.service systemd-update-utmp.service
)

# thread=single: with a host thread per processor, guests of several processors crash where the kernel patches its own
# code (QEMU 7.2 and 10.0). Without cx16: kernels from 6.5 on use it for their allocator, and oopsed there.
EMULATOR=(qemu-system-x86_64 -accel "tcg,thread=single,tb-size=512" -cpu "max,-cx16")

# The input disk of a kept machine has one size.
INPUT_BYTES=$((64 << 20))
BOOT_SECONDS=300

# Exit statuses below 124 are the guest's.
die() {
    printf '%s: %s\n' "${0##*/}" "$*" >&2
    exit 125
}

# Sets MIRROR to the Debian mirror of this machine, so that a site's own is used.
find_mirror() {
    [[ -z $MIRROR ]] || return 0
    # shellcheck disable=SC2016  # apt's own substitution
    MIRROR=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' 2>/dev/null | grep -m 1 '/debian/*$' || true)
    [[ -n $MIRROR ]] || die "apt knows no Debian mirror here: name one in CORTEN_VM_MIRROR"
}

# Runs an apt command on the packages of suite $1, with lists of its own: this machine's stay as they are.
apt_of() {
    local suite=$1 dir=$CACHE/apt-$1 command=$2
    shift 2
    mkdir -p "$dir/lists/partial" "$dir/archives/partial"
    echo "deb [signed-by=$KEYRING] $MIRROR $suite main" >"$dir/sources.list"
    "$command" -qq -o Dir::Etc::SourceList="$dir/sources.list" -o Dir::Etc::SourceParts=- -o Dir::State="$dir" \
        -o Dir::State::Lists="$dir/lists" -o Dir::State::Status=/dev/null -o Dir::Cache="$dir" \
        -o Acquire::Languages=none -o APT::Sandbox::User=root "$@"
}

# Whether $1 was made from what $2 says; else whatever was made is removed, for the caller to make again.
is_made() {
    if [[ -e $1 && $(cat "$1.from" 2>/dev/null) == "$2" ]]; then return 0; fi
    rm -rf -- "$1" "$1.from"
    return 1
}

# The guest's packages, in a directory.
build_root() {
    local packages from unit
    packages=$(IFS=, && echo "${GUEST_PACKAGES[*]}")
    from="$SUITE $packages"
    if is_made "$ROOT" "$from"; then return; fi
    say "Debian $SUITE for the guest"
    # Their modules went with the directory.
    rm -rf -- "$CACHE"/kernel-*
    # In a mount namespace: what debootstrap mounts never reaches this machine.
    unshare --mount --propagation private debootstrap --variant=minbase --include="$packages" "$SUITE" "$ROOT" \
        "$MIRROR" >"$CACHE/debootstrap.log" 2>&1 || die "debootstrap: see $CACHE/debootstrap.log"
    rm -rf -- "$ROOT"/var/cache/apt/archives/*.deb "$ROOT"/var/lib/apt/lists/* "$ROOT"/usr/share/{doc,man,locale}/*
    # Compiling the profiles that packages bring takes longer than the boot; the tests load their own.
    find "$ROOT/etc/apparmor.d" -maxdepth 1 -type f -delete
    for unit in "${MASKED_UNITS[@]}"; do ln -sf /dev/null "$ROOT/etc/systemd/system/$unit"; done
    echo guest >"$ROOT/etc/hostname"
    echo 5d0c2b1f6a934e0f8a7be3c1d2964f10 >"$ROOT/etc/machine-id"
    : >"$ROOT/etc/fstab"
    rm -f -- "$ROOT/etc/resolv.conf"
    # Newer than /usr: systemd updates nothing at the first boot.
    touch "$ROOT/etc/.updated" "$ROOT/var/.updated"
    echo "$from" >"$ROOT.from"
}

# A kernel with its modules, and an initramfs that mounts the root disk.
build_kernel() {
    local kernel=$1 dir=$CACHE/kernel-$1 package modules version from
    from=$(cat "$ROOT.from" "$REPO/hack/vm/initramfs" | sha256sum)
    if is_made "$dir" "$from"; then return; fi
    say "kernel of Debian $kernel"
    mkdir -p "$dir/unpacked"
    apt_of "$kernel" apt-get update || die "apt-get update for $kernel"
    package=$(apt_of "$kernel" apt-cache depends linux-image-cloud-amd64 | awk '/Depends: linux-image/ { print $2; exit }')
    (cd "$dir" && apt_of "$kernel" apt-get download "$package") || die "cannot download the kernel $package"
    dpkg-deb -x "$dir"/*.deb "$dir/unpacked"
    mv "$dir"/unpacked/boot/vmlinuz-* "$dir/vmlinuz"
    # trixie's packages have /usr/lib, bookworm's /lib.
    modules=$(find "$dir/unpacked" -type d -path '*/lib/modules/*' -prune)
    version=${modules##*/}
    rm -rf -- "${ROOT:?}/usr/lib/modules/$version"
    mkdir -p "$ROOT/usr/lib/modules"
    mv "$modules" "$ROOT/usr/lib/modules/"
    chroot "$ROOT" depmod "$version"
    build_initramfs "$dir" "$version"
    rm -rf -- "$dir/unpacked" "$dir"/*.deb
    echo "$version" >"$dir/version"
    echo "$from" >"$dir.from"
}

# The disk's driver and what it needs, which is modular in 6.1, uncompressed, and the order they are loaded in.
build_initramfs() {
    local dir=$1 version=$2 tree=$1/initramfs.d module name
    mkdir -p "$tree"/{bin,modules}
    cp -- "$(command -v busybox)" "$tree/bin/busybox"
    install "$REPO/hack/vm/initramfs" "$tree/init"
    for module in $(modules_for "$version" virtio_pci virtio_blk); do
        name=$(basename -- "${module%.xz}")
        case $module in
            *.xz) xz -dc -- "$ROOT$module" >"$tree/modules/$name" ;;
            *) cp -- "$ROOT$module" "$tree/modules/$name" ;;
        esac
        echo "$name"
    done >"$tree/modules/order"
    (cd "$tree" && find . | busybox cpio -o -H newc 2>/dev/null | gzip -1) >"$dir/initramfs"
    rm -rf -- "$tree"
}

# Files of modules in the order they are loaded; those built into the kernel have none.
modules_for() {
    local version=$1
    shift
    chroot "$ROOT" modprobe --all --show-depends --set-version "$version" "$@" | awk '/^insmod/ && !seen[$2]++ { print $2 }'
}

# The root disk, with the guest's half of this script.
build_image() {
    local from
    from=$(cat "$ROOT.from" "$CACHE"/kernel-*.from "$REPO"/hack/vm/* | sha256sum)
    if is_made "$IMAGE" "$from"; then return; fi
    rm -rf -- "$CACHE"/kept-*
    say "root image"
    chroot "$ROOT" passwd --quiet --delete root
    install -D -t "$ROOT/vm" "$REPO/hack/vm/init" "$REPO/hack/vm/agent"
    install -m 644 "$REPO/hack/vm/agent.service" "$ROOT/etc/systemd/system/"
    mkdir -p "$ROOT/etc/systemd/system/multi-user.target.wants"
    ln -sf ../agent.service "$ROOT/etc/systemd/system/multi-user.target.wants/agent.service"
    mke2fs -q -t ext4 -d "$ROOT" "$IMAGE.partial" 3G
    mv -- "$IMAGE.partial" "$IMAGE"
    echo "$from" >"$IMAGE.from"
}

build() {
    local kernel
    [[ $(uname -m) == x86_64 ]] || die "the emulated machine is x86_64, and so must be the binaries of this one"
    mkdir -p "$CACHE"
    # Two that build would undo each other's work.
    exec {lock}>"$CACHE/lock"
    flock "$lock"
    # What packages bring into the image is readable by all; the directory itself is not for others to step into.
    chmod 700 "$CACHE"
    install_packages "${HOST_PACKAGES[@]}"
    find_mirror
    build_root
    for kernel in "${KERNELS[@]}"; do build_kernel "$kernel"; done
    build_image
    exec {lock}>&-
}

# The options of snap and run, and the script with its arguments.
systemd="" kernel=$SUITE inputs=() out="" disk="" power_cut="" limit=300 memory=2048 processors=2 append="" cold=""
script=()
parse_options() {
    while [[ $# -gt 0 ]]; do
        case $1 in
            -s) systemd=1 ;;
            --cold) cold=1 ;;
            -[kiorxtmca])
                [[ $# -ge 2 ]] || die "$1 takes a value"
                set_option "$1" "$2"
                shift
                ;;
            -*) die "unknown option $1" ;;
            *) break ;;
        esac
        shift
    done
    script=("$@")
    kept=$CACHE/kept-$kernel-${systemd:-0}-$memory-$processors
    [[ -s $CACHE/kernel-$kernel/initramfs && -s $IMAGE ]] || die "there is no machine yet: run \`hack/vm.sh build\` first"
}

set_option() {
    case $1 in
        -k) kernel=$2 ;;
        -i) inputs+=("$2") ;;
        -o) out=$2 ;;
        -r) disk=$2 ;;
        -x) power_cut=$2 ;;
        -t) limit=$2 ;;
        -m) memory=$2 ;;
        -c) processors=$2 ;;
        -a) append=$2 ;;
    esac
}

# Starts the emulator on the root disk $1 with whatever further options follow. Sets `emulator`, its pid, and `to_guest`,
# `from_guest` and `monitor`, which are pipes to it; they are opened for both directions, so that no open waits.
start_emulator() {
    local root=$1 init=/vm/init boot=$CACHE/kernel-$kernel
    shift
    if [[ -n $systemd ]]; then
        init=/lib/systemd/systemd
        append="systemd.show_status=0 systemd.log_level=warning $append"
    fi
    mkfifo "$work"/{control,monitor}.{in,out}
    exec {to_guest}<>"$work/control.in" {from_guest}<>"$work/control.out" {monitor}<>"$work/monitor.in" {answers}<>"$work/monitor.out"
    : >"$work/output"
    truncate -s 2G "$work/results"
    "${EMULATOR[@]}" -smp "$processors" -m "$memory" -machine q35,usb=off -nodefaults -no-user-config -display none \
        -no-reboot -nic none -kernel "$boot/vmlinuz" -initrd "$boot/initramfs" \
        -append "console=ttyS0 quiet panic=-1 mitigations=off guest_init=$init $append" \
        -serial "file:$work/console" -device virtio-rng-pci -device virtio-serial-pci \
        -chardev "file,id=output,path=$work/output" -device virtserialport,chardev=output,name=output \
        -chardev "pipe,id=control,path=$work/control" -device virtserialport,chardev=control,name=control \
        -chardev "pipe,id=monitor,path=$work/monitor" -mon chardev=monitor,mode=readline \
        -drive "if=none,id=root,format=raw,$root" -device virtio-blk-pci,drive=root,serial=root \
        -drive "if=none,id=input,format=raw,readonly=on,file=$work/input" -device virtio-blk-pci,drive=input,serial=input \
        -drive "if=none,id=results,format=raw,file=$work/results" -device virtio-blk-pci,drive=results,serial=results \
        "$@" >"$work/emulator.log" 2>&1 {to_guest}>&- {from_guest}>&- {monitor}>&- {answers}>&- &
    emulator=$!
}

# Waits up to $1 seconds for a line of the guest that begins with the word $2; sets `answer` to the rest of it.
# Fails when the time is up or the guest has ended.
await_guest() {
    local deadline=$((SECONDS + $1)) word
    while [[ $SECONDS -lt $deadline ]]; do
        if read -r -t 1 word answer <&"$from_guest"; then
            [[ $word != "$2" ]] || return 0
        elif ! kill -0 "$emulator" 2>/dev/null; then
            return 1
        fi
    done
    return 1
}

show_console() {
    {
        printf -- '-- the end of the guest'\''s console\n'
        tail -n 40 "$work/console" || true
        cat "$work/emulator.log" || true
    } >&2
}

make_work() {
    work=$(mktemp -d "${TMPDIR:-/tmp}/corten-vm-XXXXXX")
    trap clean_up EXIT
    trap 'exit 130' INT
    trap 'exit 143' TERM
}

clean_up() {
    local status=$?
    trap - EXIT
    if [[ -n ${emulator:-} ]] && kill -KILL "$emulator" 2>/dev/null; then wait "$emulator" 2>/dev/null || true; fi
    rm -rf -- "$work" "${partial:-}"
    exit "$status"
}

# Keeps a machine that has booted and waits for a script: its disk, and its memory as the emulator migrates it.
snap() {
    parse_options "$@"
    make_work
    partial=$(mktemp -d "$CACHE/partial-XXXXXX")
    cp --sparse=always -- "$IMAGE" "$partial/root.img"
    truncate -s "$INPUT_BYTES" "$work/input"
    start_emulator "file=$partial/root.img"
    await_guest "$BOOT_SECONDS" ready || {
        show_console
        die "the guest has not booted"
    }
    # What systemd still starts after multi-user.target shall not run in every machine.
    sleep 2
    printf '%s\n' "migrate_set_parameter max-bandwidth 100G" "migrate \"exec:cat >$partial/memory\"" quit >&"$monitor"
    wait "$emulator" || die "the emulator failed: $(cat "$work/emulator.log")"
    rm -rf -- "$kept"
    mv -- "$partial" "$kept"
}

# Makes the input disk: a tar archive of the script, its arguments and the inputs.
make_input() {
    local input
    [[ ${#script[@]} -gt 0 && -f ${script[0]} ]] || die "no such script: ${script[*]:-(none given)}"
    mkdir "$work/tree"
    install -- "${script[0]}" "$work/tree/.script"
    printf '%s\0' "${script[@]:1}" >"$work/tree/.arguments"
    for input in "${inputs[@]}"; do cp -a -- "$input" "$work/tree/" || die "-i $input"; done
    tar -C "$work/tree" -cf "$work/input" .
    rm -rf -- "$work/tree"
    if [[ $(stat -c %s "$work/input") -gt $INPUT_BYTES ]]; then cold=1; fi
    truncate -s ">$INPUT_BYTES" "$work/input"
    # A disk is whole sectors; what lies behind the archive's end is not read.
    truncate -s %4096 "$work/input"
}

# Starts where the options say: from the persistent disk, from a kept machine, or from the image.
start_guest() {
    if [[ -n $disk ]]; then
        [[ -e $disk ]] || cp --sparse=always -- "$IMAGE" "$disk"
        start_emulator "file=$disk"
    elif [[ -z $cold$append && -s $kept/memory ]]; then
        start_emulator "file=$kept/root.img,snapshot=on" -incoming "exec:cat $kept/memory"
    else
        start_emulator "file=$IMAGE,snapshot=on"
    fi
}

# Copies output as it comes until the guest has ended, and cuts the power where the options say so.
follow_output() {
    local line
    if [[ -z $power_cut ]]; then
        tail -n +1 -f -s 0.2 --pid="$emulator" "$work/output"
        return
    fi
    tail -n +1 -f -s 0.2 --pid="$emulator" "$work/output" | while IFS= read -r line; do
        printf '%s\n' "$line"
        if [[ $line =~ $power_cut && ! -e $work/cut ]]; then
            touch "$work/cut"
            kill -KILL "$emulator"
        fi
    done
}

run() {
    local status follower answer
    parse_options "$@"
    make_work
    make_input
    start_guest
    follow_output &
    follower=$!
    # A kept machine has its clock and its random numbers from when it was kept.
    printf 'go %s %s\n' "$(date +%s)" "$(od -An -N 32 -t x1 /dev/urandom | tr -d ' \n')" >&"$to_guest"
    local began=$SECONDS
    if await_guest "$limit" status; then
        status=$answer
        echo quit >&"$monitor"
    elif [[ -e $work/cut ]]; then
        status=137
    else
        status=126
        [[ $((SECONDS - began)) -lt $limit ]] || status=124
        show_console
        kill -KILL "$emulator" 2>/dev/null || true
    fi
    wait "$emulator" 2>/dev/null || true
    wait "$follower" || true
    if [[ -n $out && $status -lt 124 ]]; then
        mkdir -p -- "$out"
        tar -C "$out" -xf "$work/results"
    fi
    exit "$status"
}

main() {
    need_root
    case ${1:-} in
        build | snap | run) "$@" ;;
        *)
            sed -n '2,/^set -/{/^#/s/^# \{0,1\}//p}' "$0" >&2
            exit 125
            ;;
    esac
}

# Called last: bash has read all of the script before any of it runs.
main "$@"
