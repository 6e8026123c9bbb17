"""Starting costs a blink: what ``--help`` loads, asserted on ``sys.modules`` and not on the clock."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import typer

from tests.command import ROOT

HEAVY = ["torch", "onnx", "onnxruntime", "onnxscript", "onnx_ir", "onnxslim", "numpy", "transformers", "scipy", "PIL"]
CALL = """
import contextlib, io, json, sys
from optkit.cli.app import main
loaded = {}
for verb in json.loads(sys.argv[1]):
    sys.argv = ["optkit", *verb, "--help"]
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.suppress(SystemExit):
        main()
    assert "Usage:" in out.getvalue(), verb
    loaded[" ".join(verb)] = sorted({name.split(".")[0] for name in sys.modules})
print(json.dumps(loaded))
"""


def loaded_after(code: str, *argv: str, **env: str) -> dict[str, list[str]]:
    answer = subprocess.run(
        [sys.executable, "-c", code, *argv],
        env={**os.environ, "PYTHONPATH": str(ROOT), **env},
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(answer.stdout)


def verbs() -> list[list[str]]:
    """Every verb and group, as typer knows them."""
    from optkit.cli.app import app

    def walk(command: object, path: list[str]) -> list[list[str]]:
        inner = getattr(command, "commands", {})
        return [*([path] if path else []), *(found for name in inner for found in walk(inner[name], [*path, name]))]

    return walk(typer.main.get_command(app), [])


def test_help_loads_no_package_of_the_field() -> None:
    loaded = loaded_after(CALL, json.dumps([[]]))[""]
    assert {*HEAVY, "pydantic", "yaml"} & set(loaded) == set()


def test_the_help_of_every_verb_loads_no_package_of_the_field() -> None:
    found = verbs()
    assert {"optimize", "check", "run", "inspect", "doctor"} <= {path[0] for path in found} and len(found) >= 16
    for verb, loaded in loaded_after(CALL, json.dumps(found)).items():
        assert {*HEAVY, "yaml"} & set(loaded) == set(), verb


@pytest.mark.parametrize("code", ["import optkit; optkit.__version__", "from optkit.errors import OptkitError"])
def test_the_package_itself_is_cheap(code: str) -> None:
    show = "; import json, sys; print(json.dumps({'': sorted({name.split('.')[0] for name in sys.modules})}))"
    loaded = loaded_after(code + show)[""]
    assert {*HEAVY, "pydantic", "yaml", "typer", "rich"} & set(loaded) == set()


def test_the_public_names_are_found_and_listed() -> None:
    import optkit

    assert sorted([*optkit.__all__, "__version__"]) == dir(optkit)
    for name in optkit.__all__:
        assert getattr(optkit, name).__name__ == name
    with pytest.raises(AttributeError, match="no attribute 'optimise'"):
        _ = optkit.optimise


def test_completion_answers() -> None:
    env = {**os.environ, "PYTHONPATH": str(ROOT), "_OPTKIT_COMPLETE": "complete_bash", "COMP_WORDS": "optkit opt"}
    command = [sys.executable, "-c", "import sys; sys.argv[0] = 'optkit'; from optkit.cli.app import main; main()"]
    answer = subprocess.run(command, env={**env, "COMP_CWORD": "1"}, capture_output=True, text=True, check=False)
    assert answer.stdout.split() == ["optimize"], answer
