"""The accuracy budget of quantizing passes: what costs most is given back until the limits hold."""

from __future__ import annotations

from typing import Literal

from optkit.passes._base import Context
from optkit.passes._quant.layered import Layered, Repaired


def reason_not_to(repair: bool | Literal["labelled"], ctx: Context) -> str | None:
    """None where the budget is to be held; else why not, empty where nobody asked for it."""
    if not repair:
        return ""
    data = ctx.batches("search")
    if data.synthetic:
        return "no repair: the data are made up"
    return "no repair: the data have no labels" if repair == "labelled" and data.labels is None else None


def hold_budget(layered: Layered, ctx: Context) -> Repaired:
    """The model with as few layers given back as hold the limits."""
    del ctx
    return Repaired(layered.build({}))
