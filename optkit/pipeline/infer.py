"""Runs a model over inputs: the right provider or a refusal, figures of every output, and what ran where."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Unpack, cast

from optkit.data.dataset import Dataset
from optkit.data.open import find_data_file, open_dataset, open_inputs
from optkit.data.spec import DataSource
from optkit.data.synthetic import synthetic
from optkit.errors import ProviderError, UsageError
from optkit.model.manifest import MeasuredOn, Verdict
from optkit.model.model import Model
from optkit.model.signature import Signature
from optkit.model.target import Target
from optkit.pipeline.compare import compare
from optkit.pipeline.context import Progress, silent
from optkit.pipeline.gather import SYNTHETIC_SAMPLES, Gathered, Source, complete_inputs, gather
from optkit.pipeline.isolate import isolated
from optkit.pipeline.optimize import stop_on_miss
from optkit.pipeline.origin import Origin, decided_elsewhere, read_origin
from optkit.pipeline.outputs import Collector, check_npz, write_npz
from optkit.pipeline.plan import Options, as_target, open_given
from optkit.report.run import RunFacts
from optkit.runner.onnx import OnnxRunner
from optkit.runner.open import open_runner, run_batches
from optkit.runner.providers import require

BATCH = 8
"""Samples per batch, where neither the model nor the user says."""


@dataclass(frozen=True)
class Ran:
    """What a run gave."""

    facts: RunFacts
    verdict: Verdict | None = None
    """Against the original, where one was named."""


def infer(
    model: str | Path | Model,
    *,
    inputs: Path | None = None,
    output: Path | None = None,
    batch: int | None = None,
    against: Path | None = None,
    force: bool = False,
    watch: Progress = silent,
    **options: Unpack[Options],
) -> Ran:
    """Run a model over all samples of its inputs.

    Args:
        model: a bundle, any model file, or an opened Model.
        inputs: .npz, image, folder, text file or table. None = the evaluation data of ``options``, of the model's
            ``data.yaml``, of the bundle or of its original; made-up inputs as a last resort, which the facts then say.
        output: an .npz file for the outputs by name; nothing is written where the comparison fails.
        batch: samples per batch; a batch size fixed in the model overrides it.
        against: the original to compare with; ``factory``, ``signature`` and ``trust_pickle`` are then about it.
        force: replace an existing ``output``.
        watch: is told how many samples are done.
        options: see ``Options``. The provider is, if not given, the one that the bundle was made for.

    Raises:
        AccuracyMissed: the model is not what ``against`` is, by the limits.
        BudgetMissed: likewise too slow or large, where a limit says so.
        OutputError: ``output`` exists, or cannot be written.
        OptkitError: something else given is wrong.
    """
    _check_arguments(inputs, against, options)
    if output is not None:
        check_npz(output, force=force)
    opened = with_signature(open_given(model, cast(Options, {}) if against is not None else options))
    origin = read_origin(opened, bundle=not isinstance(model, Model) and Path(model).is_dir())
    target = _target(opened, origin, options)
    verdict = None
    if against is not None:
        verdict = _compare(against, opened, inputs, batch, {**options, "provider": target.provider})
    opened, dataset = _open_data(opened, origin, inputs, batch, target, options, against)
    watcher = silent if opened.kind == "torchscript" else watch
    facts = isolated(opened.kind == "torchscript", _run, opened, target, dataset, output, watcher)
    told = "" if verdict is not None else decided_elsewhere(origin, target)  # the verdict tells it itself
    return Ran(facts.model_copy(update={"notes": (*facts.notes, *filter(None, [told]))}), verdict)


def _check_arguments(inputs: Path | None, against: Path | None, options: Options) -> None:
    """Options that would be ignored in silence are refused."""
    idle = [name for name in ("metric", "limits") if options.get(name) is not None and against is None]
    if idle:
        flag = "--limit" if idle[0] == "limits" else "--metric"
        raise UsageError(
            f"{flag} judges a result against its original, and there is none.",
            expected="--against ORIGINAL beside it",
            fix=f"add --against ORIGINAL, or leave {flag} out",
        )
    refuse_both(inputs, options.get("data"))


def refuse_both(inputs: Path | None, data: object) -> None:
    """``--input`` and ``--data`` at once are refused."""
    if inputs is not None and data:
        raise UsageError(
            "--input and --data both say what to run on.", expected="one of them", fix="leave one of the two out"
        )


def with_signature(model: Model) -> Model:
    """Opening does not look into ORT files; running them has to know their inputs."""
    if model.kind != "ort" or model.signature.inputs:
        return model
    from optkit.model.summary_ort import read_ort

    return model.with_signature(read_ort(model.path).signature or model.signature)


def _target(model: Model, origin: Origin | None, options: Options) -> Target:
    """The asked provider, else the one the bundle was made for, else the CPU; one that is not there is refused."""
    target = as_target(origin.recipe if origin else None, options)
    if model.form != "torch":
        require(target.provider)
    elif target.provider != "cpu":
        raise ProviderError(
            f"A torch model runs on torch's CPU engine here, not on '{target.provider}'.",
            expected="--provider cpu, or an ONNX model",
            fix=f"make one with: optkit optimize {model.path} --recipe fp32 --provider {target.provider}",
        )
    return target


def _compare(
    against: Path, model: Model, inputs: Path | None, batch: int | None, options: Mapping[str, Any]
) -> Verdict:
    """The verdict of ``compare``; a limit that was missed raises."""
    original = open_given(against, cast(Options, options))
    if not original.signature.inputs:
        original = original.with_signature(Signature(model.signature.inputs))
    if not original.assets.preprocess:
        original = replace(original, assets=model.assets)
    if inputs is not None:
        options = {**options, "data": {"evaluation": input_source(inputs, batch).spec}}
    verdict = compare(original, model, **cast(Options, options))
    stop_on_miss(verdict, verdict)
    return verdict


def input_source(path: Path, batch: int | None) -> Source:
    """What ``--input`` names, as a data source; never code."""
    return Source(DataSource(source=str(path.absolute()), batch=batch or BATCH), Path.cwd(), False)


def _open_data(
    model: Model,
    origin: Origin | None,
    inputs: Path | None,
    batch: int | None,
    target: Target,
    options: Options,
    against: Path | None,
) -> tuple[Model, Dataset]:
    """The model with its inputs completed, and what to run it on."""
    gathered = gather(model, flags=options.get("data"))
    found = input_source(inputs, batch) if inputs is not None else evaluation_source(gathered, origin, against)
    known = {"evaluation": found} if found is not None else {}
    model = complete_inputs(model, replace(gathered, sources=known))
    preprocess, folder = model.assets.preprocess, model.assets.folder
    if inputs is not None:
        made = open_inputs(
            inputs, signature=model.signature, preprocess=preprocess, assets_dir=folder, batch=batch or BATCH
        )
        return model, made
    if found is None:
        return model, _made_up(model, target, batch)
    spec = found.spec if batch is None else found.spec.model_copy(update={"batch": batch})
    dataset = open_dataset(
        "evaluation",
        spec,
        signature=model.signature,
        base=found.base,
        preprocess=preprocess,
        assets_dir=folder,
        allow_code=found.code,
    )
    return model, dataset


def evaluation_source(gathered: Gathered, origin: Origin | None, against: Path | None = None) -> Source | None:
    """Evaluation data: of a flag or ``data.yaml``, of the bundle's recipe, of ``data.yaml`` beside its original."""
    if "evaluation" in gathered.sources:
        return gathered.sources["evaluation"]
    stated = origin.data.get("evaluation") if origin else None
    if stated is not None:
        return Source(stated, Path.cwd(), False)
    originals = [path for path in (against, Path(origin.manifest.original.path) if origin else None) if path]
    for original in originals:
        beside = find_data_file(original) if original.exists() else None
        if beside is not None and "evaluation" in beside.data:
            return Source(beside.data["evaluation"], beside.base, False)
    return None


