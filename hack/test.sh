#!/usr/bin/env bash
# Everything that proves the product, from a clean checkout: formatting, lints, unit tests, the integration tests of
# tests/ through the real binaries, a short run of the fuzz targets, and those that need a virtual machine.
#
#   sudo hack/test.sh              all of it
#   sudo hack/test.sh cri shim     these integration suites only, after the build
#   sudo hack/test.sh drop-in      corten under podman and containerd only
#   sudo hack/test.sh fuzz         a short run of every fuzz target (see hack/fuzz.sh) only
#   sudo hack/test.sh critest      the conformance suite of CRI only (see hack/critest.sh)
#   sudo hack/test.sh vm           what needs the virtual machine (see hack/test-vm.sh) only
#
# Ends with the totals, what was skipped and why; the exit code is 0 only if nothing has failed. Binaries are built by
# whoever called sudo, tests run as root: they make namespaces, mounts and cgroups, and check that they leave none.
set -euo pipefail
# shellcheck source=hack/lib.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/lib.sh"

# What the tests need beside what pods need: the OCI runtime that is the control, the engines it and corten run under,
# CRIU, a registry and what makes and pushes images, and tools of ours here.
TEST_PACKAGES=(conmon containerd criu docker-registry g++ groff-base jq openssl podman prometheus runc shellcheck skopeo strace uidmap
    umoci util-linux)

suites=("$@")
failed=()

clean_up() {
    rm -rf -- "${logs:-}"
}

# Runs one check of the sources and remembers its failure; the others run all the same.
check() {
    local name=$1
    shift
    say "$name"
    (cd "$REPO" && as_caller "$@") || failed+=("$name")
}

# Prints `CRATE-DIRECTORY NAME EXECUTABLE` of every test executable that cargo has built.
test_executables() {
    (cd "$REPO" && as_caller cargo test --quiet --workspace --lib --bins --tests --examples --no-run --message-format=json) |
        jq -r 'select(.reason == "compiler-artifact" and .profile.test and .executable != null)
               | [(.manifest_path | sub("/Cargo.toml$"; "")), (.target.kind[0] + ":" + .target.name), .executable] | @tsv'
}

