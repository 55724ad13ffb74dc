"""docs/ci and .ci: the files are valid, their commands are ours, and exit codes come through."""

import os
import re
import shutil
import stat
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from edge_embed.cli import make_parser

ROOT = Path(__file__).parents[1]
CI = ROOT / "docs/ci"
SCRIPTS = (CI / "drift.sh", ROOT / ".ci/run", ROOT / ".ci/accuracy")

# In place of the command: notes what it is called with, writes what is asked for, ends as FAKE_CODES says.
FAKE = """#!/usr/bin/env bash
echo "$*" >>"$FAKE_LOG"
step=$1
[ "$step" = drift ] && step=$2
while [ $# -gt 0 ]; do
    case $1 in -o | --markdown | --html | --junit) [ -n "${FAKE_SILENT:-}" ] || echo "$step" >"$2" ;; esac
    shift
done
for pair in $FAKE_CODES; do [ "${pair%%=*}" = "$step" ] && exit "${pair#*=}"; done
exit 0
"""


def action() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((CI / "github/action.yml").read_text())
    return found


def run(folder: Path, codes: str = "", **variables: str) -> tuple[int, list[str]]:
    """drift.sh with a fake command: its exit code, and the calls."""
    command = folder / "bin/edge-embed"
    command.parent.mkdir(parents=True, exist_ok=True)
    command.write_text(FAKE)
    command.chmod(command.stat().st_mode | stat.S_IEXEC)
    log = folder / "log"
    log.write_text("")
    path = f"{command.parent}{os.pathsep}{os.environ['PATH']}"
    plain = {"PATH": path, "FAKE_LOG": str(log), "FAKE_CODES": codes, "REPORTS": str(folder / "reports")}
    done = subprocess.run(
        ["bash", str(CI / "drift.sh")],
        env=plain | {"MODEL": "a model", "REFERENCE": "r.npz"} | variables,
        cwd=folder,
        capture_output=True,
        encoding="utf-8",
    )
    return done.returncode, log.read_text().splitlines()


def test_each_compute_type_is_quantized_measured_and_judged(tmp_path: Path) -> None:
    code, calls = run(tmp_path)
    reports = tmp_path / "reports"
    assert code == 0
    steps = [re.match(r"quantize|drift measure|gate", call) for call in calls]
    assert [step and step[0] for step in steps] == ["quantize", "drift measure", "gate"] * 2
    assert ["int8_weights" in call for call in calls] == [True] * 3 + [False] * 3
    for call in calls:
        make_parser().parse_args(call.replace("a model", "model").split())
    assert {path.name for path in reports.iterdir()} >= {"int8.json", "int8.md", "int8.html", "int8.xml"}


def test_options_reach_the_commands(tmp_path: Path) -> None:
    _, calls = run(
        tmp_path,
        COMPUTE_TYPES="int8",
        TEXTS="texts.jsonl",
        CALIBRATION="own.txt",
        BUDGET="b.toml",
        BASELINE="base.json",
        STRICT="true",
        GITHUB_ACTIONS="true",
    )
    quantize, measure, gate = calls
    assert quantize.endswith("--calibration own.txt")
    assert "--texts texts.jsonl" in measure
    assert gate.endswith("--budget b.toml --baseline base.json --strict --annotations")
    _, calls = run(tmp_path, COMPUTE_TYPES="float32", QUANTIZE="false")
    assert [call.split()[0] for call in calls] == ["drift", "gate"]


@pytest.mark.parametrize(
    ("codes", "expected", "steps"),
    [
        ("gate=3", 3, 6),  # the other type is judged all the same
        ("gate=5", 5, 6),
        ("measure=4", 4, 4),  # nothing to judge
        ("measure=1", 1, 6),  # it crashed, and the report says so
        ("measure=1 gate=3", 1, 6),
        ("quantize=2", 2, 2),
    ],
)
def test_the_first_exit_code_that_is_not_0_comes_through(
    tmp_path: Path, codes: str, expected: int, steps: int
) -> None:
    code, calls = run(tmp_path, codes)
    assert (code, len(calls)) == (expected, steps)


def test_a_crash_without_a_drift_file_is_not_judged_by_that_of_an_earlier_run(tmp_path: Path) -> None:
    run(tmp_path, COMPUTE_TYPES="int8")
    assert (tmp_path / "reports/int8.json").exists()
    code, calls = run(tmp_path, "measure=1", COMPUTE_TYPES="int8", FAKE_SILENT="1")
    assert (code, [call.split()[0] for call in calls]) == (1, ["quantize", "drift"])


def test_the_summary_and_the_folder_of_reports_are_handed_to_the_runner(tmp_path: Path) -> None:
    output, summary = tmp_path / "output", tmp_path / "summary"
    run(tmp_path, GITHUB_OUTPUT=str(output), GITHUB_STEP_SUMMARY=str(summary))
    assert output.read_text() == f"reports={tmp_path / 'reports'}\n"
    assert summary.read_text() == "gate\ngate\n"


def test_a_missing_variable_is_named(tmp_path: Path) -> None:
    code, calls = run(tmp_path, MODEL="")
    assert (code != 0, calls) == (True, [])


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_scripts_are_bash_that_parses_and_may_be_run(script: Path) -> None:
    assert subprocess.run(["bash", "-n", str(script)], capture_output=True).stderr == b""
    assert os.access(script, os.X_OK)
    if shutil.which("shellcheck"):
        assert subprocess.run(["shellcheck", str(script)], capture_output=True).stdout == b""


def test_the_action_hands_every_input_over_as_a_variable_that_the_script_knows() -> None:
    found = action()
    assert found["runs"]["using"] == "composite"
    steps = found["runs"]["steps"]
    used = {name for step in steps for value in step.get("env", {}).values() for name in inputs_in(value)}
    assert used == set(found["inputs"])
    script = (CI / "drift.sh").read_text()
    drift = next(step for step in steps if step.get("id") == "drift")
    for variable in drift["env"]:
        assert f"${{{variable}" in script, variable
    for step in steps:  # an expression in a script would be code that the caller writes
        assert "${{" not in step.get("run", "")
        assert "run" not in step or step["shell"] == "bash"


def inputs_in(value: str) -> list[str]:
    return re.findall(r"\$\{\{ inputs\.([a-z-]+) \}\}", value)


def test_actions_are_pinned_to_a_commit_and_say_which_version_that_is() -> None:
    for path in CI.glob("github/*.yml"):
        uses = re.findall(r"uses: (.*)", path.read_text())
        assert uses
        for line in uses:
            assert re.fullmatch(r"actions/[\w-]+@[0-9a-f]{40} # v[\d.]+|OWNER/.*@COMMIT", line), line


def test_examples_name_what_the_action_and_the_script_know() -> None:
    workflow = yaml.safe_load((CI / "github/workflow.yml").read_text())
    steps = workflow["jobs"]["drift"]["steps"]
    ours = next(step for step in steps if "docs/ci/github" in step["uses"])
    assert set(ours["with"]) <= set(action()["inputs"])
    gitlab = yaml.safe_load((CI / "gitlab-ci.yml").read_text())["drift"]
    script = (CI / "drift.sh").read_text()
    assert all(f"${{{variable}" in script for variable in gitlab["variables"])
    told = (CI / "README.md").read_text()
    for variable in re.findall(r": \"\$\{(\w+):", script) + re.findall(r'"\$\{(\w+):=', script):
        assert f"`{variable}`" in told, variable
