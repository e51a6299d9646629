# What the checks in the virtual machine share; sourced by them in the guest, never run.
#
# A check prints one line: `PASS NAME: WHAT WAS READ`, `FAIL NAME: what was expected, what was read`, or `SKIP NAME: WHY`.
# A script ends with `finish`: totals, and the number of failures as its exit status.
#
# Every script is one bundle, $BUNDLE, whose configuration `configure` writes anew; containers and their cgroups carry the
# script's name, so that what one leaves is told apart from the others'.
# shellcheck shell=bash
set -u

NAME=$(basename -- "$0" .sh)
BINARIES=/vm/in/debug
RUNTIME=${OCI_RUNTIME:-$BINARIES/corten}
CGROUPS=/sys/fs/cgroup
BUNDLE=/var/tmp/$NAME/bundle
STATE=/var/tmp/$NAME/state

passed=0 failed=0 skipped=0

pass() {
    passed=$((passed + 1))
    printf 'PASS %s: %s\n' "$NAME: $1" "${2//$'\n'/; }"
}

fail() {
    failed=$((failed + 1))
    printf 'FAIL %s: expected %s, read %s\n' "$NAME: $1" "$2" "${3//$'\n'/; }"
}

skip() {
    skipped=$((skipped + 1))
    printf 'SKIP %s: %s\n' "$NAME: $1" "$2"
}

# equal WHAT EXPECTED READ
equal() {
    if [[ $3 == "$2" ]]; then pass "$1" "$3"; else fail "$1" "$2" "$3"; fi
}

# like WHAT PATTERN READ, with a pattern of the shell for the whole text
like() {
    # shellcheck disable=SC2053  # a pattern, not a text
    if [[ $3 == $2 ]]; then pass "$1" "$3"; else fail "$1" "something like $2" "$3"; fi
}

# file_is FILE EXPECTED
file_is() {
    equal "${1#"$CGROUPS"/}" "$2" "$(cat -- "$1" 2>&1)"
}

# gone PATH
gone() {
    if [[ ! -e $1 ]]; then pass "$1 is gone" yes; else fail "$1 is gone" yes no; fi
}

# Runs a command; sets $output and $code. Through a file: a container that outlives the command would keep a pipe open.
call() {
    "$@" >"$BUNDLE/output" 2>&1 </dev/null
    code=$?
    output=$(<"$BUNDLE/output")
}

# succeeds WHAT COMMAND [ARG..]; its output is in $output afterwards
succeeds() {
    local what=$1 code
    shift
    call "$@"
    if [[ $code == 0 ]]; then pass "$what" "${output:-no output}"; else fail "$what" "exit code 0" "$code: $output"; fi
}

# refused WHAT PATTERN COMMAND [ARG..]
refused() {
    local what=$1 pattern=$2 code
    shift 2
    call "$@"
    # shellcheck disable=SC2053
    if [[ $code != 0 && $output == $pattern ]]; then
        pass "$what" "$output"
    else
        fail "$what" "a failure with $pattern" "$code: $output"
    fi
}

# Waits up to $1 seconds until a command succeeds.
within() {
    local deadline=$((SECONDS + $1))
    shift
    until "$@" >/dev/null 2>&1; do
        [[ $SECONDS -lt $deadline ]] || return 1
        sleep 0.1
    done
}

runtime() {
    "$RUNTIME" --root "$STATE" "$@"
}

status_of() {
    runtime state "$1" | jq -r .status
}

pid_of() {
    runtime state "$1" | jq .pid
}

# A root filesystem of busybox.
make_bundle() {
    mkdir -p "$BUNDLE"/rootfs/{bin,dev,etc,proc,sys,tmp,data} "$STATE"
    cp /bin/busybox "$BUNDLE/rootfs/bin/"
    "$BUNDLE/rootfs/bin/busybox" --install "$BUNDLE/rootfs/bin"
}

# configure COMMAND [FILTER]: a container that runs a shell command, and what a jq filter makes of its configuration.
configure() {
    jq --arg command "$1" ".process.args[2] = \$command | ${2:-.}" >"$BUNDLE/config.json" <<'JSON'
{
  "ociVersion": "1.0.2",
  "process": {
    "user": { "uid": 0, "gid": 0 },
    "args": ["/bin/sh", "-c", ""],
    "env": ["PATH=/bin"],
    "cwd": "/",
    "capabilities": {
      "bounding": ["CAP_CHOWN", "CAP_KILL", "CAP_MKNOD", "CAP_DAC_OVERRIDE"],
      "effective": ["CAP_CHOWN", "CAP_KILL", "CAP_MKNOD", "CAP_DAC_OVERRIDE"],
      "permitted": ["CAP_CHOWN", "CAP_KILL", "CAP_MKNOD", "CAP_DAC_OVERRIDE"]
    },
    "noNewPrivileges": true
  },
  "root": { "path": "rootfs", "readonly": false },
  "mounts": [
    { "destination": "/proc", "type": "proc", "source": "proc" },
    { "destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755"] },
    { "destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["nosuid", "noexec", "nodev", "ro"] },
    { "destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup",
      "options": ["nosuid", "noexec", "nodev", "relatime", "ro"] }
  ],
  "linux": {
    "resources": {},
    "namespaces": [
      { "type": "pid" }, { "type": "ipc" }, { "type": "uts" }, { "type": "mount" }, { "type": "cgroup" },
      { "type": "network" }
    ]
  }
}
JSON
}

finish() {
    local id
    for id in $(runtime list --quiet); do
        fail "containers left" none "$id"
        runtime delete --force "$id"
    done
    rm -rf -- "/var/tmp/$NAME"
    printf '== %s: %d passed, %d failed, %d skipped\n' "$NAME" "$passed" "$failed" "$skipped"
    exit "$((failed < 100 ? failed : 100))"
}
