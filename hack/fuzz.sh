#!/usr/bin/env bash
# Coverage-guided fuzzing of what reads strangers' bytes: the targets of tests/fuzz, which its README.md describes.
#
#   sudo hack/fuzz.sh                           every target, 10 seconds each
#   sudo hack/fuzz.sh --seconds 1800 tar_apply  one of them for half an hour
#   sudo hack/fuzz.sh --keep DIR ...            inputs that reach something new stay in DIR/TARGET, and are begun with
#
# As many run at once as there are processors. Each prints one line, PASS or FAIL; the exit code is 0 only if nothing was
# found. What was found stays in target/fuzz/findings, and is tried again by `BINARY FILE`.
set -euo pipefail
# shellcheck source=hack/lib.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/lib.sh"

# libFuzzer is C++.
FUZZ_PACKAGES=(g++ util-linux)

# Longest time for one input, in seconds, and most memory: a small input must never cost much of either.
LIMITS=(-timeout=20 -rss_limit_mb=1024 -malloc_limit_mb=256)

# Coverage with the stable compiler: the flags that cargo-fuzz gives, without a sanitizer, which only nightly compilers
# have. In the environment they stand in for those of the checkout, which make static binaries: libFuzzer finds the
# functions it stands in for (memcmp and its kin, to learn what is compared) by dlsym.
COVERAGE=(--cfg=fuzzing -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table
    -Cllvm-args=-sanitizer-coverage-trace-compares)

CRATE=$REPO/tests/fuzz
FINDINGS=${CARGO_TARGET_DIR:-$REPO/target/fuzz}/findings

seconds=10
keep=
targets=()

parse_arguments() {
    while [[ $# -gt 0 ]]; do
        case $1 in
            --seconds) seconds=${2:?seconds} && shift ;;
            --keep) keep=$(realpath -m -- "${2:?directory}") && shift ;;
            -*) die "no such option: $1" ;;
            *) targets+=("$1") ;;
        esac
        shift
    done
    local target
    for target in "${targets[@]}"; do
        [[ -f $CRATE/targets/$target.rs ]] || die "no such target: $target"
    done
    [[ ${#targets[@]} -gt 0 ]] || mapfile -t targets < <(cd "$CRATE/targets" && printf '%s\n' *.rs | sed 's/\.rs$//')
}

# Builds the targets; sets BIN. From the crate's directory, for its .cargo/config.toml.
build_targets() {
    (cd "$CRATE" && as_caller env RUSTFLAGS="${COVERAGE[*]}" cargo build --quiet --locked --bins)
    BIN=${CARGO_TARGET_DIR:-$REPO/target/fuzz}/$(rustc -vV | sed -n 's/^host: //p')/debug
}

# Runs the fuzzer $1 with the rest of the arguments, on a tmpfs that goes with it.
run_fuzzer() {
    local target=$1
    shift
    # shellcheck disable=SC2016 # the inner shell's variables
    CORTEN_FUZZ_DIR=$DIR/tmpfs unshare --mount --propagation private sh -euc '
        mount -t tmpfs -o size=128m,nr_inodes=40k,mode=0700 fuzz "$CORTEN_FUZZ_DIR"
        exec "$@"' sh "$BIN/$target" "${LIMITS[@]}" "$@" </dev/null >"$DIR/$target.log" 2>&1
}

# One target's run, and its line.
fuzz() {
    local target=$1 found=${keep:-$DIR/found}/$1 status=0
    mkdir -p "$found"
    run_fuzzer "$target" -max_total_time="$seconds" -print_final_stats=1 -artifact_prefix="$FINDINGS/$target-" \
        -dict="$CRATE/dictionaries/$target" "$found" "$CRATE/corpus/$target" || status=$?
    local numbers
    numbers=$(numbers_of "$DIR/$target.log")
    if [[ $status -eq 0 ]]; then
        printf 'PASS fuzz %s: %s, nothing found\n' "$target" "$numbers"
    else
        printf 'FAIL fuzz %s: %s, exit code %s\n' "$target" "$numbers" "$status"
        grep -aE 'panicked at|ERROR: libFuzzer|Test unit written' -A 2 "$DIR/$target.log" || tail -n 20 "$DIR/$target.log"
        return 1
    fi
}

# `N executions, N edges, N inputs` of a log.
numbers_of() {
    awk '/^stat::number_of_executed_units:/ { executions = $2 }
        / cov: / {
            for (field = 1; field < NF; field++) {
                if ($field == "cov:") edges = $(field + 1)
                if ($field == "corp:") { split($(field + 1), corpus, "/"); inputs = corpus[1] }
            }
        }
        END { printf "%d executions, %d edges, %d inputs", executions, edges, inputs }' "$1"
}

# All targets, as many at once as there are processors.
fuzz_all() {
    local target running=0 status=0
    for target in "${targets[@]}"; do
        if [[ $running -ge $(nproc) ]]; then
            wait -n || status=1
            running=$((running - 1))
        fi
        fuzz "$target" &
        running=$((running + 1))
    done
    while [[ $running -gt 0 ]]; do
        wait -n || status=1
        running=$((running - 1))
    done
    return "$status"
}

main() {
    parse_arguments "$@"
    need_root
    find_toolchains
    install_packages "${BUILD_PACKAGES[@]}" "${FUZZ_PACKAGES[@]}"
    build_targets
    make_dir
    trap 'rm -rf -- "$DIR"' EXIT
    mkdir "$DIR/tmpfs"
    as_caller mkdir -p "$FINDINGS"
    fuzz_all
}

# Called last: bash has read all of the script before any of it runs.
main "$@"
