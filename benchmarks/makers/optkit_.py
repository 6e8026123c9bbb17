"""optkit by its own command: the recipes that it ships."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import optkit
from benchmarks.makers.command import product, run
from benchmarks.subjects import Product, Subject
from optkit.evaluate.limits import AGREEMENT, COSINE, EXACT_MAX_ERROR
from optkit.model.machine import fingerprint
from optkit.model.target import Target

PEER = "optkit"
RECIPES = {name: (name,) for name in ("fp32", "int8", "int8-static")}
"""What optkit makes: after its name the recipe, and what is set in it."""
FOUR_BITS = {
    f"int4 {method}, blocks of {size}": (
        "int4",
        f"passes.quantize-weights.method={method}",
        f"passes.quantize-weights.block_size={size}",
    )
    for method in ("rtn", "gptq")
    for size in (32, 128)
}
"""For language models."""
ROOMS = ("model", "data", "passes", "runner", "recipe", "pipeline")
LIMITS = ("cosine=-1", "agreement=0", "max_error=1e9", "speedup=null")
LOOSE = tuple(word for limit in LIMITS for word in ("--limit", limit))
"""Limits that everything holds: here a result is measured, not judged; ``refused`` says what the defaults would do."""
LOSSY = {"cosine": COSINE, "agreement": AGREEMENT}
EXACT = "fp32"
"""The recipe whose passes change nothing but float noise."""


def products(subject: Subject, folder: Path) -> list[Product]:
    """One for each recipe; a recipe that refuses says why."""
    wanted = RECIPES | (FOUR_BITS if subject.headline == "perplexity" else {})
    return [_made(subject, folder, label, *chosen) for label, chosen in wanted.items()]


def _made(subject: Subject, folder: Path, label: str, recipe: str, *sets: str) -> Product:
    data = [(split, _content(path)) for split, path in sorted(subject.data.items())]
    sizes = shapes(subject)
    key = (subject.opened().digest, subject.signature, recipe, sets, sources(), data, sizes, fingerprint(Target()))
    note = f"optkit optimize --recipe {' --set '.join((recipe, *sets))}, its choices timed at {sizes}"
    place = re.sub(r"\W+", "-", f"optkit-{label}")
    found = product(f"optkit {label}", PEER, folder, place, key, partial(_optimize, subject, recipe, sets), note)
    if found.path is None:
        return found
    bundle = found.path.parent / "bundle"
    manifest = json.loads((bundle / "manifest.json").read_text())
    missed = refused(manifest["verdict"]["limits"], recipe == EXACT)
    said = f"{note}; refused by default: {missed}" if missed else note
    return replace(found, path=bundle / "model.onnx", session=manifest["session"], note=said)


def _optimize(subject: Subject, recipe: str, sets: Sequence[str], place: Path) -> None:
    given = ["--factory", subject.factory] if subject.factory else []
    given += ["--signature", subject.signature] if subject.signature else []
    for split, path in subject.data.items():
        given += ["--data", f"{split}={path}"]
    for each in (f"target.shapes={json.dumps(shapes(subject))}", *sets):
        given += ["--set", each]
    command = [sys.executable, "-m", "optkit", "optimize", subject.model, "--recipe", recipe, *given, *LOOSE]
    cache = place / "cache"  # of its own: what the recipes share would make the second one look quick
    run([*command, "-o", place / "bundle", "--force"], place, OPTKIT_CACHE=str(cache))
    shutil.rmtree(cache)


def shapes(subject: Subject) -> dict[str, int]:
    """Sizes of the dynamic dimensions at the last point: what a user would say of the inputs to expect."""
    feeds = subject.feeds(subject.points[-1])[0]
    inputs = optkit.Model.open(subject.baseline, signature=subject.signature).signature.inputs
    pairs = (pair for spec in inputs for pair in zip(spec.shape or (), feeds[spec.name].shape, strict=False))
    return {dim: size for dim, size in pairs if isinstance(dim, str)}


def refused(limits: Sequence[Mapping[str, Any]], exact: bool) -> str:
    """Which of optkit's default limits a verdict's figures miss; empty = none.

    Args:
        limits: ``verdict.limits`` of a manifest.
        exact: whether the recipe's passes are all exact.
    """
    found = []
    for each in limits:
        name, measured = each["name"], each["measured"]
        if measured is None:
            continue
        if exact and name == "max_error" and measured > EXACT_MAX_ERROR:
            found.append(f"{name} {measured:.3g} > {EXACT_MAX_ERROR:g}")
        if not exact and name in LOSSY and measured < LOSSY[name]:
            found.append(f"{name} {measured:.4f} < {LOSSY[name]:g}")
    return ", ".join(found)


def sources() -> str:
    """Digest of the rooms of optkit that have a part in a result, and of its recipes."""
    root = Path(optkit.__file__).parent
    files = [file for room in ROOMS for file in sorted((root / room).rglob("*.py"))]
    files += sorted((root.parent / "recipes").glob("*.yaml"))
    return hashlib.sha256("".join(file.read_text() for file in files).encode()).hexdigest()


def _content(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
