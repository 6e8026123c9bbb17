"""Profiles a model: each node's time beside what this machine can do, and beside another model's."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import quantiles
from typing import Any

from optkit.bench.events import Call
from optkit.bench.lineup import line_up
from optkit.bench.peaks import measure_peaks
from optkit.bench.profile import SECONDS, Profiled, profile_model
from optkit.bench.profile_facts import ModelProfile, Peaks, ProfileFacts
from optkit.bench.ratio import describe
from optkit.bench.roofline import model_profile
from optkit.bench.trace import chrome_trace
from optkit.data.dataset import Arrays
from optkit.errors import OutputError, PackageError, UsageError
from optkit.model.bundle import write_error
from optkit.model.machine import usable_threads
from optkit.model.model import Model
from optkit.model.target import Target
from optkit.pipeline.bench import supplied
from optkit.pipeline.candidates import About, Entrant, open_entrants, share_inputs
from optkit.pipeline.context import Progress, silent, with_session
from optkit.pipeline.environment import environment, load_average
from optkit.pipeline.infer import refuse_both
from optkit.pipeline.isolate import isolated, refuse_within_import
from optkit.pipeline.sweep import Fed, points_of
from optkit.report.profile import short_label
from optkit.runner.session import threads_of

SPREAD = 0.25
"""Interquartile range of the latency, over its median, from which a note says that the machine is busy."""
SLOWED = 0.8
"""Scale of the nodes' times below which a note says that they are rough."""


@dataclass(frozen=True)
class Conditions:
    """Under which models are profiled."""

    inputs: Path | None = None
    """What ``infer`` takes; else evaluation data as ``bench`` finds them; else made-up inputs."""
    data: Mapping[str, Any] | list[str] | None = None
    """Evaluation data."""
    dims: Mapping[str, int] = field(default_factory=dict)
    """Dimension -> size; ``batch`` is the sample axis, whatever its name."""
    threads: int | None = None
    """Intra-op threads; None = as many as each model wants, else as may be used."""
    seconds: float = SECONDS
    """Of timing per model."""


def profile(
    model: str | Path | Model,
    *,
    against: str | Path | Model | None = None,
    conditions: Conditions | None = None,
    trace: Path | None = None,
    force: bool = False,
    about: About | None = None,
    watch: Progress = silent,
) -> ProfileFacts:
    """Where the time of one call goes, node by node, and what could be gained.

    Args:
        model: ``MODEL[@ENGINE]``, a path or an opened Model.
        against: another one, whose hot spots are put beside those of ``model``.
        conditions: what the models are fed, threads and time.
        trace: write the calls as a Chrome trace, for https://ui.perfetto.dev.
        force: replace an existing ``trace``.
        about: what the models need to be opened and run.
        watch: is told what is being done.

    Raises:
        UsageError: an engine that cannot be profiled, a dimension that does not exist.
        OutputError: ``trace`` exists, or cannot be written.
        OptkitError: something else given is wrong.
    """
    refuse_within_import()
    conditions = conditions or Conditions()
    refuse_both(conditions.inputs, conditions.data)
    if trace is not None:
        _check_trace(trace, force)
    before = load_average()
    entrants, fed = _prepared([model] if against is None else [model, against], conditions, about or About())
    targets = [_target(each, conditions.threads, fed.dims) for each in entrants]
    found, peaks, lacking = _measured(entrants, targets, fed.batches, conditions.seconds, watch)
    profiles = [_facts(*each, peaks) for each in zip(entrants, targets, found, strict=True)]
    if trace is not None:
        _write_trace(trace, {each.label: one.calls for each, one in zip(entrants, found, strict=True)})
    own_notes = (note for each in zip(profiles, found, strict=True) for note in _notes(*each))
    families, pairs = line_up(profiles[0].nodes, profiles[1].nodes) if against is not None else ((), ())
    return ProfileFacts(
        model=profiles[0],
        against=None if against is None else profiles[1],
        families=families,
        pairs=pairs,
        peaks=peaks,
        threads=targets[0].threads,
        dims=fed.dims,
        inputs=describe(fed.batches, "synthetic" if fed.synthetic else "real"),
        synthetic=fed.synthetic,
        source=fed.source,
        environment=environment(targets[0], before),
        trace=None if trace is None else str(trace),
        notes=tuple(dict.fromkeys(filter(None, (fed.note, lacking, _other_threads(entrants, targets), *own_notes)))),
    )


def _prepared(models: Sequence[str | Path | Model], conditions: Conditions, about: About) -> tuple[list[Entrant], Fed]:
    """The models opened, and what they are fed."""
    entrants = share_inputs(open_entrants(models, about))
    _refuse_engines(entrants)
    entrants, supply = supplied(entrants, conditions.inputs, conditions.data, 0)
    sizes = {name: [size] for name, size in conditions.dims.items()}
    counts = [conditions.threads or usable_threads()]
    ((point, _),) = points_of(supply, sizes, counts, {each.label: each.model for each in entrants})
    fed = supply.at(point)
    return entrants, replace(fed, batches=_alike(fed.batches))


