#!/usr/bin/env bash
# Fuzzes each target for some seconds, on the stable toolchain; see README.md. The first finding ends it.
#
#   fuzz/run.sh [seconds [target...]]     default: 10 seconds, all targets
#   fuzz/run.sh same [target...]          20,000 inputs from one seed: the same ones each time, for CI
#   fuzz/run.sh minimise [target...]      takes what earlier runs found into the corpora, as little of it as covers the same
#
# Needs cargo, a C++ compiler, and crates.io the first time. Everything it makes is under the target directory, findings in
# target/fuzz/artifacts.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
readonly target=${CARGO_TARGET_DIR:-$PWD/target}
readonly found=$target/fuzz/corpus
readonly artifacts=$target/fuzz/artifacts
readonly cargo_fuzz_version=0.13.2

# The longest input: some times that of a recorded request, and short enough for hundreds of runs a second at least.
readonly bytes_max=1024

export PATH=$target/tools/bin:$PATH
if [ "$(cargo fuzz --version 2>/dev/null)" != "cargo-fuzz $cargo_fuzz_version" ]; then
    cargo install cargo-fuzz --version "$cargo_fuzz_version" --locked --root "$target/tools"
fi

# Sanitizers are for the nightly compiler, and foreman has no unsafe code that they could watch. The coverage that libFuzzer
# needs is for any.
readonly options=(--sanitizer none --target-dir "$target/fuzz")

seconds=${1:-10}
shift || true
if [ "$#" = 0 ]; then
    mapfile -t targets < <(cargo fuzz list)
else
    targets=("$@")
fi

cargo fuzz build "${options[@]}"
programs=$target/fuzz/$(rustc -vV | sed -n 's/^host: //p')/release
for name in "${targets[@]}"; do
    mkdir -p "$found/$name" "$artifacts/$name"
    if [ "$seconds" = minimise ]; then
        kept=$(mktemp -d)
        # By what is reached, not by how often: some dozens of inputs do.
        "$programs/$name" -set_cover_merge=1 -use_counters=0 -max_len="$bytes_max" -verbosity=0 \
            "$kept" "fuzz/corpus/$name" "$found/$name"
        rm -r "fuzz/corpus/$name"
        mv "$kept" "fuzz/corpus/$name"
        chmod 755 "fuzz/corpus/$name"
        continue
    fi
    case $name in
        answer | request | submission) words=fuzz/json.dict ;;
        *) words=fuzz/text.dict ;;
    esac
    if [ "$seconds" = same ]; then
        # What a change did not cause must not fail its checks. The corpora of earlier runs would make it another run.
        limit=(-runs=20000 -seed=1)
        found_before=$(mktemp -d)
        printf '\n-- %s, the same 20,000 inputs\n' "$name"
    else
        limit=(-max_total_time="$seconds")
        found_before=$found/$name
        printf '\n-- %s, %s seconds\n' "$name" "$seconds"
    fi
    "$programs/$name" "${limit[@]}" -max_len="$bytes_max" -dict="$words" -verbosity=0 \
        -artifact_prefix="$artifacts/$name/" -print_final_stats=1 "$found_before" "fuzz/corpus/$name"
done
