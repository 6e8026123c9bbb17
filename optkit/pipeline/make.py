"""One pass on one model: its result from the cache, or made now in a folder of its own."""

from __future__ import annotations

import inspect
import json
import sys
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

from optkit import __version__
from optkit.errors import OptkitError, PassError
from optkit.model.bundle import disk_full
from optkit.model.digest import digest_factory, model_files, sha256_files
from optkit.model.model import Model
from optkit.model.signature import Signature, TensorSpec
from optkit.passes import _registry
from optkit.passes._base import Outcome, Pass
from optkit.pipeline.cache import key_of
from optkit.pipeline.context import Progress, StepContext, bench_dataset, require_model, silent, with_session
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


def make(
    job: Job, pass_: Pass, before: Model, *, label: str, watch: Progress = silent, remeasure: bool = False
) -> Made:
    """The pass's result from the cache, or made now in a folder of its own.

    With ``remeasure`` a pass that decides by time runs again.
    """
    key = step_key(job, pass_, before)
    with job.cache.lock(key):
        folder = None if remeasure and pass_.decides_by_time() else job.cache.get(key)
        cached = folder is not None
        if folder is None:
            child = needs_child(before)
            with _named(label):
                folder = isolated(child, _make, job, pass_, before, key, label, silent if child else watch)
    facts = json.loads((folder / "outcome.json").read_text())
    return Made(_unpack(facts, folder, before, pass_), facts, key, cached)


@contextmanager
def _named(label: str) -> Iterator[None]:
    """A worker process that died cannot say which step it was at."""
    try:
        yield
    except PassError as error:
        if isinstance(error.__cause__, BrokenProcessPool):
            error.message = f"The step '{label}' failed: {error.message}"
        raise


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
    after = replace(after, factory=facts["factory"])
    if after.form != "torch":
        after = replace(after, factory=None, trust_pickle=False)
    return with_session(after, facts["session"])


def _make(job: Job, pass_: Pass, before: Model, key: str, label: str, watch: Progress) -> Path:
    files = model_files(before)
    stamp = _stamp(files)
    with job.cache.workdir() as work:
        made = work / "made"
        made.mkdir()
        started = time.perf_counter()
        with watched_memory() as peak:
            outcome = _call(pass_, before, replace(step_context(job, pass_, before, made, label, watch), key=key))
        seconds = time.perf_counter() - started
        if _stamp(files) != stamp:
            raise PassError(
                f"The pass '{label}' changed its input {before.path}.",
                expected="an input that is only read",
                fix="report this to the author of the pass",
            )
        facts = _pack(outcome, before, made) | {"seconds": seconds, "peak_mb": peak.mb}
        (made / "outcome.json").write_text(json.dumps(facts, default=str))
        folder = job.cache.put(key if outcome.lasting else key_of({"once": key, "at": time.time_ns()}), made, label)
    job.cache.finished(key)
    return folder


def step_context(job: Job, pass_: Pass, before: Model, workdir: Path, label: str, watch: Progress) -> StepContext:
    """What a pass that runs on ``before`` may know and use."""
    reads, source = _reads(pass_, before), _source_digest(type(pass_))
    return StepContext(job, workdir, label, watch, reads, pass_.decides_by_time(), source)


def _pack(outcome: Outcome, before: Model, made: Path) -> dict[str, Any]:
    apart = ("model", "session", "lasting")
    facts: dict[str, Any] = {key: value for key, value in vars(outcome).items() if key not in apart}
    facts["decisions"] = [decision.model_dump() for decision in outcome.decisions]
    facts |= {"model": None, "form": outcome.model.form, "kind": outcome.model.kind, "session": dict(outcome.session)}
    facts["factory"] = outcome.model.factory
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
        outcome: object = pass_(before, context)
    except OptkitError:
        raise
    except (Exception, SystemExit) as error:  # the libraries below a pass raise anything; the user needs its name
        if isinstance(error, OSError) and disk_full(error):
            raise  # the cache, which gave the folder, says it
        if isinstance(error, ImportError) and (error.name or "").startswith("optkit"):
            raise  # optkit itself is torn
        text = next(iter(str(error).strip().splitlines()), "no message")
        raise PassError(
            f"The pass '{context.step}' failed: {type(error).__name__}: {text}",
            expected="a model this pass can handle",
            fix="leave the pass out, or report it with the model's structure (optkit inspect)",
        ) from error
    if isinstance(outcome, Outcome):
        return outcome
    raise PassError(
        f"The pass '{context.step}' gave back a {type(outcome).__name__}.",
        expected="an Outcome",
        fix="report this to the author of the pass",
    )


