#!/usr/bin/env bash
# The device rules of cgroup v2, which a BPF program enforces: what may be made, opened for reading and for writing.
# shellcheck disable=SC2016  # the commands are for the container's shell
# shellcheck source=tests/vm/lib.sh
source "$(dirname -- "$0")/lib.sh"
make_bundle

# What a container with these rules may do with /dev/net/tun (10:200): letters of mknod, read, write.
may() {
    configure 'mknod /dev/k c 10 200 2>/dev/null && printf m; (: </dev/k) 2>/dev/null && printf r; (: >/dev/k) 2>/dev/null && printf w; :' \
        ".linux.resources.devices = $1"
    runtime run --bundle "$BUNDLE" may 2>&1
}

# The file system's permissions are the same in all of them, so the rules alone decide.
DENY='{ allow: false, access: "rwm" }'
equal "no rules: making is a default, opening is not" m "$(may '[]')"
equal "nothing is allowed" m "$(may "[$DENY]")"
equal "everything is allowed" mrw "$(may '[{ allow: true, access: "rwm" }]')"
equal "this device for reading" mr "$(may "[$DENY, { allow: true, type: \"c\", major: 10, minor: 200, access: \"r\" }]")"
equal "this device for writing" mw "$(may "[$DENY, { allow: true, type: \"c\", major: 10, minor: 200, access: \"w\" }]")"
equal "every minor of its major" mrw "$(may "[$DENY, { allow: true, type: \"c\", major: 10, access: \"rw\" }]")"
equal "the block device of its numbers" m "$(may "[$DENY, { allow: true, type: \"b\", major: 10, minor: 200, access: \"rwm\" }]")"
equal "allowed, then denied" m "$(may "[{ allow: true, access: \"rwm\" }, { allow: false, type: \"c\", major: 10, minor: 200, access: \"rw\" }]")"
equal "denied, then allowed for reading" mr "$(may "[{ allow: true, access: \"rwm\" }, { allow: false, type: \"c\", major: 10, minor: 200, access: \"w\" }]")"

configure 'for device in null zero full random urandom tty; do (: </dev/$device) 2>/dev/null && printf "%s " $device; done; echo x >/dev/null && echo written' \
    ".linux.resources.devices = [$DENY]"
equal "default devices" "null zero full random urandom written" "$(runtime run --bundle "$BUNDLE" default 2>&1)"

# The program must bind whoever enters later, too.
configure "mknod /dev/k c 10 200; sleep 1000" ".linux.resources.devices = [$DENY]"
succeeds "run entered" runtime run --detach --bundle "$BUNDLE" entered
within 10 test -e "/proc/$(pid_of entered)/root/dev/k"
refused "exec in the same cgroup" "*not permitted*" runtime exec entered sh -c ': </dev/k'
runtime delete --force entered
finish
