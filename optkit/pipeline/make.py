"""One pass on one model: its result from the cache, or made now in a folder of its own."""

from __future__ import annotations

import inspect
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from optkit import __version__
from optkit.errors import OptkitError, PassError
from optkit.model.digest import model_files, sha256_files
from optkit.model.model import Model
from optkit.model.signature import Signature, TensorSpec
from optkit.passes import _registry
from optkit.passes._base import Outcome, Pass
from optkit.pipeline.cache import key_of
from optkit.pipeline.context import Progress, StepContext, require_model, silent, with_session
from optkit.pipeline.isolate import isolated, needs_child, watched_memory
from optkit.pipeline.job import Job, library_versions

_LIBRARIES = ("numpy", "onnx", "onnx-ir", "onnxscript", "onnxslim", "onnxruntime", "torch", "transformers")
_SAME = "."
"""Stands for the model's path where a pass changed only how the same file is opened."""


@dataclass(frozen=True)
class Made:
    """One pass's result as it lies in the cache."""

    model: Model | None
    """None = no effect."""
    facts: dict[str, Any]
    key: str
    cached: bool


def make(job: Job, pass_: Pass, before: Model, *, label: str, watch: Progress = silent) -> Made:
    """The pass's result from the cache, or made now in a folder of its own."""
    key = step_key(job, pass_, before)
    with job.cache.lock(key):
        folder = job.cache.get(key)
        cached = folder is not None
        if folder is None:
            child = needs_child(before)
            folder = isolated(child, _make, job, pass_, before, key, label, silent if child else watch)
    facts = json.loads((folder / "outcome.json").read_text())
    return Made(_unpack(facts, folder, before, pass_), facts, key, cached)


def _unpack(facts: Mapping[str, Any], folder: Path, before: Model, pass_: Pass) -> Model | None:
    if facts["model"] is None:
        return None
    lineage = (*before.lineage, pass_.sentence())
    if facts["model"] == _SAME:
        return with_session(replace(before, lineage=lineage), facts["session"])
    specs = {
        side: tuple(TensorSpec(name, dtype, None if shape is None else tuple(shape)) for name, dtype, shape in listed)
        for side, listed in facts["signature"].items()
    }
    signature = Signature(specs["inputs"], specs["outputs"])
    path = folder / facts["model"]
    after = replace(before, path=path, form=facts["form"], kind=facts["kind"], signature=signature, lineage=lineage)
    return with_session(after, facts["session"])


def _make(job: Job, pass_: Pass, before: Model, key: str, label: str, watch: Progress) -> Path:
    stamp = _stamp(before)
    with job.cache.workdir() as work:
        made = work / "made"
        made.mkdir()
        started = time.perf_counter()
        with watched_memory() as peak:
            outcome = _call(pass_, before, StepContext(job, made, label, watch))
        seconds = time.perf_counter() - started
        if _stamp(before) != stamp:
            raise PassError(
                f"The pass '{label}' changed its input {before.path}.",
                expected="an input that is only read",
                fix="report this to the author of the pass",
            )
        facts = _pack(outcome, before, made) | {"seconds": seconds, "peak_mb": peak.mb}
        (made / "outcome.json").write_text(json.dumps(facts, default=str))
        return job.cache.put(key, made, label)


def _pack(outcome: Outcome, before: Model, made: Path) -> dict[str, Any]:
    facts: dict[str, Any] = {key: value for key, value in vars(outcome).items() if key not in ("model", "session")}
    facts |= {"model": None, "form": outcome.model.form, "kind": outcome.model.kind, "session": dict(outcome.session)}
    if outcome.changed and outcome.model.path == before.path:
        facts["model"] = _SAME
    elif outcome.changed:
        require_model(outcome.model, made)
        facts["model"] = str(outcome.model.path.resolve().relative_to(made.resolve()))
        facts["signature"] = {
            side: [(spec.name, spec.dtype, spec.shape) for spec in specs]
            for side, specs in vars(outcome.model.signature).items()
        }
    return facts


def _call(pass_: Pass, before: Model, context: StepContext) -> Outcome:
    try:
        return pass_(before, context)
    except (OptkitError, OSError):
        raise
    except Exception as error:  # the libraries below a pass raise anything; the user needs the pass's name
        raise PassError(
            f"The pass '{context.step}' failed: {type(error).__name__}: {str(error).strip().splitlines()[:1]}",
            expected="a model this pass can handle",
            fix="leave the pass out, or report it with the model's structure (optkit inspect)",
        ) from error


def step_key(job: Job, pass_: Pass, before: Model) -> str:
    """Cache key: everything that decides what the pass makes of this model."""
    facts: dict[str, Any] = {
        "optkit": __version__,
        "model": before.digest,
        "pass": pass_.name(),
        "config": pass_.model_dump(mode="json"),
        "source": _source_digest(type(pass_)),
        "versions": library_versions(*_LIBRARIES, *pass_.needs),
        "seed": job.seed,
        "data": {split: job.split(split).digest for split in pass_.uses_data},
    }
    if before.form == "torch":
        facts["signature"] = before.signature
    if pass_.uses_target:
        facts["target"] = (job.target.provider, _machine_features())
    return key_of(facts)


def _machine_features() -> tuple[str, ...]:
    from optkit.model.machine import machine

    return tuple(machine().features)


def _source_digest(cls: type[Pass]) -> str:
    """Over the pass's own file and the shared working parts, so that an edited pass is never served from the cache."""
    source = inspect.getsourcefile(cls)
    shared = list(Path(_registry.__file__).parent.rglob("_*.py"))
    shared += [file for folder in Path(_registry.__file__).parent.glob("_*/") for file in folder.rglob("*.py")]
    return sha256_files(sorted({*shared, *([Path(source)] if source else [])}))


def _stamp(model: Model) -> tuple[tuple[str, int, int], ...]:
    return tuple((str(f), f.stat().st_size, f.stat().st_mtime_ns) for f in model_files(model))
