#!/usr/bin/env bash
# AppArmor: the profile of the configuration and of exec, enforced.
# shellcheck disable=SC2016  # the commands are for the container's shell
# shellcheck source=tests/vm/lib.sh
source "$(dirname -- "$0")/lib.sh"
make_bundle

# Two profiles that differ in the file they deny.
for denied in one two; do
    apparmor_parser --replace --skip-cache <<PROFILE || exit 100
profile vm-denies-$denied flags=(attach_disconnected, mediate_deleted) {
    file,
    capability,
    signal,
    deny /data/$denied rw,
}
PROFILE
done
LABEL='cat /proc/self/attr/apparmor/current'
TRY='for file in one two; do (: >/data/$file) 2>/dev/null && echo $file; done; :'

configure "$LABEL; $TRY" '.process.apparmorProfile = "vm-denies-one"'
succeeds run runtime run --bundle "$BUNDLE" confined
equal "label and writable file" "vm-denies-one (enforce);two" "${output//$'\n'/;}"

configure "$LABEL; $TRY"
succeeds "run without a profile" runtime run --bundle "$BUNDLE" confined
equal "label and writable files without a profile" "unconfined;one;two" "${output//$'\n'/;}"

configure "sleep 1000" '.process.apparmorProfile = "vm-denies-one"'
succeeds "run confined" runtime run --detach --bundle "$BUNDLE" confined
equal "label of init" "vm-denies-one (enforce)" "$(cat "/proc/$(pid_of confined)/attr/apparmor/current")"
equal "exec has the container's profile" "vm-denies-one (enforce)" "$(runtime exec confined sh -c "$LABEL")"
equal "exec with one of its own" "vm-denies-two (enforce)" "$(runtime exec --apparmor vm-denies-two confined sh -c "$LABEL")"
equal "which is enforced" one "$(runtime exec --apparmor vm-denies-two confined sh -c "$TRY")"
refused "exec with one that is not loaded" "*vm-not-loaded*" runtime exec --apparmor vm-not-loaded confined true
runtime delete --force confined

# Without no_new_privs the profile is taken all the same.
configure "$LABEL" '.process.apparmorProfile = "vm-denies-one" | .process.noNewPrivileges = false'
equal "label without no_new_privs" "vm-denies-one (enforce)" "$(runtime run --bundle "$BUNDLE" confined 2>&1)"

configure true '.process.apparmorProfile = "vm-not-loaded"'
refused "a profile that is not loaded" "*vm-not-loaded*" runtime run --bundle "$BUNDLE" confined

# CVE-2019-16884: a file of the image in the place of the kernel's must not swallow the label.
mkdir -p "$BUNDLE/rootfs/data/fake/self/attr"
: >"$BUNDLE/rootfs/data/fake/self/attr/exec"
configure "$LABEL" '.process.apparmorProfile = "vm-denies-one"
    | .mounts |= map(if .destination == "/proc" then { destination: "/proc", type: "bind", source: "'"$BUNDLE"'/rootfs/data/fake", options: ["rbind"] } else . end)'
refused "a /proc that is not procfs" "*/proc*" runtime run --bundle "$BUNDLE" confined
printf 'profile vm-denies-%s {}\n' one two | apparmor_parser --remove
finish
