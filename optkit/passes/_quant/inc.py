"""neural-compressor's torch half: what its algorithms make of the linear layers of a live module, as plain arrays."""

from __future__ import annotations

import gc
import logging
import os
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from optkit.errors import OptkitError, PackageError, PassError
from optkit.model.load_torch import first_line
from optkit.passes._quant.inc_layers import Settings, Taken, hide, linear_layers, take, turn, without_heads
from optkit.passes._quant.nbits import Floats

if TYPE_CHECKING:
    from torch import Tensor, nn

Batches = Callable[[], Iterator[Mapping[str, "Tensor"]]]
"""Starts anew with every call."""

OLDEST, NEWEST = (3, 10), (4,)
"""Versions of neural-compressor from the one to below the other are known to work."""
_FIX = "pip install 'optkit[inc]'"
_LACKS = (
    "version 3.10 or a later one of 3.x; since 3.8 it has no ONNX code, no pruning and no distillation any more, only "
    "the weight-only algorithms for torch, which are used here"
)


def check_version() -> None:
    """The version probe; imports nothing.

    Raises:
        PackageError: neural-compressor is not installed, or is of a version that has another interface.
    """
    try:
        version = metadata.version("neural-compressor")
    except metadata.PackageNotFoundError as error:
        raise PackageError("neural-compressor is not installed.", expected=_LACKS, fix=_FIX) from error
    numbers = tuple(int(part) for part in version.split(".")[:2] if part.isdigit())
    if not OLDEST <= numbers < NEWEST:
        raise PackageError(
            f"neural-compressor {version} is installed, whose interface is not the one that optkit knows.",
            expected=_LACKS,
            fix=_FIX,
        )


def quantize(
    module: nn.Module,
    names: Collection[str],
    settings: Settings,
    batches: Batches | None,
    *,
    source: Path,
    folder: Path,
) -> dict[str, Taken]:
    """Quantize the linear layers ``names`` of a module, which is of no use afterwards.

    Args:
        module: of transformers, in float32, on the CPU.
        names: names of modules; neural-compressor does not get to see the others.
        settings: see ``Settings``.
        batches: calibration data as arguments of the module; None for algorithms that need none.
        source: folder that the module was loaded from; neural-compressor looks for one, and downloads what is missing.
        folder: where it may write.

    Returns:
        What became of those layers that the algorithm took on.

    Raises:
        PackageError: neural-compressor, or something it forgot to declare, cannot be imported.
        PassError: neural-compressor cannot do it.
    """
    check_version()
    with _silent(), _on_cpu():
        _import(folder)
        turn(module)
        hide(module, [name for name in linear_layers(module) if name not in names])
        try:
            if settings.method == "hqq":
                return {name: _hqq(weights, settings) for name, weights in without_heads(module).items()}
            return _packed(module, settings, batches, source)
        except (OSError, MemoryError, OptkitError):
            raise
        except Exception as error:  # on architectures it does not know it fails anywhere
            raise PassError(
                f"neural-compressor's {settings.method} fails on {type(module).__name__}: {first_line(error)}.",
                expected="a transformer whose blocks lie in one list, as in most language models",
                fix="use quantize-weights instead, which works on the ONNX graph, or another method",
            ) from error


@contextmanager
def _silent() -> Iterator[None]:
    """No logging, of which it does much, and little for its garbage collections, several for each layer, to look at."""
    level = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    gc.freeze()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        gc.unfreeze()
        logging.disable(level)


@contextmanager
def _on_cpu() -> Iterator[None]:
    """It would move modules to any other device it finds."""
    before = os.environ.get("INC_TARGET_DEVICE")
    os.environ["INC_TARGET_DEVICE"] = "cpu"
    try:
        yield
    finally:
        if before is None:
            del os.environ["INC_TARGET_DEVICE"]
        else:
            os.environ["INC_TARGET_DEVICE"] = before


def _import(folder: Path) -> None:
    """Import it with its workspace in ``folder``; it would make one in the current directory.

    Raises:
        PackageError: something is missing.
    """
    try:
        from neural_compressor.common import set_workspace

        set_workspace(str(folder))
        import neural_compressor.torch.quantization  # noqa: F401 - whether it can be imported
    except ImportError as error:
        raise PackageError(
            f"neural-compressor {metadata.version('neural-compressor')} cannot be imported: {error}.",
            expected="all that it needs, of which it does not declare accelerate and tqdm",
            fix=_FIX,
        ) from error


