"""optkit: a smaller, faster model for the machine at hand, with proof that it still does its job.

The public names are found on first use, so that ``import optkit`` stays cheap.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

__version__ = "0.1.0"

if TYPE_CHECKING:
    from optkit.errors import OptkitError
    from optkit.model.manifest import Manifest, Verdict
    from optkit.model.model import Model
    from optkit.passes._base import Context, Outcome, Pass
    from optkit.pipeline.compare import compare
    from optkit.pipeline.optimize import optimize
    from optkit.recipe.recipe import Recipe

__all__ = [
    "Context",
    "Manifest",
    "Model",
    "OptkitError",
    "Outcome",
    "Pass",
    "Recipe",
    "Verdict",
    "compare",
    "optimize",
]

_HOMES = {
    "Context": "optkit.passes._base",
    "Manifest": "optkit.model.manifest",
    "Model": "optkit.model.model",
    "OptkitError": "optkit.errors",
    "Outcome": "optkit.passes._base",
    "Pass": "optkit.passes._base",
    "Recipe": "optkit.recipe.recipe",
    "Verdict": "optkit.model.manifest",
    "compare": "optkit.pipeline.compare",
    "optimize": "optkit.pipeline.optimize",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'optkit' has no attribute '{name}'")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
