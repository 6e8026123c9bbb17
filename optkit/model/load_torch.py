"""The only code that builds an ``nn.Module``: from exports, TorchScript, weights, pickles and Hugging Face folders."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optkit.errors import ModelError, PackageError
from optkit.model.archive_check import check_pt2, check_torchscript
from optkit.model.model import Model
from optkit.model.pickle_file import STATE_KEYS, state_dict_of
from optkit.model.torch_call import bind_inputs, forward_names, name_outputs, to_tensor

if TYPE_CHECKING:
    from torch import Tensor, nn
    from torch.export import ExportedProgram

__all__ = ["bind_inputs", "first_line", "forward_names", "load_exported", "load_module", "name_outputs", "to_tensor"]


_PREFIXES = ("module.", "_orig_mod.")
"""What DataParallel and torch.compile put before every name."""


def load_module(model: Model) -> nn.Module:
    """Build the live module, on the CPU and in eval mode.

    Raises:
        ModelError: unsafe without trust, broken, or its weights do not fit the factory's module.
        PackageError: torch or transformers is not installed.
    """
    _need_torch()
    module = _LOADERS[model.kind](model) if model.kind in _LOADERS else _no_torch(model)
    return module if model.kind == "pt2" else module.eval()


def load_exported(model: Model) -> ExportedProgram:
    """The program of a ``torch.export`` archive, checked first by ``check_pt2``.

    Raises:
        ModelError: unsafe without trust, or broken.
        PackageError: torch is not installed.
    """
    _need_torch()
    import torch

    check_pt2(model.path, model.trust_pickle)
    _register_outputs(model.path)
    with _weights_only(not model.trust_pickle), model.path.open("rb") as file, _told(model, "torch.export.load"):
        return torch.export.load(file)


def _no_torch(model: Model) -> nn.Module:
    raise ModelError(f"{model.path.name} is no torch model but {model.kind}.", file=model.path)


def _need_torch() -> None:
    try:
        import torch  # noqa: F401 - only whether it is there
    except ImportError as error:
        raise PackageError(
            "torch is not installed, and this model is a torch model.", fix="pip install 'optkit[torch]'"
        ) from error


@contextmanager
def _told(model: Model, what: str) -> Iterator[None]:
    """Turns whatever torch raises about a file into one sentence."""
    try:
        yield
    except (ModelError, PackageError):
        raise
    except (Exception, SystemExit) as error:  # loaders raise anything on a broken file, and so does code inside it
        raise ModelError(
            f"{what} cannot open {model.path.name}: {first_line(error)}.",
            expected="a file written by a torch version like the one installed",
            fix="save the model again with the torch that is installed here",
            file=model.path,
        ) from error


def first_line(error: BaseException) -> str:
    """The class and first line of an error without its closing dot; of TorchScript's tracebacks, the last line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    line = lines[-1] if "TorchScript interpreter" in lines[0] else f"{type(error).__name__}: {lines[0]}"
    return line[:300].rstrip(".")


@contextmanager
def _weights_only(guard: bool) -> Iterator[None]:
    """No ``torch.load`` inside may unpickle more than tensors: a second lock behind ``archive_check``."""
    names = {"TORCH_FORCE_WEIGHTS_ONLY_LOAD": "1", "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD": ""} if guard else {}
    before = {name: os.environ.get(name) for name in names}
    os.environ.update(names)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _register_outputs(path: Path) -> None:
    """Import the transformers modules whose output classes an export names, so that torch can rebuild them."""
    import importlib
    import re
    import zipfile

    with zipfile.ZipFile(path) as archive:
        programs = [archive.read(name) for name in archive.namelist() if re.fullmatch(r"[^/]+/models/\w+\.json", name)]
    for name in {each.decode() for text in programs for each in re.findall(rb"transformers(?:\.\w+)+(?=\.\w)", text)}:
        try:
            importlib.import_module(name)
        except ImportError:
            continue  # torch says which class it lacks, if it needs this one at all


def _from_pt2(model: Model) -> nn.Module:
    program = load_exported(model)
    with _told(model, "torch"):
        return program.module()


def _from_torchscript(model: Model) -> nn.Module:
    import torch

    check_torchscript(model.path, model.trust_pickle)
    with _told(model, "torch.jit.load"):
        module: nn.Module = torch.jit.load(str(model.path), map_location="cpu")
    return module


