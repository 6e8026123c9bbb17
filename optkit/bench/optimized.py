"""The graph as onnxruntime really runs it, without its weights: what its profile leaves out about a node's inputs."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from optkit.bench.events import Event
from optkit.bench.work import Attributes, Inputs, Tensor

if TYPE_CHECKING:
    import onnxruntime
    from onnx import GraphProto, NodeProto

_FILE = "optimized.onnx"
_WEIGHTS = "optimized.data"


@dataclass(frozen=True)
class Definition:
    """A node of the optimized graph."""

    inputs: tuple[Tensor | str | None, ...]
    """By position: a weight, the name of another tensor, or None where an optional input is left out."""
    attributes: Attributes


@dataclass(frozen=True)
class Structure:
    """All nodes, subgraphs included, in file order, which is the order of execution."""

    named: Mapping[tuple[str, str], Sequence[Definition]] = field(default_factory=dict)
    """(name, operator); those without a name under an empty one."""
    repeats: bool = False
    """Whether there are loops, whose nodes run many times in a call."""

    @property
    def nodes(self) -> int:
        """How many."""
        return sum(map(len, self.named.values()))


def save_optimized(options: onnxruntime.SessionOptions, folder: Path) -> None:
    """Have the session write its optimized graph into ``folder``, and its weights nowhere."""
    (folder / _WEIGHTS).symlink_to("/dev/null")
    options.optimized_model_filepath = str(folder / _FILE)
    for key, value in (("file_name", _WEIGHTS), ("min_size_in_bytes", "128")):
        options.add_session_config_entry(f"session.optimized_model_external_initializers_{key}", value)


def read_optimized(folder: Path) -> Structure:
    """What ``save_optimized`` had written; empty where there is nothing."""
    if not (folder / _FILE).is_file():
        return Structure()
    import onnx

    graphs = list(_graphs(onnx.load(folder / _FILE, load_external_data=False).graph))
    weights = {name: tensor for graph in graphs for name, tensor in _weights(graph)}
    named: dict[tuple[str, str], list[Definition]] = defaultdict(list)
    for graph in graphs:
        for node in graph.node:
            named[node.name, node.op_type].append(_definition(node, weights))
    loops = any(operator in ("Loop", "Scan") for _, operator in named)
    return Structure(dict(named), loops)


def _graphs(graph: GraphProto) -> Iterator[GraphProto]:
    from optkit.model.onnx_file import walk_graphs

    return walk_graphs(graph)


def _weights(graph: GraphProto) -> Iterator[tuple[str, Tensor]]:
    from optkit.model.onnx_file import dtype_name

    for weight in graph.initializer:
        yield weight.name, Tensor(dtype_name(weight.data_type), tuple(weight.dims), constant=True)


def _definition(node: NodeProto, weights: Mapping[str, Tensor]) -> Definition:
    inputs = tuple(weights.get(name, name) if name else None for name in node.input)
    return Definition(inputs, {each.name: each.i for each in node.attribute if each.HasField("i")})


def complete(structure: Structure, events: Sequence[Event]) -> list[tuple[Inputs, Attributes] | None]:
    """For each node all its inputs by position, with its attributes; None where that cannot be told.

    onnxruntime calls a node without a name after its operator and index; such nodes are told apart by their order.

    Args:
        structure: of the model that ran.
        events: one of each node that ran, in order of execution.
    """
    groups: dict[tuple[str, str], list[int]] = defaultdict(list)
    for index, event in enumerate(events):
        key = (event.name, event.operator)
        groups["" if event.unnamed and key not in structure.named else event.name, event.operator].append(index)
    found: list[tuple[Inputs, Attributes] | None] = [None] * len(events)
    for key, indices in groups.items():
        definitions = structure.named.get(key, ())
        for place, index in enumerate(indices):
            same = len(definitions) == len(indices)
            found[index] = _match([definitions[place]] if same else definitions, events[index].inputs)
    return found


def _match(definitions: Sequence[Definition], given: Sequence[Tensor]) -> tuple[Inputs, Attributes] | None:
    """The one way in which the inputs that were seen fit a definition; None where there is none, or more than one."""
    tried = [(aligned(each.inputs, given), each.attributes) for each in definitions]
    fits = [(inputs, attributes) for inputs, attributes in tried if inputs is not None]
    return fits[0] if fits and all(fit == fits[0] for fit in fits) else None


def aligned(expected: Sequence[Tensor | str | None], given: Sequence[Tensor]) -> Inputs | None:
    """The inputs a node has, from its definition and those its profile shows: weights that were packed are not there.

    Returns None where the two do not fit.
    """
    rest = list(given)
    packed = sum(each is not None for each in expected) - len(rest)
    found: list[Tensor | None] = []
    for each in expected:
        if each is None:
            found.append(None)
        elif isinstance(each, Tensor):
            if rest and (rest[0].dtype, rest[0].shape) == (each.dtype, each.shape):
                rest.pop(0)
            else:
                packed -= 1
            found.append(each)
        elif rest:
            found.append(rest.pop(0))
        else:
            return None
    return found if not rest and packed >= 0 else None