def _packed(module: nn.Module, settings: Settings, batches: Batches | None, source: Path) -> dict[str, Taken]:
    import torch
    from neural_compressor.torch.algorithms.weight_only.modules import INCWeightOnlyLinear, MulLinear
    from neural_compressor.torch.quantization import convert, prepare

    config = _config(module, settings, source)
    if batches is not None:
        _try(module, next(iter(batches())))
    made = prepare(module, config, example_inputs=torch.zeros(1))
    with torch.no_grad():
        for batch in batches() if batches else ():
            made(**batch)
    made = convert(made)
    found = {}
    for name, part in made.named_modules():
        if isinstance(part, MulLinear) and isinstance(part.linear, INCWeightOnlyLinear):
            found[name] = _read(part.linear, part.input_scale, settings)
        elif isinstance(part, INCWeightOnlyLinear) and name.removesuffix(".linear") not in found:
            found[name] = _read(part, None, settings)
    return found


def _config(module: nn.Module, settings: Settings, source: Path) -> Any:
    from neural_compressor.torch.quantization import AWQConfig, GPTQConfig, RTNConfig

    common: dict[str, Any] = {"bits": settings.bits, "group_size": settings.block, "use_sym": settings.symmetric}
    common |= {"use_layer_wise": False, "model_path": str(source)}
    if settings.method == "gptq":  # so that a block's scale is taken from weights that make up for errors before it
        return GPTQConfig(**common, block_size=settings.block)
    if settings.method == "awq":
        return AWQConfig(**common, absorb_layer_dict=_alone(module))
    return RTNConfig(**common)


def _try(module: nn.Module, batch: Mapping[str, Tensor]) -> None:
    """Run one batch: while neural-compressor gathers activations, it takes any ValueError for its own.

    Attention is switched to the kind that always has a mask: GPTQ keeps a list for each argument, and would mix up
    batches that have one with batches that have none.
    """
    import torch

    module.set_attn_implementation("eager")
    with torch.no_grad():
        module(**batch)


def _alone(module: nn.Module) -> dict[str, str]:
    """AWQ's own words for: each layer's input gets a Mul of its own, and no scale goes into other weights.

    They count within a block, for all blocks alike.
    """
    from torch import nn

    blocks: Iterable[nn.Module] = next((part for part in module.modules() if type(part) is nn.ModuleList), [])
    each: list[set[str]] = [
        {name for name, part in block.named_modules() if isinstance(part, nn.Linear)} for block in blocks
    ]
    common = set.intersection(*each) if each else set()
    if not common:
        raise PassError(
            f"neural-compressor's awq finds no linear layer that all blocks of {type(module).__name__} have.",
            expected="a transformer whose blocks lie in one list, as in most language models",
            fix="use quantize-weights instead, which works on the ONNX graph, or another method",
        )
    return {name: name for name in sorted(common)}


def _read(part: Any, factors: Tensor | None, settings: Settings) -> Taken:
    """What a packed layer holds. Its scales are float16, which float32 can hold too."""
    found = part.unpack()
    codes, scales, zeros = (found[name].numpy().astype(np.float32) for name in ("int_weight", "scales", "zp"))
    return take(codes, scales, zeros, settings, None if factors is None else factors.numpy().astype(np.float32))


def _hqq(weights: Floats, settings: Settings) -> Taken:
    """Its solver on our blocks: its own layers group output channels, which no kernel of onnxruntime takes."""
    import torch
    from neural_compressor.torch.algorithms.weight_only.hqq.config import QTensorConfig
    from neural_compressor.torch.algorithms.weight_only.hqq.core import HQQTensorHandle

    rows, width = weights.shape
    padded = np.pad(weights, ((0, 0), (0, -width % settings.block)), mode="edge")
    blocks = torch.from_numpy(np.ascontiguousarray(padded.reshape(-1, settings.block).T))
    config = QTensorConfig(nbits=settings.bits, group_size=settings.block, optimize=True, round_zero=True, pack=False)
    found = HQQTensorHandle.quantize(blocks, config)
    scales, zeros = (each.float().numpy().reshape(rows, -1) for each in (found.scale, found.zero))
    return take(found.val.numpy().T.reshape(rows, -1)[:, :width], scales, zeros, settings, None)
