"""A module as the graph of its operators, with static shapes."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from optkit.errors import PassError
from optkit.model.load_torch import first_line
from optkit.model.torch_call import bind_inputs, name_outputs

if TYPE_CHECKING:
    from torch import Tensor, nn

_INNER = "inner."


@dataclass(frozen=True)
class Traced:
    """One forward of a module."""

    nodes: tuple[Any, ...]
    """torch.fx nodes in order."""
    tensors: Mapping[str, str]
    """Name of a placeholder -> name of the parameter or buffer; inputs and constants are not in it."""


def trace(module: nn.Module, inputs: Mapping[str, Tensor]) -> Traced:
    """Export a module that is in eval mode; its outputs are those of ``name_outputs``.

    Raises:
        PassError: torch cannot export it.
    """
    import torch

    wrapped = _flat(module)
    try:
        with torch.no_grad(), _plain_attention(), warnings.catch_warnings(action="ignore"):
            program = torch.export.export(wrapped, bind_inputs(module, inputs), strict=False)
    except Exception as error:
        raise PassError(
            f"The module cannot be analysed, because torch.export fails on it: {first_line(error)}.",
            expected="a forward that torch.export can follow for one batch",
            fix="remove what depends on the data from its control flow",
        ) from error
    signature = program.graph_signature
    named = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
    return Traced(tuple(program.graph.nodes), {node: name.removeprefix(_INNER) for node, name in named.items()})


def _flat(module: nn.Module) -> nn.Module:
    from torch import nn

    class Flat(nn.Module):  # type: ignore[misc]  # torch is not followed by mypy
        def __init__(self) -> None:
            super().__init__()
            self.inner = module

        def forward(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Tensor]:
            return list(name_outputs(self.inner(*args, **kwargs)).values())

    return Flat()


@contextmanager
def _plain_attention() -> Iterator[None]:
    """Without the fused kernel of nn.TransformerEncoderLayer, which hides the layers within."""
    import torch

    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)
