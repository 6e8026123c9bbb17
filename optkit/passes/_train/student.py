"""The student of a distillation where it is no pruned model: a smaller configuration, or a module of the user's."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from optkit.errors import PassError
from optkit.model.model import Model
from optkit.model.torch_folder import SOURCE
from optkit.passes._base import Context
from optkit.passes._train.hidden import dropped_since
from optkit.passes._train.losses import call

if TYPE_CHECKING:
    from torch import Tensor, nn

Setting = bool | int | float | str | list[int] | list[str] | None
"""A value of a configuration."""


@dataclass(frozen=True)
class Student:
    """Who learns."""

    module: nn.Module
    built: Mapping[str, Any] | None = None
    """What builds it, see ``save_module``; None = what builds the model that the pass was given."""
    kept: Mapping[str, Sequence[int]] = field(default_factory=dict)
    """Name of a list of layers -> which of the teacher's its weights come from."""
    notes: tuple[str, ...] = ()


def find_student(wish: str | Mapping[str, Setting] | None, model: Model, ctx: Context, teacher: nn.Module) -> Student:
    """Who learns, by the option of the pass.

    Args:
        wish: code of the user's, settings of a configuration, or None for the model itself.
        model: as the steps before left it.
        ctx: loads models, knows the original and the seed.
        teacher: the original, live.

    Raises:
        PassError: the model is the original itself; or it is not, and another student would lose what was done to it.
        ModelError: the student cannot be built.
    """
    same = model.digest == ctx.original.digest
    if wish is None and same:
        raise PassError(
            "The student is the original itself, which has nothing to learn from itself.",
            expected="a smaller model: pruned by a step before, or named as student",
            fix="put drop-layers or prune-channels before distill, or give it a student",
        )
    if wish is None:
        return Student(ctx.load_torch(model), kept=dropped_since(ctx.original, model, teacher))
    if not same:
        raise PassError(
            "The student is another model, so what the steps before did to this one would be lost.",
            expected="distill as the first step that changes the model",
            fix="put distill before them; or leave student out, and the model as they left it learns",
        )
    if isinstance(wish, str):
        return from_factory(wish, ctx.seed)
    return from_config(wish, ctx.original, teacher, ctx.seed)


def from_factory(reference: str, seed: int) -> Student:
    """The module that the user's function returns, with the weights that it has then; random ones depend on ``seed``.

    Raises:
        ModelError: there is no such function, or it fails.
    """
    from optkit.model.factory import call_factory

    with _seeded(seed):
        module = call_factory(reference)
    return Student(module.eval(), {"factory": reference}, notes=(f"the student is what {reference} builds",))


def from_config(settings: Mapping[str, Setting], original: Model, teacher: nn.Module, seed: int) -> Student:
    """A model of the same family, in other sizes; weights are the teacher's where names and shapes agree.

    Layers of which there are fewer take the weights of some of the teacher's, from first to last at equal distances
    (Sanh et al. 2019, "DistilBERT, a distilled version of BERT"). What has another shape begins at random.

    Raises:
        PassError: the original is no Hugging Face model, a setting is not known, or sizes do not go together.
    """
    from optkit.model.huggingface import build_random

    config = _config(original)
    plain = _plain(settings, config)
    made = {**config, **_one_each(config, plain), **plain}
    with _seeded(seed):
        try:
            module = build_random(made, original.path)
        except PassError:
            raise
        except Exception as error:  # transformers checks sizes late, and raises anything
            raise PassError(
                f"There is no {config.get('model_type')} model of these sizes: {error}.",
                expected="settings that go together, such as a hidden_size that num_attention_heads divides",
                fix="change the settings of the student",
            ) from error
    kept = _kept_layers(module, teacher)
    taken, total = _take(module, teacher, kept)
    where = [f"layers {', '.join(map(str, places))} of {path}" for path, places in kept.items()]
    told = f"weights of the student from the teacher: {taken} of {total} tensors" + "".join(f", {w}" for w in where)
    return Student(module, {"huggingface": made}, kept, (told,))


