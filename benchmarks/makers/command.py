"""A peer's command, run from outside: what it made, or the reason why it made nothing."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from benchmarks import venvs
from benchmarks.artefacts import made, reason
from benchmarks.subjects import Product

QUIET = {
    "CI": "true",
    "HF_HUB_OFFLINE": "1",
    "OLIVE_DISABLE_TELEMETRY": "1",
    "ORT_DISABLE_TELEMETRY": "1",
    "PYTHONPATH": str(venvs.ROOT),
}
"""No hub and no telemetry. Olive sends a heartbeat before it looks at its own switch, and waits up to 11 s for
an answer where there is no network; where ``CI`` is set it sends nothing (olive/telemetry/telemetry.py)."""

LONGEST = 1200
"""Seconds before a command counts as hung."""
QUANTIZED = re.compile(r"Integer|QuantizeLinear|^QLinear|^DynamicQuantize|^QGemm|^QAttention|^QEmbed|NBits")
LOG, NOTE = "log.txt", "note.txt"
BLAME = re.compile(
    r"^error: |^(?:\w+\.)*\w*(?:Error|Exception|Fail|Failure|NotImplemented|InvalidGraph|InvalidArgument)\b.*"
)


def run(command: Sequence[str | Path], place: Path, **environment: str) -> None:
    """Run a command inside a folder, its output in ``log.txt``.

    Raises:
        RuntimeError: another exit code than 0, with what it complained about.
    """
    with (place / LOG).open("w") as log:
        try:
            code = subprocess.run(
                list(map(str, command)),
                cwd=place,
                env=os.environ | QUIET | environment,
                stdout=log,
                stderr=subprocess.STDOUT,
                timeout=LONGEST,
                check=False,
            ).returncode
        except subprocess.TimeoutExpired as error:
            raise RuntimeError(f"not done after {LONGEST} s") from error
    if code:
        raise RuntimeError(f"exit {code}: {blame((place / LOG).read_text(errors='replace'))}")


def require(path: Path) -> None:
    """What a command said it made must be there.

    Raises:
        RuntimeError: it is not, though the command ended with 0.
    """
    if not path.is_file():
        raise RuntimeError(f"exit 0, no model: {blame((path.parent / LOG).read_text(errors='replace'))}")


def note_if_unquantized(path: Path) -> None:
    """Add to ``note.txt`` if a quantizer returned the model as it was, without a word.

    Operators inside the branches of If and the bodies of Loop count too.
    """
    import onnx

    def operators(graph: onnx.GraphProto) -> Iterator[str]:
        for node in graph.node:
            yield node.op_type
            for attribute in node.attribute:
                for inner in (*attribute.graphs, *([attribute.g] if attribute.HasField("g") else [])):
                    yield from operators(inner)

    if not any(QUANTIZED.search(name) for name in operators(onnx.load(path, load_external_data=False).graph)):
        with (path.parent / NOTE).open("a") as file:
            file.write("nothing was quantized\n")


def blame(output: str) -> str:
    """The line that says what went wrong: the last that reads like an exception, else the last one at all."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    found = [line for line in lines if BLAME.match(line)] or lines or ["it said nothing"]
    return found[-1][:250]


def product(
    label: str, peer: str, folder: Path, name: str, key: object, make: Callable[[Path], None], note: str = ""
) -> Product:
    """``model.onnx`` that ``make(place)`` writes, kept by key; a product that failed if it raises.

    Args:
        label: shown in tables.
        peer: whose it is.
        folder: of the subject.
        name: of the artefact's folder.
        key: everything it depends on.
        make: as of ``artefacts.made``; it may leave a ``note.txt`` beside the model.
        note: said beside the figures, before that one.
    """
    try:
        place, seconds = made(folder, name, key, make)
    except RuntimeError as error:
        return Product(label, peer, None, "onnxruntime", note=note, failed=reason(error))
    more = (place / NOTE).read_text().splitlines() if (place / NOTE).is_file() else []
    said = "; ".join(filter(None, (note, *more)))
    return Product(label, peer, place / "model.onnx", "onnxruntime", seconds=seconds, note=said)
