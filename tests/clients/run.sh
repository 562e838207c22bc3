#!/usr/bin/env bash
# Runs the official Ollama clients against foreman: in front of the stub, or of the Ollama that FOREMAN_TEST_OLLAMA names.
#
#   tests/clients/run.sh [pytest arguments]
#   FOREMAN_TEST_OLLAMA=http://127.0.0.1:11434 FOREMAN_TEST_MODEL=llama3.2:1b \
#       FOREMAN_TEST_EMBED_MODEL=all-minilm tests/clients/run.sh
#
# Needs cargo, python3 with venv, and PyPI the first time. Everything it makes is under the target directory. Exits 77
# (skipped) where python3 is missing; CI must not take that for a pass.
set -euo pipefail

readonly SKIPPED=77
readonly PYTHON_MIN=3.10

skip() {
    printf 'tests/clients: not run: %s\n' "$1" >&2
    exit "$SKIPPED"
}

cd "$(dirname "${BASH_SOURCE[0]}")/../.."
readonly suite=tests/clients
readonly target=${CARGO_TARGET_DIR:-target}
readonly venv=$target/clients-venv

command -v python3 >/dev/null || skip "there is no python3"
python3 -c "import sys; sys.exit(sys.version_info[:2] < tuple(map(int, '$PYTHON_MIN'.split('.'))))" ||
    skip "python3 is $(python3 -c 'import platform; print(platform.python_version())'), the suite needs $PYTHON_MIN or newer"
python3 -c 'import venv, ensurepip' 2>/dev/null ||
    skip "python3 has no venv (on Debian and Ubuntu: apt-get install python3-venv)"

# The copy of the requirements is written last, so a broken installation is not taken for a finished one.
if ! "$venv/bin/python" -c '' 2>/dev/null || ! cmp -s "$suite/requirements.txt" "$venv/requirements.txt"; then
    python3 -m venv --clear "$venv"
    "$venv/bin/pip" install --quiet --disable-pip-version-check -r "$suite/requirements.txt"
    cp "$suite/requirements.txt" "$venv/requirements.txt"
fi

cargo build --locked --quiet -p foreman -p stub_ollama --bins

FOREMAN_TEST_BINARIES=$(cd "$target/debug" && pwd)
export FOREMAN_TEST_BINARIES
export PYTHONDONTWRITEBYTECODE=1
exec "$venv/bin/python" -m pytest -p no:cacheprovider "$suite/test_ollama.py" "$@"