def require_match(student: nn.Module, teacher: nn.Module, inputs: Mapping[str, Tensor]) -> None:
    """Both give outputs of the same names, shapes and kinds on the same batch.

    Raises:
        PassError: they do not; says what each gives.
    """
    import torch

    from optkit.model.load_torch import first_line

    with torch.no_grad():
        aims = {name: _described(value) for name, value in call(teacher, inputs).items()}
        try:
            found = {name: _described(value) for name, value in call(student, inputs).items()}
        except Exception as error:  # the student's code raises anything
            raise PassError(
                f"The student does not run on the inputs of the original: {first_line(error)}.",
                expected="a module that takes " + ", ".join(f"{n} {list(t.shape)}" for n, t in inputs.items()),
                fix="name the arguments of its forward like the inputs of the original, and check its sizes and dtype",
            ) from error
    wrong = [name for name in {**aims, **found} if aims.get(name) != found.get(name)]
    if wrong:
        gives, wants = (", ".join(f"{n} {each[n]}" for n in wrong if n in each) or "none" for each in (found, aims))
        raise PassError(
            f"The outputs of the student do not match the teacher's: it gives {gives}; the teacher gives {wants}.",
            expected="outputs of the same names, dtypes and shapes",
            fix="let the student's forward return a dict with these names, of these sizes",
        )


def _described(value: Tensor) -> str:
    return f"{str(value.dtype).removeprefix('torch.')} {list(value.shape)}"


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Random weights depend on the seed alone, and nothing else is changed by them."""
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def _config(original: Model) -> dict[str, Any]:
    """The configuration that the original was built with."""
    found: Any = {}
    if original.kind == "huggingface":
        found = json.loads((original.path / "config.json").read_text("utf-8"))
    elif original.kind == "torch-folder":
        found = json.loads((original.path / SOURCE).read_text("utf-8")).get("huggingface", {})
    if not found:
        raise PassError(
            f"{original.path.name} is no Hugging Face model, so there is no configuration to make smaller.",
            expected="student: FILE.py:fn or pkg.module:fn",
            fix="write a function that returns the student, and name it",
        )
    return dict(found)


def _plain(settings: Mapping[str, Setting], config: Mapping[str, Any]) -> dict[str, Setting]:
    """The settings under the names that the family itself uses (gpt2 says n_layer for num_hidden_layers)."""
    from transformers import AutoConfig

    whole = AutoConfig.for_model(**config)
    aliases: dict[str, str] = dict(type(whole).attribute_map)
    known = {*whole.to_dict(), *config}
    plain = {aliases.get(name, name): value for name, value in settings.items()}
    for given, name in zip(settings, plain, strict=True):
        if name not in known or name in ("model_type", "architectures"):
            close = difflib.get_close_matches(given, [*known, *aliases], n=1)
            raise PassError(
                f"A {config.get('model_type')} configuration has no '{given}' to set.",
                expected="settings of the original's config.json, such as num_hidden_layers",
                fix=f"did you mean '{close[0]}'?" if close else "look into the original's config.json",
            )
    return plain


def _one_each(config: Mapping[str, Any], plain: Mapping[str, Setting]) -> dict[str, Any]:
    """Lists of the configuration with a value for each layer (layer_types), shortened as the layers are."""
    from optkit.passes._prune.layer_choice import evenly
    from optkit.passes._prune.layer_drop import COUNTS

    found: dict[str, Any] = {}
    for key in COUNTS:
        old, new = config.get(key), plain.get(key)
        if isinstance(old, int) and isinstance(new, int) and 0 < new < old:
            lists = {name: value for name, value in config.items() if "layer" in name and isinstance(value, list)}
            kept = evenly(old, new, ())
            found |= {name: [value[at] for at in kept] for name, value in lists.items() if len(value) == old}
    return found


def _kept_layers(module: nn.Module, teacher: nn.Module) -> dict[str, Sequence[int]]:
    """List of layers of which the student has fewer -> which of the teacher's it has."""
    from torch import nn

    from optkit.passes._prune.layer_choice import evenly

    own = {path: len(part) for path, part in module.named_modules() if isinstance(part, nn.ModuleList)}
    kept: dict[str, Sequence[int]] = {}
    for path, part in teacher.named_modules():
        inner = any(path.startswith(f"{other}.") for other in kept)
        if isinstance(part, nn.ModuleList) and 0 < own.get(path, 0) < len(part) and not inner:
            kept[path] = evenly(len(part), own[path], ())
    return kept


def _take(module: nn.Module, teacher: nn.Module, kept: Mapping[str, Sequence[int]]) -> tuple[int, int]:
    """Copy what fits; how many tensors that was, and of how many."""
    import torch

    weights, own = teacher.state_dict(), module.state_dict()
    taken = 0
    with torch.no_grad():
        for name, value in own.items():
            source = weights.get(_source_name(name, kept))
            if source is not None and source.shape == value.shape:
                value.copy_(source)
                taken += 1
    return taken, len(own)


def _source_name(name: str, kept: Mapping[str, Sequence[int]]) -> str:
    for path, places in kept.items():
        place, dot, rest = name.removeprefix(f"{path}.").partition(".")
        if name.startswith(f"{path}.") and place.isdigit():
            return f"{path}.{places[int(place)]}{dot}{rest}"
    return name
