"""What a torch model is between passes: a folder of plain data, which is built and never unpickled.

source.json          what builds the module: a factory and the digest of its code, or a Hugging Face configuration
surgery.json         what passes changed of its structure since, see ``optkit.model.surgery``
weights.safetensors  every tensor, tied ones once; ``ties`` in its metadata
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optkit.errors import ModelError, PackageError
from optkit.model.model import Model
from optkit.model.surgery import Operation, operate, parse_surgery, plain_surgery

if TYPE_CHECKING:
    from torch import Tensor, nn

SOURCE, SURGERY, WEIGHTS = "source.json", "surgery.json", "weights.safetensors"
FILES = (SOURCE, SURGERY, WEIGHTS)


def is_torch_folder(folder: Path) -> bool:
    """Whether all three files are there."""
    return all((folder / name).is_file() for name in FILES)


def unfit(model: Model) -> str:
    """Empty, or why passes cannot change the structure or the weights of this torch model."""
    if model.kind in ("weights", "huggingface", "torch-folder"):
        return ""
    what = {
        "pt2": "a torch.export archive cannot be trained or changed any more",
        "torchscript": "TorchScript cannot be changed any more",
        "pickle": "a pickled module has no code that builds it anew",
    }.get(model.kind, f"this is {model.kind}, not torch")
    return f"{what}; give a state_dict or .safetensors with --factory, or a Hugging Face folder"


def save_module(
    before: Model,
    module: nn.Module,
    operations: Sequence[Operation],
    folder: Path,
    sentence: str,
    *,
    built: Mapping[str, Any] | None = None,
) -> Model:
    """Write a changed module as a folder that builds it again.

    Args:
        before: the model that the module was loaded from.
        module: with the operations done, and its new weights.
        operations: what was done to its structure since ``before``.
        folder: a new one.
        sentence: of the pass, for the lineage.
        built: what builds the module where it is another one than ``before``: ``{factory: REFERENCE}`` or
            ``{huggingface: CONFIGURATION}``. None = what builds ``before``, and the surgery on that.

    Raises:
        ModelError: ``before`` cannot be built anew, see ``unfit``.
    """
    if reason := unfit(before):
        raise ModelError(f"{before.path.name} cannot be changed: {reason}.", file=before.path)
    folder.mkdir(parents=True, exist_ok=True)
    source = _source(before, module) if built is None else _with_digest(built)
    done = [*(surgery_of(before) if built is None else ()), *operations]
    (folder / SOURCE).write_text(json.dumps(source, indent=1))
    (folder / SURGERY).write_text(json.dumps(plain_surgery(done)))
    _save_weights(module, folder / WEIGHTS)
    lineage = (*before.lineage, sentence)
    factory = before.factory if built is None else source.get("factory")
    return replace(
        before, path=folder, form="torch", kind="torch-folder", trust_pickle=False, lineage=lineage, factory=factory
    )


def surgery_of(model: Model) -> list[Operation]:
    """What passes changed of the structure so far."""
    return parse_surgery(_read(model.path / SURGERY)) if model.kind == "torch-folder" else []


def source_factory(folder: Path) -> str | None:
    """The factory that the folder was made with; it is only run where the user names it too."""
    found = _read(folder / SOURCE)
    return str(found["factory"]) if isinstance(found, dict) and found.get("factory") else None


def load_folder(model: Model) -> nn.Module:
    """Build the source, replay the surgery, load the weights strictly.

    Raises:
        ModelError: the factory's code is another than then, or something does not fit.
        PackageError: safetensors or transformers is not installed.
    """
    module = operate(_build(model), surgery_of(model))
    _load_weights(module, model.path / WEIGHTS)
    return module


def _source(model: Model, module: nn.Module) -> dict[str, Any]:
    if model.kind == "torch-folder":
        found = _read(model.path / SOURCE)
        return dict(found)
    if model.kind == "huggingface":
        return {"huggingface": _read(model.path / "config.json"), "untied": not _ties(module)}
    return _with_digest({"factory": model.factory or ""})


def _with_digest(source: Mapping[str, Any]) -> dict[str, Any]:
    from optkit.model.digest import digest_factory

    return {**source, "digest": digest_factory(source["factory"])} if "factory" in source else dict(source)


def _build(model: Model) -> nn.Module:
    from optkit.model.digest import digest_factory
    from optkit.model.factory import call_factory
    from optkit.model.huggingface import build_random

    source = _read(model.path / SOURCE)
    if "huggingface" in source:
        made = build_random(source["huggingface"], model.path)
        return _untied(made) if source.get("untied") else made
    if model.factory is None or digest_factory(model.factory) != source.get("digest"):
        raise ModelError(
            f"The code that builds this model, {source.get('factory')}, has changed or is not the one named.",
            expected="the factory that it was made with, unchanged",
            fix=f"name it with --factory {source.get('factory')}; or run the recipe again from the original model",
            file=model.path,
        )
    return call_factory(model.factory)


def _ties(module: nn.Module) -> dict[str, str]:
    """Name of a tensor -> the first name under which the same tensor is registered, where that is another."""
    seen: dict[int, str] = {}
    first = {name: seen.setdefault(id(value), name) for name, value in module.state_dict(keep_vars=True).items()}
    return {name: other for name, other in first.items() if other != name}


def _untied(module: nn.Module) -> nn.Module:
    """transformers ties what the configuration says, but not where a folder has other weights under both names."""
    from torch import nn

    for name in _ties(module):
        path, _, last = name.rpartition(".")
        holder = module.get_submodule(path)
        if last in holder._parameters:
            setattr(holder, last, nn.Parameter(getattr(holder, last).detach().clone()))
    return module


def _save_weights(module: nn.Module, path: Path) -> None:
    _, save_file = _safetensors()
    ties = _ties(module)
    tensors = {
        name: value.detach().cpu().contiguous().clone()
        for name, value in module.state_dict().items()
        if name not in ties
    }
    save_file(tensors, path, metadata={"ties": json.dumps(ties)})


def _load_weights(module: nn.Module, path: Path) -> None:
    open_file, _ = _safetensors()
    with open_file(path, framework="pt") as file:
        ties = json.loads((file.metadata() or {}).get("ties", "{}"))
        weights: dict[str, Tensor] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
    problems = [
        f"{name} is {list(weights[name].shape)} instead of {list(value.shape)}"
        for name, value in module.state_dict().items()
        if name in weights and weights[name].shape != value.shape
    ]
    weights |= {name: weights[other] for name, other in ties.items() if other in weights}
    problems += [f"{name} is missing" for name in module.state_dict() if name not in weights]
    problems += [f"{name} is unknown" for name in weights if name not in module.state_dict()]
    problems += [
        f"{name} is {first} and has other numbers"
        for name, first in _ties(module).items()
        if name in weights and first in weights and not weights[name].equal(weights[first])
    ]
    if problems:
        raise ModelError(
            f"The weights do not fit the module: {', '.join(problems[:8])}.",
            expected="the code that built the module when they were written",
            fix="run the recipe again from the original model",
            file=path,
        )
    module.load_state_dict(weights, strict=True)


def _safetensors() -> tuple[Any, Any]:
    try:
        from safetensors import safe_open
        from safetensors.torch import save_file
    except ImportError as error:
        raise PackageError("safetensors is not installed.", fix="pip install 'optkit[torch]'") from error
    return safe_open, save_file


def _read(file: Path) -> Any:
    try:
        return json.loads(file.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{file.name} is not readable: {error}.", file=file) from error
