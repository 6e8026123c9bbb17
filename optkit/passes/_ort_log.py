"""Which of its own optimizers change a model, from the log that onnxruntime writes while it makes a session.

``python -P -m optkit.passes._ort_log PATH PROVIDER ENTRIES`` makes one, with its log on stderr, in a process of its
own: the log cannot be turned to anywhere else, and the model leaves no memory behind.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from optkit.model.model import config_entries
from optkit.passes._ort import session_options

DISABLED = "optimization.disable_specified_optimizers"
"""Session config entry: names of optimizers that are not to run, with ``;`` between."""

TIMEOUT_S = 300.0
_LINE = re.compile(r"GraphTransformer (\w+) modified: ([01]) ")
_INFO = 1


def active_optimizers(path: Path, provider: str, session: Mapping[str, str]) -> tuple[str, ...] | str:
    """Names of the optimizers that change the model when none of them is disabled, in their order.

    Args:
        path: of an ONNX or ORT file.
        provider: short name of the execution provider.
        session: see ``Model.session``; only its config entries count.

    Returns:
        The names, or in words why they are not known.
    """
    entries = {key: value for key, value in config_entries(session).items() if key != DISABLED}
    command = [sys.executable, "-P", "-m", "optkit.passes._ort_log", str(path), provider, json.dumps(entries)]
    paths = os.pathsep.join(path or str(Path.cwd()) for path in sys.path)
    try:
        done = subprocess.run(
            command, capture_output=True, timeout=TIMEOUT_S, env=os.environ | {"PYTHONPATH": paths}, check=False
        )
    except subprocess.TimeoutExpired:
        return f"onnxruntime made no session within {TIMEOUT_S:.0f} s"
    log = done.stderr.decode(errors="replace")
    if done.returncode:
        return f"onnxruntime made no session: {(log.strip().splitlines() or ['no message'])[-1]}"
    found = read_log(log)
    return "onnxruntime's log does not tell which of its optimizers change the model" if found is None else found


def read_log(log: str) -> tuple[str, ...] | None:
    """Names of the optimizers that changed something; None where the log has not a word about any."""
    lines = _LINE.findall(log)
    return tuple(dict.fromkeys(name for name, modified in lines if modified == "1")) if lines else None


def main() -> None:
    """Make the session."""
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"
    import onnxruntime as ort

    path, provider, entries = sys.argv[1:]
    options = session_options(json.loads(entries))
    options.log_severity_level = _INFO
    short = {name.removesuffix("ExecutionProvider").lower(): name for name in ort.get_available_providers()}
    if provider not in short:
        raise SystemExit(f"the provider {provider} cannot be asked")
    ort.InferenceSession(path, options, providers=[short[provider]])


if __name__ == "__main__":
    main()
