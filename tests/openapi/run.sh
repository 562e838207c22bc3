#!/usr/bin/env bash
# Checks docs/openapi.json, and plays it against foreman in front of the stub with generated requests (schemathesis):
# no server error, no status, content type or body that the document does not name.
#
#   tests/openapi/run.sh [schemathesis arguments, such as --include-tag daemon]
#   FOREMAN_TEST_SEED=1 FOREMAN_TEST_EXAMPLES=200 tests/openapi/run.sh
#
# Needs cargo, python3 with venv, and PyPI the first time. Everything it makes is under the target directory, and the two
# daemons end with it. Exits 77 (skipped) where python3 is missing; CI must not take that for a pass.
#
# Streams without an end (/events, /jobs/{id}/events) are left out: tests/it has them.
set -euo pipefail

readonly SKIPPED=77
readonly PYTHON_MIN=3.10
readonly SEED=${FOREMAN_TEST_SEED:-20261124}
readonly EXAMPLES=${FOREMAN_TEST_EXAMPLES:-25}
# A daemon that outlives the run ends by itself; a start takes far less.
readonly LIFE_S=900
readonly START_LOOKS=300
# A request to be repeated by hand may have thousands of items; its beginning tells enough.
readonly LINE_MAX=2000

skip() {
    printf 'tests/openapi: not run: %s\n' "$1" >&2
    exit "$SKIPPED"
}

fail() {
    printf 'tests/openapi: %s\n' "$1" >&2
    exit 1
}

cd "$(dirname "${BASH_SOURCE[0]}")/../.."
readonly suite=tests/openapi
readonly target=${CARGO_TARGET_DIR:-target}
readonly venv=$target/openapi-venv

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

"$venv/bin/openapi-spec-validator" docs/openapi.json

cargo build --locked --quiet -p foreman -p stub_ollama --bins

# Nothing of whoever runs this may reach the daemons.
for name in $(compgen -e); do
    case $name in
        FOREMAN_TEST_*) ;;
        FOREMAN_* | OLLAMA_*) unset "$name" ;;
    esac
done
export NO_PROXY='*' no_proxy='*' PYTHONDONTWRITEBYTECODE=1

folder=$(mktemp -d)
touch "$folder/stub.log" "$folder/foreman.log"
pids=()
finish() {
    for pid in "${pids[@]}"; do
        # foreman stands behind a timeout, which hands this on.
        kill -TERM "$pid" 2>/dev/null || true
        wait "$pid" 2>/dev/null || true
    done
    rm -rf "$folder"
}
trap finish EXIT

# Waits until a log has a line with this mark; what stands behind it.
address() { # log mark pid
    local looks=0
    until grep -qE "$2" "$1"; do
        kill -0 "$3" 2>/dev/null || fail "a daemon ended instead of serving: $(cat "$1")"
        ((looks += 1)) && [ "$looks" -lt "$START_LOOKS" ] || fail "a daemon does not serve: $(cat "$1")"
        sleep 0.1
    done
    sed -nE "s#.*$2([^[:space:]]+).*#\\1#p" "$1" | head -n 1
}

"$target/debug/stub_ollama" --addr 127.0.0.1:0 --exit-after "$LIFE_S" --parent-pid $$ \
    --model llama3=5,256,completion --model embed=5,64,embedding >"$folder/stub.log" 2>&1 &
pids+=($!)
ollama=$(address "$folder/stub.log" 'listening on ' "${pids[0]}")

NO_COLOR=1 timeout --kill-after=5 "$LIFE_S" "$target/debug/foreman" serve --addr 127.0.0.1:0 --ollama-url "$ollama" \
    --db "$folder/foreman.db" --retry-delay 20ms --shutdown-grace 1s >"$folder/foreman.log" 2>&1 &
pids+=($!)
foreman=$(address "$folder/foreman.log" 'http\.addr=' "${pids[1]}")

printf 'tests/openapi: seed %s, %s examples an operation, foreman on %s\n' "$SEED" "$EXAMPLES" "$foreman"
status=0
(
    cd "$folder"
    repository=$OLDPWD
    case $venv in /*) bin=$venv/bin ;; *) bin=$repository/$venv/bin ;; esac
    SCHEMATHESIS_HOOKS=$repository/$suite/hooks.py timeout "$((LIFE_S - 60))" "$bin/schemathesis" \
        --config-file "$repository/$suite/schemathesis.toml" run "$repository/docs/openapi.json" \
        --url "http://$foreman" --seed "$SEED" --max-examples "$EXAMPLES" --workers 1 --request-timeout 15 --no-color \
        --phases examples,coverage,fuzzing,stateful \
        --checks not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance,negative_data_rejection \
        --exclude-operation-id events --exclude-operation-id jobEvents "$@" |
        cut -c "-$LINE_MAX"
) || status=$?

# What foreman says of itself while it is played with must be no error either.
if grep -E ' ERROR |panicked' "$folder/foreman.log"; then
    fail "foreman logged errors"
fi
exit "$status"
