"""Keeps what came of each client in each scenario, and makes the table in docs/clients.md of it.

The suite writes one file a client into target/clients-results: a line for each test that ran or had a reason not to. As a
program, `results.py --check` fails where the page does not say what the files say, and `--write` makes it say so. Both
fail where a client or a scenario is missing from the files: a table is made of a whole run only.
"""

import json
import os
import sys
from pathlib import Path

from clients import CLIENTS, SCENARIOS

FOLDER = Path(os.environ.get("FOREMAN_TEST_RESULTS", "target/clients-results"))
PAGE = Path(__file__).parents[2] / "docs" / "clients.md"
BEGIN = "<!-- Made by tests/clients/run.sh --write; its checks fail where this differs from a run. -->\n"
END = "<!-- The end of what was made. -->\n"

PASSED, FAILED, LACKS = "pass", "FAILS", "n.a."


def file_of(client):
    """Where a client's results are."""
    return FOLDER / f"{client.registry}-{client.package}.jsonl"


def forget():
    """Drops the results of the run before."""
    for client in CLIENTS:
        file_of(client).unlink(missing_ok=True)


def note(client, scenario, version, outcome):
    """Writes down what came of one test."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    line = {"client": client.name, "version": version, "scenario": scenario, "outcome": outcome}
    if outcome == LACKS:
        line["reason"] = client.lacks[scenario]
    with file_of(client).open("a") as file:
        file.write(json.dumps(line) + "\n")


def cell(client, scenario, lines, reasons):
    """What the table says of one client in one scenario; a reason is added to `reasons` and referred to."""
    outcomes = {line["outcome"] for line in lines if line["scenario"] == scenario}
    if not outcomes:
        raise SystemExit(f"{client.name} has no result in the scenario {scenario}: make a whole run")
    if outcomes == {LACKS}:
        reason = client.lacks[scenario]
        if reason not in reasons:
            reasons.append(reason)
        return f"{LACKS} ({reasons.index(reason) + 1})"
    return PASSED if outcomes == {PASSED} else FAILED


def table():
    """The table and the reasons below it."""
    heads = ["client", "version", "base URL", *SCENARIOS.values()]
    rows, reasons = [], []
    for client in CLIENTS:
        if not file_of(client).exists():
            raise SystemExit(f"{client.name} has no results: make a whole run")
        lines = [json.loads(line) for line in file_of(client).read_text().splitlines()]
        versions = {line["version"] for line in lines if line["version"]}
        cells = [cell(client, scenario, lines, reasons) for scenario in SCENARIOS]
        rows.append([client.name, " ".join(sorted(versions)), client.base_url, *cells])
    lines = [f"| {' | '.join(row)} |" for row in [heads, ["---"] * len(heads), *rows]]
    lines += [""] + [f"({number}) {reason[0].upper()}{reason[1:]}.  " for number, reason in enumerate(reasons, 1)]
    return "\n".join(lines) + "\n"


def main(mode):
    """Checks the page or writes it."""
    made, page = table(), PAGE.read_text()
    before, rest = page.split(BEGIN)
    after = rest.split(END)[1]
    fresh = before + BEGIN + "\n" + made + "\n" + END + after
    if mode == "--write":
        PAGE.write_text(fresh)
    elif fresh != page:
        raise SystemExit(f"{PAGE.name} does not say what the run found (tests/clients/run.sh --write makes it):\n{made}")
    if FAILED in made:
        raise SystemExit(f"a client fails in a scenario:\n{made}")


if __name__ == "__main__":
    main(sys.argv[1])
