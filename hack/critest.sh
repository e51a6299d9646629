#!/usr/bin/env bash
# The conformance suite of CRI, critest of cri-tools, against corten-cri: every spec, in random order.
#
#   sudo hack/critest.sh                   one spec after the other
#   sudo hack/critest.sh --parallel=8      so many at once
#   sudo hack/critest.sh --websocket       exec, attach and port-forward over WebSocket instead of SPDY
#   sudo hack/critest.sh --focus=REGEX     the specs whose names match
#   sudo hack/critest.sh --seed=N          the order of an earlier run
#   sudo hack/critest.sh --runs=N          so many runs, each with a new server and an order of its own
#   sudo hack/critest.sh --network=builtin pods get the built-in network instead of CNI plugins (--network=cni)
#
# critest, and ginkgo that runs it in parallel, come through Go's modules, at the versions that hack/tools/go.mod pins.
# The images have upstream's names and what the specs look at, made of Debian packages, and are served by a registry on
# loopback that mirrors every other. Server, registry and critest run in private mount, network and IPC namespaces with an
# empty /run, and leave nothing behind.
#
# Prints a line for each spec, then what passed, failed and was skipped. The exit code is 0 only if nothing has failed, and
# nothing was skipped but what is about AppArmor, SELinux or NRI. After a failure the server's log, critest's output and its
# report stay in a directory whose name is printed. CORTEN_PROFILE=dev builds without optimisation, which saves minutes.
set -euo pipefail
# shellcheck source=hack/lib.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/lib.sh"

# ipcmk and unshare; what reads packages and reports.
SUITE_PACKAGES=(dpkg jq util-linux)

# What the images are made of.
IMAGE_PACKAGES=(apache2-bin busybox libapr1 libaprutil1 libc6 libcrypt1 libexpat1 libpcre2-8-0 libssl3 libuuid1 nginx
    nginx-common zlib1g)

parallel=1
websocket=
focus=
seed=
runs=1
network=cni
inside=

parse() {
    local argument
    for argument in "$@"; do
        case $argument in
        --parallel=[1-9]*) parallel=${argument#*=} ;;
        --websocket) websocket=yes ;;
        --focus=*) focus=${argument#*=} ;;
        --seed=[0-9]*) seed=${argument#*=} ;;
        --runs=[1-9]*) runs=${argument#*=} ;;
        --network=cni | --network=builtin) network=${argument#*=} ;;
        --inside=*) inside=${argument#*=} ;;
        *) die "unknown argument $argument: see the head of $0" ;;
        esac
    done
}

# Puts critest and ginkgo into $TOOLS, where they stay.
build_critest() {
    [[ -x $TOOLS/critest && -x $TOOLS/ginkgo ]] && return
    command -v go >/dev/null || die "no go in PATH: install Go (https://go.dev) first"
    say "build critest"
    as_caller mkdir -p "$TOOLS"
    # critest is a package of tests only.
    (
        cd "$REPO/hack/tools"
        as_caller env GOFLAGS=-mod=readonly CGO_ENABLED=0 GOBIN="$TOOLS" timeout 1200 \
            go install -trimpath github.com/onsi/ginkgo/v2/ginkgo
        as_caller env GOFLAGS=-mod=readonly CGO_ENABLED=0 timeout 1200 \
            go test -c -trimpath -o "$TOOLS/critest" sigs.k8s.io/cri-tools/cmd/critest
    )
}