def _from_pickle(model: Model) -> nn.Module:
    import torch
    from torch import nn

    from optkit.model.user_code import importable

    if not model.trust_pickle:
        raise ModelError(
            f"{model.path.name} is a pickled module: opening it runs code from the file.",
            expected="a torch.export archive, TorchScript, or a state_dict with --factory",
            fix="save module.state_dict() instead and give --factory; or, if you trust it, add --trust-pickle",
            file=model.path,
        )
    with importable(Path.cwd()), _told(model, "torch.load"):
        found = torch.load(model.path, map_location="cpu", weights_only=False)
    nested = [found[key] for key in STATE_KEYS if key in found] if isinstance(found, Mapping) else []
    module = next((each for each in [found, *nested] if isinstance(each, nn.Module)), None)
    if module is None:
        raise ModelError(
            f"{model.path.name} holds a {type(found).__name__}, not a module.",
            fix="if it holds weights, say what builds the module: --factory my_model.py:build",
            file=model.path,
        )
    return module


def _from_huggingface(model: Model) -> nn.Module:
    from optkit.model.huggingface import load_pretrained

    with _weights_only(not model.trust_pickle), _told(model, "transformers"):
        return load_pretrained(model.path)


def _from_folder(model: Model) -> nn.Module:
    from optkit.model.torch_folder import load_folder

    with _told(model, "the weights of passes"):
        return load_folder(model)


def _from_weights(model: Model) -> nn.Module:
    from optkit.model.factory import call_factory

    if model.factory is None:
        raise ModelError(
            f"{model.path.name} holds weights only; which code builds the module is not said.",
            expected="--factory pkg.module:fn or --factory FILE.py:fn",
            fix="write a function that returns the untrained module, and name it with --factory",
            file=model.path,
        )
    weights = _clean(_read_weights(model))
    module = call_factory(model.factory)
    _fit(module, weights, model)
    return module


def _read_weights(model: Model) -> dict[str, Tensor]:
    import torch

    with model.path.open("rb") as file:
        if file.read(9)[8:] == b"{":
            return _read_safetensors(model)
    try:
        found = torch.load(model.path, map_location="cpu", weights_only=not model.trust_pickle)
    except (Exception, SystemExit) as error:  # torch.load raises anything on a broken file, or its code does
        raise ModelError(
            f"{model.path.name} does not open as weights: {first_line(error)}.",
            expected="a state_dict of tensors, as torch.save(module.state_dict(), ...) writes it",
            fix="save the state_dict alone; or, if you trust the file, add --trust-pickle",
            file=model.path,
        ) from error
    return _state_dict(found, model)


def _read_safetensors(model: Model) -> dict[str, Tensor]:
    try:
        from safetensors.torch import load_file
    except ImportError as error:
        raise PackageError("safetensors is not installed.", fix="pip install 'optkit[torch]'") from error
    with _told(model, "safetensors"):
        return dict(load_file(model.path))


def _state_dict(found: Any, model: Model) -> dict[str, Tensor]:
    """The tensors of a checkpoint: itself, or what lies under one of the usual keys; modules count by their own."""
    from torch import Tensor, nn

    if isinstance(found, nn.Module):
        return dict(found.state_dict())
    if isinstance(found, Mapping):
        plain = {key: value.state_dict() if isinstance(value, nn.Module) else value for key, value in found.items()}
        _, weights = state_dict_of(plain, lambda value: isinstance(value, Tensor))
        if weights:
            return dict(weights)
    raise ModelError(
        f"{model.path.name} holds no state_dict, but "
        + (f"the keys {', '.join(map(str, list(found)[:8]))}." if isinstance(found, Mapping) else "something else."),
        expected="name -> tensor, or a checkpoint that keeps this under " + ", ".join(STATE_KEYS),
        fix="save module.state_dict() alone",
        file=model.path,
    )


def _clean(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    for prefix in _PREFIXES:
        if weights and all(name.startswith(prefix) for name in weights):
            weights = {name.removeprefix(prefix): value for name, value in weights.items()}
    return weights


def _fit(module: nn.Module, weights: dict[str, Tensor], model: Model) -> None:
    """Load strictly; dtypes are those of the factory's module."""
    own = module.state_dict()
    problems = [f"{name} is missing" for name in own if name not in weights]
    problems += [f"{name} is unknown" for name in weights if name not in own]
    problems += [
        f"{name} is {list(weights[name].shape)} instead of {list(value.shape)}"
        for name, value in own.items()
        if name in weights and hasattr(value, "shape") and weights[name].shape != value.shape
    ]
    if problems:
        more = f", and {len(problems) - 8} more" if len(problems) > 8 else ""
        raise ModelError(
            f"The weights do not fit the module that {model.factory} builds: {', '.join(problems[:8])}{more}.",
            expected=f"exactly its {len(own)} tensors",
            fix="build the module with the arguments it was trained with",
            file=model.path,
        )
    with _told(model, "load_state_dict"):
        module.load_state_dict(weights, strict=True)


_LOADERS: dict[str, Callable[[Model], nn.Module]] = {
    "pt2": _from_pt2,
    "torchscript": _from_torchscript,
    "weights": _from_weights,
    "pickle": _from_pickle,
    "huggingface": _from_huggingface,
    "torch-folder": _from_folder,
}
