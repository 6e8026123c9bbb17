"""What a pass gets to know and use: the real Context, bound to one job and one step."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import tee
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optkit.bench.measure import Candidate, Measured, Rules, measure
from optkit.data.dataset import Arrays, Batch, Dataset
from optkit.errors import PassError
from optkit.evaluate.judge import judge
from optkit.evaluate.metrics import Metric, needs_labels
from optkit.model.manifest import Ratio, Verdict
from optkit.model.model import Model
from optkit.model.target import Target
from optkit.passes._train.training import Training
from optkit.pipeline.cache import key_of
from optkit.pipeline.job import Job
from optkit.pipeline.reference import original_outputs
from optkit.runner.base import Runner
from optkit.runner.open import open_runner, run_batches, run_dataset

if TYPE_CHECKING:
    from torch import nn

Progress = Callable[[str, int, int], None]
"""(what, done, total): told to whoever watches."""


CHOOSING = Rules(budget_s=4.0)
"""How a pass that decides by time measures."""


def silent(what: str, done: int, total: int) -> None:
    """The Progress of those who do not watch."""


@dataclass(frozen=True)
class StepContext:
    """Implements ``optkit.passes._base.Context`` for one step."""

    job: Job
    workdir: Path
    step: str
    watch: Progress = silent
    reads: frozenset[str] | None = None
    """Splits the pass declared (``reads``), whose digests are in its cache key; None = any."""
    times: bool = True
    """Whether the pass declared that it decides by time (``decides_by_time``)."""
    source: str = ""
    """Digest of the pass's code."""
    key: str = ""
    """Of the step in the cache."""

    @property
    def original(self) -> Model:
        """The model as it was given."""
        return self.job.original

    @property
    def target(self) -> Target:
        """The machine the result is for."""
        return self.job.target

    @property
    def seed(self) -> int:
        """Of every random choice."""
        return self.job.seed

    def batches(self, split: str) -> Dataset:
        """The samples of a split; ``sample`` is one small batch of whatever data there are.

        Raises:
            PassError: the pass reads what it did not declare, so that its cached result would outlive the data.
        """
        if self.reads is not None and split not in self.reads:
            raise PassError(
                f"The pass '{self.step}' reads the split '{split}' without having declared it.",
                expected=f"'{split}' in what its reads() gives",
                fix="report this to the author of the pass",
            )
        return self.job.split(split)

    def run(self, model: Model, batches: Dataset, outputs: Sequence[str] | None = None) -> Iterator[Arrays]:
        """Outputs by name, batch by batch; ``outputs`` may name inner tensors of an ONNX model."""
        with open_runner(model, self.job.target, outputs=outputs) as runner:
            yield from run_dataset(runner, batches)

    def load_torch(self, model: Model) -> nn.Module:
        """The live module of a torch model, in eval mode."""
        from optkit.model.load_torch import load_module

        return load_module(model)

    def to_onnx(self, model: Model) -> Model:
        """The model exported by the recipe's own export pass (cached)."""
        from optkit.pipeline.steps import export

        return export(self.job, model)

    @property
    def may_time(self) -> bool:
        """False where nobody wants anything timed (``--no-bench``)."""
        return self.job.bench

    def time(
        self,
        models: Sequence[Model],
        *,
        budget_s: float = CHOOSING.budget_s,
        confidence: float = CHOOSING.confidence,
    ) -> list[Ratio]:
        """Latency of each model against the first, in separate interleaved processes, for about so many seconds.

        The intervals hold the truth with ``confidence``.

        Raises:
            PassError: the pass did not declare it, so that its cached result would be used on another machine; or it
                did not ask ``may_time``.
        """
        if not self.times or not self.may_time:
            declared = "a look at ctx.may_time before" if self.times else "decides_by_time() to say so"
            raise PassError(
                f"The pass '{self.step}' decides by time without having {'asked' if self.times else 'declared it'}.",
                expected=declared,
                fix="report this to the author of the pass",
            )
        return time_models(self.job, models, replace(CHOOSING, budget_s=budget_s, confidence=confidence))

    def judge(self, model: Model, data: Dataset | None = None) -> Verdict:
        """Compare with the original on the search split only; on ``data``, some of it, where that is given."""
        whole = self.batches("search")
        return judge_on(self.job, model, whole if data is None else data)

    def remember(self, facts: Mapping[str, Any], make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """What ``make`` gives; other steps and later runs that ask with the same ``facts`` get it too."""
        key = key_of({"what": "remembered", "source": self.source, **self.job.runtime_facts(), "facts": dict(facts)})
        with self.job.cache.lock(key):
            known: dict[str, Any] | None = self.job.cache.get_facts(key)
            if known is None:
                known = make()
                self.job.cache.put_facts(key, known, f"data of {self.step}")
        return known

    @property
    def training(self) -> Training:
        """How to train: the recipe's block ``train:``."""
        return self.job.training

    def judge_outputs(self, outputs: Iterable[Arrays]) -> Verdict:
        """As ``judge``, of outputs that a live module gave on the batches of the search split, in order."""
        dataset = self.batches("search")
        return verdict_on(self.job, zip((batch for batch in dataset.batches()), outputs, strict=False), dataset)

    def checkpoints(self) -> Path:
        """A folder that stays when this step is interrupted, and is there again when it is run once more."""
        return self.job.cache.partial(self.key or key_of({"step": self.step, "in": str(self.workdir)}))

    def progress(self, done: int, total: int) -> None:
        """Tell whoever watches how far this pass is."""
        self.watch(self.step, done, total)


def judge_on(
    job: Job, model: Model, dataset: Dataset, dropped: Sequence[str] = (), allowed: frozenset[str] = frozenset()
) -> Verdict:
    """The accuracy verdict on a model against the original, on one dataset."""
    with open_runner(model, job.target) as runner:
        return verdict_on(job, run_batches(runner, dataset), dataset, dropped, allowed)


def verdict_on(
    job: Job,
    ran: Iterable[tuple[Batch, Arrays]],
    dataset: Dataset,
    dropped: Sequence[str] = (),
    allowed: frozenset[str] = frozenset(),
) -> Verdict:
    """The accuracy verdict on what a model gave, batch by batch, on one dataset."""
    metric, fit = _metric(job, dataset), None
    if metric is not None and "fit" in job.splits:
        fit = (job.splits["fit"], original_outputs(job, job.splits["fit"]))
    fed, made = tee(ran)
    return judge(
        original_outputs(job, dataset),
        (outputs for _, outputs in made),
        dataset,
        batches=(batch for batch, _ in fed),
        signature=job.original.signature,
        options=job.outputs,
        metric=metric,
        limits=job.limits,
        exact=job.exact,
        dropped=dropped,
        may_change=allowed,
        fit=fit,
    )


def _metric(job: Job, dataset: Dataset) -> Metric | None:
    """The metric; None where it was only found (in a data.yaml, a bundle) and these data do not allow for it."""
    if dataset.synthetic and not job.metric_asked:
        return None
    metric = job.load_metric()
    stated = job.metric_asked or job.metric_code
    unlabelled = metric is not None and dataset.labels is None and needs_labels(metric)
    return None if unlabelled and not stated else metric


def time_models(job: Job, models: Sequence[Model], rules: Rules = CHOOSING) -> list[Ratio]:
    """Latency of each model against the first, on real inputs where there are any."""
    return [found.ratio for found in time_candidates(job, [(model, job.target) for model in models], rules)]


def time_candidates(job: Job, candidates: Sequence[tuple[Model, Target]], rules: Rules) -> list[Measured]:
    """As ``time_models``, with a target each and everything the stopwatch found."""
    inputs, described = bench_inputs(job)
    chosen = [Candidate(model=model, target=target, session=model.session) for model, target in candidates]
    return measure(chosen, inputs, rules, described=described)


def call_seconds(model: Model, target: Target, inputs: Arrays) -> float:
    """Seconds of one call, coarsely: of the first one; on devices, which make themselves ready in it, a second."""
    with open_runner(model, target) as runner:
        return min(_timed(runner, inputs) for _ in range(1 if target.provider == "cpu" else 2))


def _timed(runner: Runner, inputs: Arrays) -> float:
    begin = time.perf_counter()
    runner.run(inputs)
    return time.perf_counter() - begin


def bench_inputs(job: Job, count: int = 4) -> tuple[list[Arrays], str]:
    """A few batches to rotate through, and what they are in words."""
    dataset = bench_dataset(job)
    inputs = [batch.inputs for batch, _ in zip(dataset.batches(), range(count), strict=False)]
    full = [item for item in inputs if _rows(item) == _rows(inputs[0])]
    return full, "synthetic" if dataset.synthetic else "real"


def bench_dataset(job: Job) -> Dataset:
    """The search split, or synthetic inputs at the shapes the target asks for."""
    if not job.target.shapes:
        return job.splits.get("search") or job.splits["evaluation"]
    from optkit.data.synthetic import synthetic

    batch = job.target.shapes.get("batch", job.splits["evaluation"].batch)
    signature = job.original.signature
    return synthetic(signature, split="search", shapes=job.target.shapes, count=4 * batch, batch=batch, seed=job.seed)


def _rows(inputs: Arrays) -> tuple[int, ...]:
    return tuple(len(array) if array.ndim else 0 for array in inputs.values())


def with_session(model: Model, session: dict[str, str]) -> Model:
    """The model with the session entries it wants added to those it has."""
    return replace(model, session={**model.session, **session})


def require_model(model: Model, where: Path) -> None:
    """A pass's result must lie in its own folder.

    Raises:
        PassError: it does not.
    """
    if where.resolve() not in model.path.resolve().parents:
        raise PassError(
            f"The pass wrote its result to {model.path}, outside its own folder.",
            expected=f"a path below {where}",
            fix="report this to the author of the pass",
        )
