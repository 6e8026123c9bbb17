"""Models with fewer layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from optkit.errors import PassError
from optkit.model.model import Form, Model
from optkit.model.target import Target
from optkit.model.torch_folder import save_module, unfit
from optkit.passes._base import Context, Outcome, Pass, PassKind

if TYPE_CHECKING:
    from torch import nn

    from optkit.passes._prune.layers import LayerList

Index = Annotated[int, Field(ge=0)]


class DropLayers(Pass):
    """Remove whole layers of an encoder or decoder.

    ``layer 0 -> layer 1 -> ... -> layer 5`` becomes ``layer 0 -> layer 2 -> layer 5``; counts in the configuration and
    the numbers of layers follow. The result computes what the model does when the other layers give back what they
    take, which is checked. Put distill behind it, to win back what that costs.

    Sources: Sanh et al. 2019, "DistilBERT, a distilled version of BERT" (every other layer); Fan et al. 2020, "Reducing
    Transformer Depth on Demand with Structured Dropout"; Men et al. 2024, "ShortGPT" (block influence).
    """

    forms: ClassVar[Mapping[Form, Form]] = {"torch": "torch"}
    kind: ClassVar[PassKind] = "lossy"
    needs: ClassVar[tuple[str, ...]] = ("torch",)
    uses_data: ClassVar[tuple[str, ...]] = ("sample",)

    remain: Literal["half"] | Annotated[int, Field(ge=1)] | Annotated[tuple[Index, ...], Field(min_length=1)] = "half"
    """How many layers stay, ``half`` of them, or which, counted from 0: ``[0, 2, 5]``."""
    list: str | tuple[str, ...] = ()
    """Where the layers are, such as encoder.layer; several lose layers alike (``[encoder.block, decoder.block]``).
    Empty = of all ModuleLists and Sequentials of one class of layers, the one with the most parameters in layers that
    keep the shape of what they take."""
    choose: Literal["even", "effect"] = "even"
    """Which stay where ``remain`` is no list. even = first and last and some between at equal distances (3 of 6: 0, 2,
    5); effect = those that turn their input most, by 1 - cosine(input, output) on the split search."""

    def reads(self) -> tuple[str, ...]:
        """One batch to run; the split search to choose by effect."""
        return ("sample", "search") if self._by_effect() else ("sample",)

    def applies(self, model: Model, target: Target) -> str:
        """Only models that are built by code or a configuration."""
        del target
        return unfit(model) if model.form == "torch" else ""

    def __call__(self, model: Model, ctx: Context) -> Outcome:
        """Drop layers, and compare with the original that bypasses them.

        Raises:
            PassError: there are no such layers, none would go, one of them has to stay, or the others do not work
                without them.
        """
        from optkit.passes._prune.layer_choice import words
        from optkit.passes._prune.layer_drop import drop, require_same
        from optkit.passes._prune.layers import bypassed, find_lists, outputs
        from optkit.passes._torch_cost import cost, sample_inputs

        module = ctx.load_torch(model)
        inputs, samples = sample_inputs(model, ctx.batches("sample"))
        found = find_lists(module, inputs)
        before = cost(module, inputs, samples)
        chosen = {each.path: self._kept(each, module, model, ctx) for each in self._wanted(found, model)}
        plan = {path: kept for path, (kept, _) in chosen.items()}
        known = {layers.path: layers for layers in found}
        gone = [name for path, kept in plan.items() for at, name in enumerate(known[path].names) if at not in kept]
        with bypassed(module, gone):
            expected = outputs(module, inputs)
        done = drop(module, [each for each in found if each.path in plan], plan)
        require_same(module, inputs, expected, gone)
        others = [f"{each.path} ({each.count})" for each in found if each.path not in plan]
        return Outcome(
            save_module(model, module, done, ctx.workdir / "model", self.sentence()),
            changed=len(gone),
            changes=[
                (path, f"{known[path].count} layers -> {len(kept)}: {words(kept)}") for path, kept in plan.items()
            ],
            skipped=[(", ".join(others), "other layers; name them as list")] if others else [],
            notes=[
                cost(module, inputs, samples).told(before),
                *(note for _, notes in chosen.values() for note in notes),
            ],
        )

    def _by_effect(self) -> bool:
        return self.choose == "effect" and not isinstance(self.remain, tuple)

    def _wanted(self, found: Sequence[LayerList], model: Model) -> Sequence[LayerList]:
        names = (self.list,) if isinstance(self.list, str) else self.list
        known = {layers.path: layers for layers in found}
        if not found or any(name not in known for name in names):
            missing = next((f" '{name}'" for name in names if name not in known), "")
            raise PassError(
                f"{model.path.name} has no list of layers{missing} of which one could go.",
                expected="a ModuleList or Sequential of modules of one class that keep the shape of their input: "
                + (", ".join(f"{each.path} ({each.count} layers)" for each in found) or "there is none"),
                fix="name one of them as list" if found else "prune its channels instead: prune-channels",
            )
        return [known[name] for name in names] or found[:1]

    def _kept(
        self, layers: LayerList, module: nn.Module, model: Model, ctx: Context
    ) -> tuple[Sequence[int], Sequence[str]]:
        """Indices, and what was found out on the way."""
        from optkit.passes._prune.layer_choice import evenly, influences, require_fit, strongest

        bound = sorted(layers.bound)
        if isinstance(self.remain, tuple):
            kept = sorted(set(self.remain))
            require_fit(layers, kept, len(kept))
            return kept, ()
        number = max(1, layers.count // 2) if self.remain == "half" else self.remain
        require_fit(layers, bound, number)
        if self.choose == "even":
            return evenly(layers.count, number, bound), ()
        effects = influences(module, layers, model.signature, ctx.batches("search"))
        told = ", ".join(f"{index} {effect:.3g}" for index, effect in effects.items())
        return strongest(effects, number, bound), [f"influence of the layers of {layers.path}: {told}"]
