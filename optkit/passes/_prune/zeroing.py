"""Rules for the weights of a whole model, which zeros they put there, and what that brings."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from optkit.errors import PassError
from optkit.passes._prune.sparse import Rule, Weight, n_of_m, packed, smallest, spread, zeros
from optkit.passes._prune.weights import Found
from optkit.passes._quant.select import commonest

Entries = list[tuple[str, str]]
Rules = Sequence[tuple[Weight, Rule]]


def by_share(found: Found, share: float, everywhere: bool) -> Rules:
    """The smallest weights of each layer, or of all together where ``everywhere``."""
    sizes = [each.read().size for each in found.weights]
    counts = spread(found.weights, round(share * sum(sizes))) if everywhere else [round(share * n) for n in sizes]
    return [(each, partial(smallest, count=count)) for each, count in zip(found.weights, counts, strict=True)]


def by_pattern(found: Found, pattern: str) -> Rules:
    """Some of every block of inputs, in layers whose inputs are whole blocks; the others join ``found.skipped``."""
    keep, block = map(int, pattern.split(":"))
    inputs = {each.label: each.read().shape[each.axis] for each in found.weights}
    odd = {label: f"its {count} inputs are no multiple of {block}" for label, count in inputs.items() if count % block}
    found.skipped += odd.items()
    fitting = [each for each in found.weights if each.label not in odd]
    return [(each, partial(n_of_m, keep=keep, block=block, axis=each.axis)) for each in fitting]


def put_zeros(found: Found, rules: Rules) -> tuple[Entries, str]:
    """Prune, and tell (layers, what was done) and what the zeros bring.

    Raises:
        PassError: no layer gets more zeros than it has.
    """
    changes: Entries = []
    size, empty, before, after = 0, 0, 0.0, 0.0
    for weight, rule in rules:
        old = weight.read()
        new = rule(old)
        was, now = zeros(old), zeros(new)
        if now <= was:
            found.skipped.append((weight.label, f"{was / old.size:.1%} of its weights are zero already"))
            continue
        size, empty = size + old.size, empty + now
        before, after = before + packed(old), after + packed(new)
        weight.prune(rule)
        changes.append((weight.label, f"zeros {was / old.size:.1%} -> {now / old.size:.1%} of {old.size}"))
    if not changes:
        raise PassError(
            f"There is nothing to prune: {_why(found, bool(rules))}.",
            expected="linear layers or convolutions with constant float weights, and fewer zeros than asked for",
            fix="leave this pass out, ask for more zeros, or prune before quantizing",
        )
    layers = f"{len(changes)} layers" if len(changes) > 1 else "1 layer"
    told = f"{empty / size:.1%} of the weights of {layers} are zero; compressed by zlib these take about"
    return changes, f"{told} {before / 1e6:.3g} MB -> {after / 1e6:.3g} MB"


def _why(found: Found, tried: bool) -> str:
    if not found.labels:
        return "the model has no linear layer or convolution"
    if tried:
        size = sum(each.read().size for each in found.weights)
        empty = sum(zeros(each.read()) for each in found.weights)
        return f"{empty / size:.1%} of the weights that could be pruned are zero already"
    return f"of {len(found.labels)} linear layers and convolutions none fits{commonest(found.skipped)}"