def _made_up(model: Model, target: Target, batch: int | None) -> Dataset:
    size = batch or target.shapes.get("batch", BATCH)
    count = max(SYNTHETIC_SAMPLES, size)
    return synthetic(model.signature, split="input", shapes=target.shapes, count=count, batch=size)


def _run(model: Model, target: Target, dataset: Dataset, output: Path | None, watch: Progress) -> RunFacts:
    """Everything that touches the engine, in one place, so that a child process can do it."""
    collector = Collector(keep=output is not None)
    start = time.perf_counter()
    with open_runner(model, target) as runner:
        ready = time.perf_counter()
        done = 0
        watch("running", 0, dataset.count)
        for batch, outputs in run_batches(runner, dataset):
            collector.add(outputs, batch.size)
            done += batch.size
            watch("running", done, dataset.count)
        end = time.perf_counter()
        on_ort = isinstance(runner, OnnxRunner)
        placement = runner.placement() if isinstance(runner, OnnxRunner) else {}
        threads = runner.about.threads
    if output is not None:
        write_npz(output, collector.arrays())
    return RunFacts(
        model=str(model.path),
        kind=model.kind,
        provider=target.provider if on_ort else "torch",
        threads=threads,
        data=_measured_on(dataset),
        outputs=collector.facts(),
        placement=placement,
        load_seconds=ready - start,
        seconds=end - ready,
        written=None if output is None else str(output),
        notes=tuple(_notes(placement, model, target)) if on_ort else (),
    )


def _measured_on(dataset: Dataset) -> MeasuredOn:
    return MeasuredOn(
        split=dataset.split,
        source=dataset.source,
        samples=dataset.count,
        batch=dataset.batch,
        synthetic=dataset.synthetic,
    )


def _notes(placement: Mapping[str, Mapping[str, int]], model: Model, target: Target) -> list[str]:
    if model.form == "ort":
        return ["onnxruntime does not say which nodes of an ORT file ran where"]
    if not placement:
        return ["this onnxruntime does not say which nodes ran where (1.24 and later do)"]
    fallen = placement.get("cpu", {})
    if target.provider == "cpu" or not fallen:
        return []
    kinds = ", ".join(fallen)
    return [f"{sum(fallen.values())} nodes fell to the CPU, because {target.provider} does not take them: {kinds}"]
