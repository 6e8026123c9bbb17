"""One model fused in several ways: each made when it is asked for, opened, and compared with what it was made of."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np

from optkit.data.dataset import Array, Arrays, Batch, Dataset
from optkit.errors import GivenError
from optkit.model.model import Model
from optkit.passes._base import NOISE, NOISE_INT8, Context
from optkit.passes._fusion.family import Fired
from optkit.passes._ort import session_options

if TYPE_CHECKING:
    import onnx_ir as ir

    from optkit.passes._fusion.families import Prepared

Names = frozenset[str]

KEPT, KEPT_BYTES = 5, 2e9
"""So many models lie on disk at once, or about so many bytes of them; two in any case. No measurement takes more."""
ULPS = 8 * float(np.finfo(np.float32).eps)
"""Of the largest value: rounding, whatever the standard deviation."""
SAMPLES = "a made-up batch", "a batch of zeros"
"""What variants are compared on."""
QUANTIZE = ("QuantizeLinear", "DynamicQuantizeLinear")


@dataclass(frozen=True)
class Variant:
    """The model with some families applied."""

    model: Model
    """Where the families did nothing, the model they were given."""
    fired: Mapping[str, Fired]
    """What each of them did."""
    problem: str = ""
    """Why it cannot be used."""


@dataclass
class Variants:
    """Makes them, each in a folder of its own below the workdir."""

    model: Model
    ctx: Context
    sentence: str
    """The pass, for the lineage."""
    made: dict[Names, Variant] = field(default_factory=dict)
    """Those whose files are still there, the one asked for last at the end."""
    count: int = 0

    def __call__(self, families: Names) -> Variant:
        """The model with these families applied."""
        known = self.made.pop(families, None)
        if known is None:
            for old in list(self.made)[: max(0, len(self.made) - self._kept() + 1)]:
                self._forget(old)
        self.made[families] = known or self._make(families)
        return self.made[families]

    def build(self, families: Names) -> Model | str:
        """The model with these families applied, or why it cannot be used."""
        variant = self(families)
        return variant.problem or variant.model

    def usable(self, families: Sequence[str]) -> tuple[Names, list[tuple[str, str]]]:
        """Those that can be applied together; and (family, reason) of those that have to be left out for that."""
        if not self(frozenset(families)).problem:
            return frozenset(families), []
        good, refused = Names(), list[tuple[str, str]]()
        for name in families:
            problem = self(good | {name}).problem
            good = good if problem else good | {name}
            refused += [(name, problem)] if problem else []
        return good, refused

    def matching(self, families: Sequence[str]) -> dict[str, Fired]:
        """What each does when all are applied, in memory only."""
        from optkit.passes._fusion.families import apply, copied

        return apply(copied(self._prepared), families)

    def keep_only(self, families: Names) -> None:
        """Remove the files of all others."""
        for other in self.made.keys() - {families}:
            self._forget(other)

    def _kept(self) -> int:
        return max(2, min(KEPT, int(KEPT_BYTES / max(1, self.model.size_bytes)) + 1))

    def _forget(self, families: Names) -> None:
        path = self.made.pop(families).model.path
        if self.ctx.workdir in path.parents:
            shutil.rmtree(path.parent)

    def _make(self, families: Names) -> Variant:
        from optkit.passes._fusion.families import apply, copied
        from optkit.passes._ir import save_ir

        prepared = copied(self._prepared)
        fired = apply(prepared, families)
        if not any(each.count for each in fired.values()):
            return Variant(self.model, fired)
        self.count += 1
        path = self.ctx.workdir / f"fused-{self.count}" / "model.onnx"
        path.parent.mkdir()
        save_ir(prepared.model, path)
        if problem := _fails_to_open(path, self.model.session):
            return Variant(replace(self.model, path=path), fired, problem)
        made = self.model.derive(path, "onnx", self.sentence)
        return Variant(made, fired, self._differs(made))

    @cached_property
    def loaded(self) -> ir.Model:
        """The model as it is."""
        from optkit.passes._ir import load_ir

        return load_ir(self.model.path)

    @cached_property
    def _prepared(self) -> Prepared:
        from optkit.passes._fusion.families import prepare
        from optkit.passes._ir import inline

        return prepare(inline(self.loaded.clone()))

    @property
    def notes(self) -> list[str]:
        """Why nothing was compared, where it should have been."""
        tried = vars(self).get("_expected", {})  # nothing is run for the note alone
        failed = [result for result in tried.values() if isinstance(result, str)]
        none = bool(failed) and len(failed) == len(tried)
        return [f"not compared with the model, which takes no made-up batch: {failed[0]}"] if none else []

    @cached_property
    def _samples(self) -> dict[str, Dataset]:
        from optkit.data.synthetic import synthetic

        made_up = synthetic(self.model.signature, split="sample", shapes={}, count=2, batch=2, seed=self.ctx.seed)
        return dict(zip(SAMPLES, (made_up, cast("Dataset", Zeros(made_up))), strict=True))

    @cached_property
    def _expected(self) -> dict[str, list[Arrays] | str]:
        """What the model makes of each sample, or why it does not take it."""
        return {sample: self._results(self.model, sample) for sample in SAMPLES}

    def _results(self, model: Model, sample: str) -> list[Arrays] | str:
        try:
            return list(self.ctx.run(model, self._samples[sample]))
        except GivenError as error:
            return error.message

    @cached_property
    def _noise(self) -> float:
        from optkit.passes._ir import op_counts

        counts = op_counts(self.loaded)
        return NOISE_INT8 if any(counts[kind] for kind in QUANTIZE) else NOISE

    def _differs(self, made: Model) -> str:
        """Why it does not compute the same, or nothing."""
        for sample, expected in self._expected.items():
            if isinstance(expected, str):
                continue
            found = self._results(made, sample)
            if isinstance(found, str):
                return found
            for before, after in zip(expected, found, strict=True):
                for name, array in before.items():
                    if not same(array, after[name], self._noise):
                        return f"its {name} differs on {sample}"
        return ""


@dataclass(frozen=True)
class Zeros:
    """The same batches with 0 for every number: edge values show where an epsilon or a clamp went missing."""

    like: Dataset

    @property
    def batch(self) -> int:
        """Samples per batch."""
        return self.like.batch

    def batches(self) -> Iterator[Batch]:
        """As a ``Dataset`` has them."""
        for batch in self.like.batches():
            inputs = batch.inputs.items()
            yield replace(batch, inputs={n: np.zeros_like(x) if x.dtype.kind in "fiub" else x for n, x in inputs})


def same(before: Array, after: Array, noise: float) -> bool:
    """Whether two results are equal up to ``noise`` (see ``NOISE``), also in where they are NaN or infinite.

    In any case they are where they differ by a few units in the last place of the largest, in float32: the standard
    deviation of a result that is the same everywhere is 0.
    """
    if before.shape != after.shape or before.dtype != after.dtype:
        return False
    if before.dtype.kind != "f":
        return bool(np.mean(before == after) >= 1 - (noise if noise > NOISE else 0.0)) if before.size else True
    finite = before[np.isfinite(before)].astype(np.float64)
    allowed = max(noise * float(finite.std()), ULPS * float(np.abs(finite).max())) if finite.size else 0.0
    return bool(np.allclose(after, before, rtol=0, atol=allowed, equal_nan=True))


def _fails_to_open(path: Path, session: Mapping[str, str]) -> str:
    """Why onnxruntime cannot open the file, or an empty string."""
    import onnxruntime as ort

    try:
        ort.InferenceSession(path, session_options(session), providers=["CPUExecutionProvider"])
    except Exception as error:  # noqa: BLE001  onnxruntime's errors share no base class
        return f"onnxruntime cannot open the result: {str(error).splitlines()[0]}"
    return ""
