#!/usr/bin/env bash
# Runs client libraries against foreman: in front of the stub, or of the Ollama that FOREMAN_TEST_OLLAMA names.
#
#   tests/clients/run.sh                    everything, and whether the table in docs/clients.md is what the run found
#   tests/clients/run.sh --write            everything, and writes that table
#   tests/clients/run.sh PYTEST-ARGUMENTS   a part, such as -k npm or -k litellm; the table is not looked at
#   FOREMAN_TEST_OLLAMA=http://127.0.0.1:11434 FOREMAN_TEST_MODEL=llama3.2:1b \
#       FOREMAN_TEST_EMBED_MODEL=all-minilm tests/clients/run.sh -k test_ollama
#
# test_ollama.py looks at one client in depth, test_every_client.py holds all of them (clients.py) to the same scenarios.
# Needs cargo, python3 with venv, node with npm, and PyPI, npm and crates.io the first time. Everything it makes is under
# the target directory. Exits 77 (skipped) where one of the three is missing; CI must not take that for a pass.
set -euo pipefail

readonly SKIPPED=77
readonly PYTHON_MIN=3.11
# One of the clients wants a global `crypto`.
readonly NODE_MIN=20

skip() {
    printf 'tests/clients: not run: %s\n' "$1" >&2
    exit "$SKIPPED"
}

cd "$(dirname "${BASH_SOURCE[0]}")/../.."
readonly suite=tests/clients
readonly target=${CARGO_TARGET_DIR:-target}
readonly venv=$target/clients-venv
readonly node_place=$target/clients-node

command -v cargo >/dev/null || skip "there is no cargo"
command -v python3 >/dev/null || skip "there is no python3"
python3 -c "import sys; sys.exit(sys.version_info[:2] < tuple(map(int, '$PYTHON_MIN'.split('.'))))" ||
    skip "python3 is $(python3 -c 'import platform; print(platform.python_version())'), the suite needs $PYTHON_MIN or newer"
python3 -c 'import venv, ensurepip' 2>/dev/null ||
    skip "python3 has no venv (on Debian and Ubuntu: apt-get install python3-venv)"
command -v node >/dev/null && command -v npm >/dev/null || skip "there is no node with npm"
[ "$(node -p 'process.versions.node.split(".")[0]')" -ge "$NODE_MIN" ] ||
    skip "node is $(node --version), the suite needs $NODE_MIN or newer"

# What says which packages there are is copied last, so a broken installation is not taken for a finished one.
is_installed() {
    local place=$1 file
    shift
    for file in "$@"; do
        cmp -s "$suite/$file" "$place/$(basename "$file")" || return 1
    done
}

if ! "$venv/bin/python" -c '' 2>/dev/null || ! is_installed "$venv" requirements.txt requirements.lock; then
    python3 -m venv --clear "$venv"
    "$venv/bin/pip" install --quiet --disable-pip-version-check \
        -r "$suite/requirements.txt" -c "$suite/requirements.lock"
    cp "$suite"/requirements.{txt,lock} "$venv"
fi

# Node finds packages beside the file that asks for them, so the programs go to where theirs are.
if ! is_installed "$node_place" node/package-lock.json; then
    rm -rf "$node_place"
    mkdir -p "$node_place"
    cp "$suite"/node/package{,-lock}.json "$node_place"
    npm ci --prefix "$node_place" --ignore-scripts --no-audit --no-fund --loglevel=error || {
        rm "$node_place/package-lock.json"
        exit 1
    }
fi
cp "$suite"/node/*.mjs "$node_place"

cargo build --locked --quiet --manifest-path "$suite/rust/Cargo.toml" --target-dir "$target/clients-rust"
cargo build --locked --quiet -p foreman -p stub_ollama --bins

FOREMAN_TEST_BINARIES=$(cd "$target/debug" && pwd)
FOREMAN_TEST_RUST_BINARIES=$(cd "$target/clients-rust/debug" && pwd)
FOREMAN_TEST_NODE_PLACE=$(cd "$node_place" && pwd)
FOREMAN_TEST_RESULTS=$(cd "$target" && pwd)/clients-results
export FOREMAN_TEST_BINARIES FOREMAN_TEST_RUST_BINARIES FOREMAN_TEST_NODE_PLACE FOREMAN_TEST_RESULTS
export PYTHONDONTWRITEBYTECODE=1

table=--check
if [ "${1-}" = --write ]; then
    table=--write
    shift
fi
# One of the clients brings a plugin for pytest that the suite has no use for.
"$venv/bin/python" -m pytest -p no:cacheprovider -p no:asyncio -rs "$suite" "$@"
if [ $# -gt 0 ] || [ -n "${FOREMAN_TEST_OLLAMA-}" ]; then
    printf 'tests/clients: a part was run; the table in docs/clients.md was not looked at\n'
else
    "$venv/bin/python" "$suite/results.py" "$table"
fi