def _reads(pass_: Pass, before: Model) -> frozenset[str]:
    """The splits whose digests are in the step's key; exports and other torch passes may look at a sample."""
    return frozenset(pass_.reads()) | ({"sample"} if before.form == "torch" else set())


def step_key(job: Job, pass_: Pass, before: Model) -> str:
    """Cache key: everything that decides what the pass makes of this model."""
    from optkit.model.machine import fingerprint, machine

    facts: dict[str, Any] = {
        "optkit": __version__,
        "model": before.digest,
        "session": dict(before.session),
        "original": job.original.digest,
        "pass": pass_.name(),
        "config": pass_.model_dump(mode="json"),
        "source": _source_digest(type(pass_)),
        "code": [_code_digest(reference) for reference in pass_.code()],
        "versions": library_versions(*_LIBRARIES, *pass_.needs),
        "seed": job.seed,
        "fixes": dict(pass_.fixes(job.target)),
        "data": {split: job.split(split).digest for split in sorted(_reads(pass_, before))},
    }
    if before.form == "torch":
        facts["signature"] = before.signature
    if pass_.kind == "trains":
        facts["training"] = (job.training.model_dump(exclude={"function"}), _code_digest(job.training.function))
        facts["exporter"] = None if job.exporter is None else job.exporter.sentence()
    if "search" in pass_.reads():
        facts["judged"] = (job.limits, job.metric, job.outputs, job.exact, _metric_facts(job))
    if pass_.uses_target:
        facts["target"] = (job.target.provider, tuple(machine().features))
    if pass_.decides_by_time():
        facts["machine"] = fingerprint(job.target) if job.bench else "not timed"
        facts["timed on"] = bench_dataset(job).digest if job.bench else ""
    return key_of(facts)


def _metric_facts(job: Job) -> tuple[str, str]:
    """Digests of the metric's code and of the data it is fitted on."""
    metric, fit = job.load_metric(), job.splits.get("fit")
    if metric is None:
        return "", ""
    code = getattr(metric.per_sample, "__code__", None)
    source = Path("" if code is None else code.co_filename)
    return sha256_files([source]) if source.is_file() else "", "" if fit is None else fit.digest


def _code_digest(reference: str | None) -> str:
    """Over the source that a reference of the user's names, and what it imports."""
    return "" if reference is None else digest_factory(reference)


def _source_digest(cls: type[Pass]) -> str:
    """Over the pass's file, those of its bases, and the ``_`` helpers beside each and of optkit's own passes.

    Of a third party's package all modules count. So an edited pass is never served from the cache, nor is one without
    a file (typed into a notebook).
    """
    files = {*_helpers(Path(_registry.__file__).parent), *_package_files(cls)}
    for base in cls.__mro__[: cls.__mro__.index(Pass)]:
        try:
            source = inspect.getsourcefile(base)
        except (TypeError, OSError):
            source = None
        if source is None or not Path(source).is_file():
            return _TOKENS.setdefault(cls, uuid.uuid4().hex)
        files |= {Path(source), *_helpers(Path(source).parent)}
    return sha256_files(sorted(files))


def _package_files(cls: type[Pass]) -> list[Path]:
    """Every module of the package that a third party's pass is in; none where it is a lone file."""
    name = cls.__module__.partition(".")[0]
    start = Path(getattr(sys.modules.get(name), "__file__", None) or "")
    third_party = name != "optkit" and start.name == "__init__.py"
    return list(start.parent.rglob("*.py")) if third_party else []


def _helpers(folder: Path) -> list[Path]:
    return [*folder.glob("_*.py"), *(file for inner in folder.glob("_*/") for file in inner.rglob("*.py"))]


_TOKENS: WeakKeyDictionary[type[Pass], str] = WeakKeyDictionary()
"""Stands for the source of classes that have none; new in every process."""


def _stamp(files: Sequence[Path]) -> list[tuple[int, int] | None]:
    """Size and time of each file, None where it is gone."""
    return [(file.stat().st_size, file.stat().st_mtime_ns) if file.is_file() else None for file in files]