# Downloads the packages of the images into $TOOLS/debs, where they stay; nothing is installed.
download_packages() {
    local package missing=()
    mkdir -p "$TOOLS/debs"
    for package in "${IMAGE_PACKAGES[@]}"; do
        compgen -G "$TOOLS/debs/${package}_*.deb" >/dev/null || compgen -G "$TOOLS/debs/${package}t64_*.deb" >/dev/null ||
            missing+=("$package")
    done
    [[ ${#missing[@]} -gt 0 ]] || return 0
    say "download ${missing[*]}"
    apt-get update -qq
    for package in "${missing[@]}"; do
        # Since Debian 13 some libraries have a suffix.
        [[ -n $(apt-cache madison "$package") ]] || package+=t64
        (cd "$TOOLS/debs" && apt-get -qq -o APT::Sandbox::User=root download "$package")
    done
}

# Makes the images in $1, and a critest in $1 that knows the digest of ours: the one it has is of content that is
# nowhere to be had here. Every check of its spec remains.
make_images() {
    local digest known
    digest=$("$BIN/critest-images" --debs "$TOOLS/debs" --out "$1/images")
    known=$(LC_ALL=C grep -aoE 'gcr\.io/k8s-staging-cri-tools/test-image-digest@sha256:[0-9a-f]{64}' "$TOOLS/critest")
    [[ $(wc -l <<<"$known") -eq 1 ]] || die "critest names its image by digest not once but as: $known"
    LC_ALL=C sed "s/${known#*@}/$digest/" "$TOOLS/critest" >"$1/critest"
    cmp -s "$1/critest" "$TOOLS/critest" && die "critest has not taken the digest $digest"
    chmod 755 "$1/critest"
}

# A registry on loopback for everything; pods on a bridge, with host ports.
write_suite_config() {
    if [[ $network == builtin ]]; then use_builtin_network; else write_suite_cni_config; fi
    write_config
    mkdir -p "$DIR/certs.d/_default"
    cat >"$DIR/certs.d/_default/hosts.toml" <<TOML
[host."http://$REGISTRY"]
capabilities = ["pull", "resolve"]
TOML
    cat >>"$DIR/config.toml" <<TOML

[pull]
hosts_dirs = ["$DIR/certs.d"]
auth_file = ""
TOML
}

write_suite_cni_config() {
    write_cni_config
    jq '.plugins[0] += { ipMasq: true, hairpinMode: true }
        | .plugins += [{ type: "portmap", capabilities: { portMappings: true } }]' "$DIR/cni/10-$MARK.conflist" >"$DIR/conflist"
    mv "$DIR/conflist" "$DIR/cni/10-$MARK.conflist"
}

# Runs critest; its report is $DIR/report.json.
run_critest() {
    local flags=(--runtime-endpoint="$ENDPOINT" --ginkgo.randomize-all --ginkgo.seed="$seed" --ginkgo.no-color
        --ginkgo.json-report="$DIR/report.json")
    [[ -z $websocket ]] || flags+=(--websocket-exec --websocket-attach --websocket-portforward)
    [[ -z $focus ]] || flags+=(--ginkgo.focus="$focus")
    [[ $parallel -eq 1 ]] || flags+=(--parallel="$parallel")
    mkdir "$DIR/tmp"
    # An empty configuration: this machine's may name another runtime. Its files are made in TMPDIR.
    : >"$DIR/crictl.yaml"
    (cd "$DIR/tmp" && TMPDIR=$DIR/tmp PATH=$TOOLS:$PATH \
        timeout 1800 "$inside/critest" --config="$DIR/crictl.yaml" "${flags[@]}" </dev/null >"$DIR/critest.log" 2>&1)
}

# The specs of a report as lines: state, name, reason. What was not chosen is none of them: the benchmarks, and with a focus
# what it leaves out.
specs() {
    jq -r --arg focus "$focus" '.[].SpecReports[] | select(.LeafNodeType == "It" or (.State | IN("passed", "skipped") | not))
        | ((.ContainerHierarchyTexts // []) + [.LeafNodeText] | map(select(. != "")) | join(" ")) as $name
        | (.Failure.Message // "") as $reason
        | select((.State == "skipped" and $reason == "" and ($focus != "" or ($name | test("benchmark"; "i")))) | not)
        | [.State, (if $name == "" then .LeafNodeType else $name end), ($reason | gsub("\\s+"; " "))]
        | join("\t")' "$DIR/report.json"
}

# Prints the specs, then the sums; fails if something did, or was skipped that must not be.
summarize() {
    specs | awk -F'\t' '
        $1 == "passed" { passed++; print "PASS " $2; next }
        $1 == "skipped" || $1 == "pending" {
            reason = $3 == "" ? "not run" : $3
            if ($2 $3 ~ /AppArmor|SELinux|NRI/) { skipped++; print "SKIP: " reason ": " $2 }
            else { failed++; print "FAIL " $2 ": skipped: " reason }
            next
        }
        { failed++; print "FAIL " $2 ": " $1 ": " substr($3, 1, 400) }
        END {
            printf "\ncritest: %d passed, %d failed, %d skipped\n", passed, failed, skipped
            exit failed > 0 || passed == 0
        }'
}

clean_up() {
    local status=$? pid kept
    trap - EXIT
    # Whoever read our output may have gone; what runs must end all the same.
    trap '' PIPE
    if [[ $status -ne 0 ]]; then
        kept=$(mktemp -d /tmp/corten-critest-XXXXXX)
        cp -- "$DIR"/*.log "$DIR"/report.json "$kept" 2>/dev/null || true
        printf 'logs and report are kept in %s\n' "$kept"
    fi
    for pid in ${SERVER_PID:-} ${REGISTRY_PID:-}; do end_process "$pid"; done
    remove_marked "$MARK"
    rm -rf -- "$DIR"
    exit_leaving_nothing "$status"
}

# One run, in namespaces of its own.
run_inside() {
    local status=0
    make_dir
    trap clean_up EXIT
    trap 'exit 130' INT
    trap 'exit 143' TERM
    mount -t tmpfs tmpfs /run
    ip link set lo up
    ln -s "$inside/images" "$DIR/images"
    start_registry
    write_suite_config
    start_server
    say "critest, seed $seed, network $network, $parallel at once${websocket:+, over WebSocket}"
    run_critest || status=$?
    [[ -s $DIR/report.json ]] || {
        tail -n 20 "$DIR/critest.log"
        die "critest has written no report (exit code $status)"
    }
    summarize
    # All specs passed, and yet it failed: something between them.
    [[ $status -eq 0 ]] || die "critest: exit code $status: $(tail -n 5 "$DIR/critest.log")"
}

main() {
    local run failed=0
    need_root
    parse "$@"
    find_toolchains
    TOOLS=${CARGO_TARGET_DIR:-$REPO/target}/tools
    BIN=$(binaries)
    if [[ -n $inside ]]; then
        run_inside
        return
    fi

    install_packages "${BUILD_PACKAGES[@]}" "${RUN_PACKAGES[@]}" "${CNI_PACKAGES[@]}" "${SUITE_PACKAGES[@]}"
    build_critest
    download_packages
    say "build corten, corten-shim, corten-cri ($PROFILE), and the images"
    build corten corten-shim corten-cri registry critest-images stand-in
    IMAGES=$(mktemp -d /tmp/corten-images-XXXXXX)
    trap 'rm -rf -- "$IMAGES"' EXIT
    make_images "$IMAGES"
    seed=${seed:-$((RANDOM * 32768 + RANDOM))}
    for ((run = 0; run < runs; run++)); do
        unshare --mount --propagation private --net --ipc -- "$0" --inside="$IMAGES" --seed=$((seed + run)) \
            --parallel="$parallel" --network="$network" --focus="$focus" ${websocket:+--websocket} || failed=$((failed + 1))
    done
    [[ $runs -eq 1 ]] || say "$((runs - failed)) of $runs runs without a failure"
    [[ $failed -eq 0 ]]
}

# Called last: bash has read all of the script before any of it runs.
main "$@"