def _target(entrant: Entrant, threads: int | None, dims: Mapping[str, int]) -> Target:
    """With the threads that were asked for, else those that the model wants, else those that may be used."""
    target = replace(entrant.candidate.target, threads=threads or 0, shapes=dims)
    return replace(target, threads=threads_of({**entrant.model.session, **entrant.candidate.session}, target))


def _other_threads(entrants: Sequence[Entrant], targets: Sequence[Target]) -> str:
    """Empty, or that the second model ran with another number of threads than the first."""
    last = targets[-1].threads
    return "" if last == targets[0].threads else f"{short_label(entrants[-1].label)} wants, and got, {last} threads"


def _measured(
    entrants: Sequence[Entrant], targets: Sequence[Target], batches: list[Arrays], seconds: float, watch: Progress
) -> tuple[list[Profiled], Peaks | None, str]:
    """Each model's profile; the machine's limits, or why there are none."""
    steps = len(entrants) + 1
    found = []
    for index, (each, target) in enumerate(zip(entrants, targets, strict=True)):
        watch(f"profiling {each.label}", index, steps)
        found.append(_profiled(each, target, batches, seconds))
    watch("measuring the machine's limits", len(entrants), steps)
    return found, *_peaks(targets)


def _profiled(entrant: Entrant, target: Target, batches: list[Arrays], seconds: float) -> Profiled:
    """One model, in a process of its own; what it writes goes into a temporary folder of this one's."""
    model = with_session(entrant.model, dict(entrant.candidate.session))
    with tempfile.TemporaryDirectory(prefix="optkit-profile-") as scratch:
        return isolated(True, profile_model, model, target, batches, Path(scratch), seconds)


def _refuse_engines(entrants: Sequence[Entrant]) -> None:
    for each in entrants:
        if each.candidate.target.engine == "openvino":
            raise UsageError(
                f"{each.label}: only onnxruntime and torch can be profiled here.",
                expected="an ONNX model without @openvino, or a torch model",
                fix="compare the engines with: optkit bench",
            )


def _alike(batches: Sequence[Arrays]) -> list[Arrays]:
    """Those of the first one's shapes: a node's work depends on them."""

    def shapes(batch: Arrays) -> list[tuple[int, ...]]:
        return [array.shape for array in batch.values()]

    return [batch for batch in batches if shapes(batch) == shapes(batches[0])]


def _peaks(targets: Sequence[Target]) -> tuple[Peaks | None, str]:
    """The machine's limits, or why there are none."""
    if all(target.provider != "cpu" for target in targets):
        return None, "limits are only measured of the CPU"
    try:
        return isolated(True, measure_peaks, targets[0].threads), ""
    except PackageError as error:
        return None, f"the machine's limits were not measured: {error.message}"


def _facts(entrant: Entrant, target: Target, found: Profiled, peaks: Peaks | None) -> ModelProfile:
    model = entrant.model
    return model_profile(
        found,
        peaks if target.provider == "cpu" else None,
        label=entrant.label,
        path=str(model.path),
        kind=model.kind,
        provider=target.provider,
        digest=model.digest,
        size_bytes=model.size_bytes,
    )


def _notes(profile: ModelProfile, found: Profiled) -> Iterator[str]:
    """What one has to know to read the times."""
    name, times = short_label(profile.label), found.plain_times
    low, middle, high = quantiles(times, n=4) if len(times) > 1 else (times[0],) * 3
    if high - low > SPREAD * middle:
        yield (
            f"{name}: the middle half of the calls took from {low * 1e3:.3g} to {high * 1e3:.3g} ms: the machine is "
            "busy, and the times are rough"
        )
    if profile.scale < SLOWED:
        yield (
            f"{name}: with the profiler a call takes {profile.profiled_ms / profile.latency_ms:.1f} times as long as "
            "without, so the times of short nodes are rough"
        )
    if found.engine != "onnxruntime":
        yield f"{name}: torch does not show what its operators write, so it is not known how fast they could be"
    if profile.provider != "cpu":
        yield f"{name}: on {profile.provider} the profiler may see how long work takes to launch, and not to run"


def _check_trace(out: Path, force: bool) -> None:
    """Refuse a place for the trace before any work is done.

    Raises:
        OutputError: it exists (without ``force``), is a folder, or lies in none.
    """
    if out.is_dir() or not out.absolute().parent.is_dir():
        raise OutputError(
            f"The trace {out} cannot be written: "
            + ("that is a folder." if out.is_dir() else "its folder does not exist."),
            expected="a file in an existing folder",
            fix="choose another path with --trace",
        )
    if out.exists() and not force:
        raise OutputError(
            f"The trace {out} exists already.",
            expected="a path where nothing is yet",
            fix="choose another one with --trace, or replace it with --force",
        )


def _write_trace(out: Path, calls: Mapping[str, Sequence[Call]]) -> None:
    """Write beside, then put in place by one rename."""
    hidden = out.absolute().with_name(f".{out.name}.{os.getpid()}-{threading.get_ident()}")
    try:
        hidden.write_text(json.dumps(chrome_trace(calls)), encoding="utf-8")
        hidden.replace(out)
    except OSError as error:
        raise write_error(error, out, fix="choose another path with --trace") from error
    finally:
        with contextlib.suppress(OSError):
            hidden.unlink(missing_ok=True)