# Runs one test executable in its crate's directory, as cargo would; the output is shown if a test fails.
run_tests() {
    local dir=$1 name=$2 executable=$3 log=$logs/${2//[:\/]/-}.log
    printf '%-28s ' "$name"
    # Most of an integration test's time is waiting: more threads than processors. Without a stdin: containers would
    # read the list of what is still to be run.
    if (cd "$dir" && RUST_BACKTRACE=0 timeout 1500 "$executable" --show-output --test-threads "$(($(nproc) * 2))") \
        </dev/null >"$log" 2>&1; then
        sed -n 's/^test result: ok. //p' "$log"
    else
        echo FAILED
        grep -E '^(test .* FAILED|test result|---- .* stdout)|panicked at|left behind' -A 4 "$log" || tail -n 40 "$log"
        failed+=("$name")
    fi
}

# Whether the suite `test:NAME` was asked for; without arguments all are, unit tests too.
wanted() {
    local suite
    [[ ${#suites[@]} -gt 0 ]] || return 0
    for suite in "${suites[@]}"; do [[ $1 != "test:$suite" ]] || return 0; done
    return 1
}

# The checks of the virtual machine: skipped, aloud, where there is no emulator to be had.
run_virtual_machine() {
    local log=$logs/vm.log
    say "virtual machine"
    # The same packages as hack/vm.sh; asked for here, because only their absence is no failure.
    if ! (install_packages qemu-system-x86 debootstrap) >"$log" 2>&1; then
        echo "SKIP: the virtual machine: $(tail -n 1 "$log")" | tee -a "$log"
        return
    fi
    if OCI_SUITE=$(awk '$2 == "test:oci" { print $3 }' <<<"$executables") \
        IMAGE_SUITE=$(awk '$2 == "test:image" { print $3 }' <<<"$executables") \
        CRI_SUITE=$(awk '$2 == "test:cri" { print $3 }' <<<"$executables") "$REPO/hack/test-vm.sh" >"$log" 2>&1; then
        grep -E '^(== |test result|   |SKIP)' "$log"
    else
        grep -vE '^PASS|^test .* ok$' "$log"
        failed+=("virtual machine")
    fi
}

# The conformance suite of CRI, eight specs at once.
run_critest() {
    local log=$logs/critest.log
    printf '%-28s ' critest
    if CORTEN_PROFILE=dev timeout 1800 "$REPO/hack/critest.sh" --parallel=8 </dev/null >"$log" 2>&1; then
        grep -c '^PASS ' "$log"
    else
        echo FAILED
        grep -v '^PASS ' "$log"
        failed+=(critest)
    fi
}

# Debian's engines with corten as their runtime, tests/drop-in.
run_drop_in() {
    local engine log
    for engine in podman containerd; do
        log=$logs/drop-in-$engine.log
        printf '%-28s ' "drop-in:$engine"
        if timeout 600 "$REPO/tests/drop-in/$engine.sh" </dev/null >"$log" 2>&1; then
            grep -c '^PASS ' "$log"
        else
            echo FAILED
            grep -v '^PASS ' "$log"
            failed+=("drop-in:$engine")
        fi
    done
}

# Ten seconds of every fuzz target; what is found fails.
run_fuzz() {
    local log=$logs/fuzz.log
    printf '%-28s ' fuzz
    if timeout 3000 "$REPO/hack/fuzz.sh" --seconds 10 </dev/null >"$log" 2>&1; then
        grep -c '^PASS ' "$log"
    else
        echo FAILED
        grep -v '^PASS ' "$log"
        failed+=("fuzz")
    fi
}

# What a test that could not run here said, and how many tests said so.
print_skips() {
    local skips
    skips=$(grep -hE '^( *[0-9]+ )?SKIP|\.\.\. ignored' "$logs"/*.log | sort | uniq -c || true)
    if [[ -n $skips ]]; then
        say "skipped (how many tests, and why)"
        printf '%s\n' "$skips"
    else
        say "skipped: none"
    fi
}

print_totals() {
    cat "$logs"/*.log | awk '/^test result:/ { passed += $4; failed += $6; ignored += $8 }
        /^PASS / { passed++ }
        /^FAIL / { failed++ }
        END { printf "\n== total: %d passed, %d failed, %d ignored\n", passed, failed, ignored }'
}

main() {
    need_root
    find_toolchains
    began=$SECONDS
    install_packages "${BUILD_PACKAGES[@]}" "${RUN_PACKAGES[@]}" "${CNI_PACKAGES[@]}" "${TEST_PACKAGES[@]}"
    logs=$(mktemp -d /tmp/corten-test-logs-XXXXXX)
    trap clean_up EXIT

    if [[ ${#suites[@]} -eq 0 ]]; then
        check "format" cargo fmt --all --check
        check "format of the fuzz targets" cargo fmt --check --manifest-path tests/fuzz/Cargo.toml
        check "shell scripts" shellcheck --external-sources hack/*.sh hack/vm/init hack/vm/agent hack/vm/initramfs \
            tests/drop-in/*.sh tests/vm/*.sh .ci/run
        check "lints" cargo clippy --quiet --workspace --all-targets -- -D warnings
    fi
    say "build"
    (cd "$REPO" && as_caller cargo build --quiet --workspace)
    executables=$(test_executables)
    if wanted test:cri; then
        # For tests/cri, which fails without it.
        as_caller mkdir -p "${CARGO_TARGET_DIR:-$REPO/target}/tools"
        build_crictl "${CARGO_TARGET_DIR:-$REPO/target}/tools/crictl" || failed+=(crictl)
    fi
    say "tests"
    while IFS=$'\t' read -r dir name executable; do
        ! wanted "$name" || run_tests "$dir" "$name" "$executable"
    done <<<"$executables"

    ! wanted test:critest || run_critest
    ! wanted test:drop-in || run_drop_in
    ! wanted test:fuzz || run_fuzz
    ! wanted test:vm || run_virtual_machine

    print_skips
    print_totals
    if [[ ${#failed[@]} -gt 0 ]]; then
        printf '== failed after %d s:' "$((SECONDS - began))"
        printf ' [%s]' "${failed[@]}"
        echo
        exit 1
    fi
    printf '== all passed in %d s\n' "$((SECONDS - began))"
}

# Called last: bash has read all of the script before any of it runs.
main "$@"
