"""Times models against the first one: every candidate at every point of a sweep, on the same batches."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from optkit.bench.advice import warnings_for
from optkit.bench.facts import BenchFacts, BenchPoint, CandidateFacts, OpenLoop
from optkit.bench.measure import Candidate, Measured, Rules, measure, open_loop_of
from optkit.bench.open_loop import summarize
from optkit.data.dataset import Arrays
from optkit.errors import OptkitError, UsageError
from optkit.model.machine import usable_threads
from optkit.model.manifest import Environment
from optkit.model.model import Model
from optkit.model.signature import Signature
from optkit.pipeline.candidates import About, Entrant, open_entrants, share_inputs
from optkit.pipeline.context import Progress, silent
from optkit.pipeline.environment import environment, load_average
from optkit.pipeline.gather import complete_inputs, gather, parse_data_flags
from optkit.pipeline.infer import evaluation_source, input_source, refuse_both
from optkit.pipeline.isolate import refuse_within_import
from optkit.pipeline.origin import decided_elsewhere
from optkit.pipeline.sweep import Fed, Supply, common_inputs, points_of, rows_of


@dataclass(frozen=True)
class Load:
    """Requests that do not wait for one another."""

    rate: float
    """Per second."""
    seconds: float = 10.0


def bench(
    models: Sequence[str | Path | Model],
    *,
    inputs: Path | None = None,
    data: Mapping[str, Any] | list[str] | None = None,
    dims: Mapping[str, Sequence[int]] | None = None,
    threads: Sequence[int] = (),
    rules: Rules | None = None,
    noise_floor: bool = False,
    load: Load | None = None,
    samples: bool = True,
    about: About | None = None,
    watch: Progress = silent,
) -> BenchFacts:
    """Time models against the first one.

    Args:
        models: ``MODEL[@ENGINE]``, paths or opened Models; the first is the baseline.
        inputs: what ``infer`` takes; else the evaluation data of ``data``, of a ``data.yaml`` or of a bundle; else
            made-up inputs, which the facts then say.
        data: evaluation data.
        dims: dimension -> sizes to sweep; ``batch`` is the sample axis, whatever its name.
        threads: numbers of intra-op threads to sweep; empty = as many as each model wants, else as may be used.
        rules: when to stop, and what counts as faster.
        noise_floor: time the baseline against a second copy of itself too.
        load: also offer requests at this rate, to one candidate after the other.
        samples: keep the raw samples in the facts.
        about: what the models need to be opened and run.
        watch: is told which point is being measured.

    Raises:
        UsageError: an argument is out of range, or a dimension does not exist.
        OptkitError: a model, the data or a candidate failed, which is named.

    Whatever ends it, an interruption too, has the points measured until then as its ``facts``.
    """
    refuse_within_import()
    rules = rules or Rules()
    _check(rules, load)
    refuse_both(inputs, data)
    before = load_average()
    entrants = share_inputs(open_entrants(models, about or About()))
    entrants, supply = supplied(entrants, inputs, data, rules.seed)
    points = points_of(supply, dims or {}, threads or [usable_threads()], {e.label: e.model for e in entrants})
    here = environment(replace(entrants[0].candidate.target, threads=points[0][1]), before)
    stand = _Stand(entrants, supply, rules, noise_floor, load, samples, here, bool(threads))
    done: list[_Done] = []
    try:
        for index, (sizes, count) in enumerate(points):
            place = f"point {index + 1}/{len(points)}: {_words(sizes, count)}"
            done.append(stand.point(sizes, count, partial(_prefixed, watch, place)))
    except BaseException as error:  # an interruption too: what was measured until then goes along
        if isinstance(error, OptkitError) and dims:
            error.message = f"At {place.partition(': ')[2]}: {error.message}"
        if done:
            vars(error)["facts"] = stand.facts(done)
        raise
    return stand.facts(done)


def _check(rules: Rules, load: Load | None) -> None:
    """Numbers that make no sense.

    Raises:
        UsageError: there is one.
    """
    rate, seconds = (load.rate, load.seconds) if load else (1.0, 1.0)
    checks = (
        ("--budget", rules.budget_s, 0 < rules.budget_s < math.inf, "seconds above 0"),
        ("--precision", rules.precision, 0 < rules.precision < 1, "a share between 0 and 1, like 0.01"),
        ("--margin", rules.margin, 0 <= rules.margin < 1, "a share from 0 to below 1, like 0.02"),
        ("--launches", rules.launches, rules.launches >= 1, "a whole number from 1"),
        ("--seed", rules.seed, rules.seed >= 0, "a whole number from 0"),
        ("--load", rate, 0 < rate < math.inf, "requests per second, above 0"),
        ("--load-seconds", seconds, 0 < seconds < math.inf, "seconds above 0"),
    )
    for option, value, fits, expected in checks:
        if not fits:
            raise UsageError(f"{option} {value:g} makes no sense.", expected=expected, fix=f"leave {option} out")


def supplied(
    entrants: Sequence[Entrant], inputs: Path | None, data: Mapping[str, Any] | list[str] | None, seed: int
) -> tuple[list[Entrant], Supply]:
    """The candidates with their inputs known, and where batches come from.

    Data and preprocessing are the first candidate's that has them.
    """
    if data and "evaluation" not in parse_data_flags(data):
        raise UsageError(
            "Models are measured on evaluation data.", expected="--data evaluation=FILE", fix="name the split so"
        )
    found = [gather(each.model, flags=data) for each in entrants]
    sources = (evaluation_source(each, entrant.origin) for each, entrant in zip(found, entrants, strict=True))
    source = input_source(inputs, None) if inputs else next(filter(None, sources), None)
    known = {"evaluation": source} if source else {}
    models = [
        complete_inputs(entrant.model, replace(each, sources=known))
        for entrant, each in zip(entrants, found, strict=True)
    ]
    entrants = [entrant.with_model(model) for entrant, model in zip(entrants, models, strict=True)]
    assets = next((model.assets for model in models if model.assets.preprocess), models[0].assets)
    shapes = next((each.candidate.target.shapes for each in entrants if each.candidate.target.shapes), {})
    signature = Signature(common_inputs({each.label: each.model for each in entrants}))
    return entrants, Supply(signature, source, assets.preprocess, assets.folder, shapes, seed)


@dataclass(frozen=True)
class _Done:
    """One point, measured."""

    point: BenchPoint
    fed: Fed
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class _Stand:
    """Everything that is the same at all points."""

    entrants: Sequence[Entrant]
    supply: Supply
    rules: Rules
    noise_floor: bool
    load: Load | None
    samples: bool
    here: Environment
    states_threads: bool
    """Whether the number of threads was asked for; otherwise a model may want another one."""

    def point(self, sizes: Mapping[str, int], threads: int, watch: Progress) -> _Done:
        """All candidates at one point."""
        begin = time.monotonic()
        fed = self.supply.at(sizes)
        candidates = [
            replace(
                each.candidate,
                target=replace(each.candidate.target, threads=threads if self.states_threads else 0, shapes=fed.dims),
            )
            for each in self.entrants
        ]
        again = candidates[:1] if self.noise_floor else []
        described = "synthetic" if fed.synthetic else "real"
        rows = rows_of(self.supply.signature, fed.batches[0])
        measured = measure([*candidates, *again], fed.batches, self.rules, described=described, rows=rows, watch=watch)
        found = [self._facts(each, one, threads) for each, one in zip(self.entrants, measured, strict=False)]
        point = BenchPoint(
            dims=fed.dims,
            threads=threads,
            inputs=measured[0].ratio.inputs,
            inputs_digest=fed.digest,
            candidates=tuple(found),
            noise_floor=measured[-1].ratio if again else None,
            seconds=time.monotonic() - begin,
            load=self._loads(candidates, fed.batches),
        )
        models = {each.label: each.model for each in self.entrants}
        return _Done(point, fed, (*warnings_for(point, models, self.here), *_noisy(point)))

    def _facts(self, entrant: Entrant, one: Measured, threads: int) -> CandidateFacts:
        model, about = entrant.model, one.about
        return CandidateFacts(
            label=entrant.label,
            path=str(model.path),
            kind=model.kind,
            engine=about.engine,
            provider=about.provider,
            threads=about.threads or threads,
            digest=model.digest,
            size_bytes=model.size_bytes,
            session=dict(about.session),
            spinning=about.spinning,
            precision=about.precision,
            placement={name: dict(counts) for name, counts in about.placement.items()},
            peak_mb=one.peak_mb,
            phases=one.phases,
            steady=one.steady,
            ratio=one.ratio,
            verdict="baseline" if entrant is self.entrants[0] else one.ratio.word,
            stable=one.stable,
            samples_ms=tuple(tuple(round(s * 1e3, 6) for s in block) for block in one.blocks) if self.samples else (),
            launch_of=tuple(one.launch_of) if self.samples else (),
        )

    def _loads(self, candidates: Sequence[Candidate], batches: list[Arrays]) -> tuple[OpenLoop, ...]:
        if self.load is None:
            return ()
        rate, seconds, seed = self.load.rate, self.load.seconds, self.rules.seed
        found = [
            summarize(open_loop_of(one, batches, rate=rate, seconds=seconds, seed=seed), each.label, rate)
            for each, one in zip(self.entrants, candidates, strict=True)
        ]
        return tuple(each if self.samples else each.model_copy(update={"samples_ms": ()}) for each in found)

    def facts(self, done: Sequence[_Done]) -> BenchFacts:
        """Of the points measured so far."""
        points, fed = tuple(each.point for each in done), [each.fed for each in done]
        return BenchFacts(
            baseline=self.entrants[0].label,
            points=points,
            environment=self.here,
            seed=self.rules.seed,
            margin=self.rules.margin,
            confidence=self.rules.confidence,
            precision=self.rules.precision,
            budget_s=self.rules.budget_s,
            synthetic=any(each.synthetic for each in fed),
            source=next((each.source for each in fed if each.source), ""),
            stable=all(each.stable for point in points for each in point.candidates),
            warnings=tuple(_warnings(done)),
            notes=tuple(dict.fromkeys(filter(None, [*(each.note for each in fed), *map(_elsewhere, self.entrants)]))),
        )


def _elsewhere(entrant: Entrant) -> str:
    target = entrant.candidate.target
    told = decided_elsewhere(entrant.origin, target) if target.engine in ("", "onnxruntime") else ""
    return told and f"{entrant.label}: {told}"


def _warnings(done: Sequence[_Done]) -> Iterator[str]:
    """Each once, with the points it is about where those are not all."""
    about: dict[str, list[str]] = {}
    for each in done:
        for warning in each.warnings:
            about.setdefault(warning, []).append(_words(each.point.dims, each.point.threads))
    for warning, places in about.items():
        yield warning if len(places) == len(done) else f"{warning} ({'; '.join(places)})"


def _noisy(point: BenchPoint) -> Iterator[str]:
    floor = point.noise_floor
    if floor is not None and floor.word != "same":
        yield (
            f"The baseline came out {floor.word} than itself ({floor.speedup:.2f}x): differences of that size say "
            "nothing here; end other programs, or give a longer --budget."
        )


def _prefixed(watch: Progress, place: str, what: str, done: int, total: int) -> None:
    watch(f"{place}, {what}", done, total)


def _words(sizes: Mapping[str, int], threads: int) -> str:
    return ", ".join([*(f"{name}={size}" for name, size in sizes.items()), f"{threads} threads"])
