"""Students that learn from the original."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field, ValidationInfo, field_validator

from optkit.model.model import Form, Model
from optkit.model.target import Target
from optkit.model.torch_folder import save_module, unfit
from optkit.model.user_code import is_reference
from optkit.passes._base import Context, Outcome, Pass, PassKind
from optkit.passes._train.distillation import brought_nothing, lesson, told_nothing
from optkit.passes._train.hooks import hook_name
from optkit.passes._train.losses import TEMPERATURE
from optkit.passes._train.student import Setting
from optkit.passes._train.terms import WEIGHTS, Wishes, require_own_loss

if TYPE_CHECKING:
    from torch import Tensor, nn

    from optkit.passes._train.student import Student

Weight = Annotated[float, Field(gt=0)]


class Distill(Pass):
    """Train a smaller model to give what the original gives.

    ``original -> logits; pruned -> other logits`` becomes ``pruned -> nearly the logits of the original``. The student
    is the model as the steps before left it, or one of its own; samples need no labels. How long it trains, and with
    what learning rate, says the recipe's block ``train:``.

    Sources: Hinton et al. 2015, "Distilling the Knowledge in a Neural Network" (logits); Romero et al. 2015, "FitNets:
    Hints for Thin Deep Nets" (hidden states with a learned projection); Jiao et al. 2020, "TinyBERT: Distilling BERT
    for Natural Language Understanding" (layers); Wang et al. 2020, "MiniLM" (attention).
    """

    forms: ClassVar[Mapping[Form, Form]] = {"torch": "torch"}
    kind: ClassVar[PassKind] = "trains"
    needs: ClassVar[tuple[str, ...]] = ("torch",)
    for_speed: ClassVar[bool] = False
    uses_data: ClassVar[tuple[str, ...]] = ("train", "search", "sample")
    code_options: ClassVar[tuple[str, ...]] = ("student", "hooks")

    student: str | dict[str, Setting] | None = None
    """Who learns. None = the model as the steps before left it. ``{num_hidden_layers: 3}`` = a model of the same
    Hugging Face family in these sizes, with the original's weights where they fit. ``FILE.py:fn`` or ``pkg.module:fn``
    = what that function returns. The last two need distill to be the first step."""
    hooks: tuple[str, ...] = ()
    """Losses of your own, ``FILE.py:fn`` or ``pkg.module:fn``: fn(student_outputs, teacher_outputs, batch) returns a
    tensor of one number. They are added with the weight that losses gives their name, or 1."""
    losses: dict[str, Weight] | None = None
    """Name -> weight, above 0: logits (Kullback-Leibler divergence of class scores), embeddings (cosine and squared
    error of all other outputs, tokens also as their mean), hidden (the same of layers' outputs), attention (maps of
    transformers), labels, and hooks by the function's name. None = logits 1, embeddings 1 and labels 0.5,
    as far as there are any, and hidden 0.5 for layers that are named or, without class scores, of the same width."""
    temperature: float = Field(default=TEMPERATURE, gt=0)
    """Of the class scores in logits; above 1 the classes that are not the answer count more."""
    layers: dict[str, str] = Field(default_factory=dict)
    """Module of the student -> module of the original that it learns from, for hidden and attention:
    ``{encoder.layer.0: encoder.layer.1}``. Empty = layers in lists of the same name, shared out evenly, or by what
    drop-layers kept."""

    @field_validator("student")
    @classmethod
    def _known_student(cls, student: object) -> object:
        if isinstance(student, str) and not is_reference(student):
            raise ValueError(f"'{student}' names no function; write it like my_code.py:my_student")
        return student

    @field_validator("hooks")
    @classmethod
    def _known_hooks(cls, hooks: tuple[str, ...]) -> tuple[str, ...]:
        for reference in hooks:
            if not is_reference(reference):
                raise ValueError(f"'{reference}' names no function; write it like my_code.py:my_loss")
            if [*WEIGHTS, *map(hook_name, hooks)].count(hook_name(reference)) > 1:
                raise ValueError(f"two losses are named '{hook_name(reference)}'; rename the function")
        return hooks

    @field_validator("losses")
    @classmethod
    def _known_losses(cls, losses: dict[str, float] | None, info: ValidationInfo) -> dict[str, float] | None:
        known = [*WEIGHTS, *map(hook_name, info.data.get("hooks", ()))]
        for name in losses or ():
            if name not in known:
                close = difflib.get_close_matches(name, known, n=1)
                hint = f"did you mean '{close[0]}'?" if close else f"there are {', '.join(known)}"
                raise ValueError(f"there is no loss '{name}' ({hint})")
        if losses == {} and not info.data.get("hooks"):
            raise ValueError("there is nothing to learn by: name a loss, or leave losses out")
        return losses

    def applies(self, model: Model, target: Target) -> str:
        """Only models that are built by code or a configuration."""
        del target
        return unfit(model) if model.form == "torch" else ""

    def __call__(self, model: Model, ctx: Context) -> Outcome:
        """Train the student; the best weights by the search split are kept.

        Raises:
            PassError: outputs, losses or layers do not go together, or a student of its own learned nothing.
            ModelError: the student cannot be built.
            DataError: there are no samples to train on.
        """
        from optkit.passes._torch_cost import cost, sample_inputs
        from optkit.passes._train.checkpoint import weights
        from optkit.passes._train.loop import train
        from optkit.passes._train.student import find_student, require_match

        wishes = Wishes(self.losses, self.hooks, self.temperature, self.layers)
        require_own_loss(wishes, ctx)
        teacher = ctx.load_torch(ctx.original).requires_grad_(False)
        student = find_student(self.student, model, ctx, teacher)
        inputs, samples = sample_inputs(model, ctx.batches("sample"))
        require_match(student.module, teacher, inputs)
        before = weights(student.module)
        pairs = self._pairs(student, teacher, inputs)
        with lesson(student.module, teacher, inputs, pairs, wishes, ctx) as prepared:
            values, live = prepared.values(), prepared.looks_inside
            trained = train(student.module, ctx, prepared.loss, stage=self.name(), teacher=teacher, live=live)
            learned = [trained.told(), *trained.notes, prepared.moved(values)]
        changed = [name for name, value in weights(student.module).items() if not value.equal(before[name])]
        if not changed and student.built is None:
            return Outcome(model, 0, notes=[told_nothing(trained, ctx)])
        if not changed:
            raise brought_nothing(trained, ctx)
        costs = cost(student.module, inputs, samples).told(cost(teacher, inputs, samples))
        folder, by = ctx.workdir / "model", ctx.training.function or prepared.told()
        return Outcome(
            save_module(model, student.module, [], folder, self.sentence(), built=student.built),
            changed=len(changed),
            changes=[("student", f"{len(changed)} tensors trained by {by}"), *prepared.mapped(pairs)],
            notes=[*student.notes, *learned, *([costs] if student.built else [])],
        )

    def _pairs(self, student: Student, teacher: nn.Module, inputs: Mapping[str, Tensor]) -> dict[str, str]:
        from optkit.passes._prune.layers import find_lists
        from optkit.passes._train.hidden import find_pairs, require_modules

        if self.layers:
            require_modules(self.layers, student.module, teacher)
            return self.layers
        paths = [layers.path for layers in find_lists(teacher, inputs)]
        return find_pairs(student.module, teacher, paths, student.kept)
