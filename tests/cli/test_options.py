from __future__ import annotations

from collections.abc import Callable
from inspect import signature

import pytest

from optkit.cli.check import check
from optkit.cli.optimize import optimize
from optkit.cli.options import ASKED, given
from optkit.cli.run import run
from optkit.pipeline.plan import Options

ONLY_OPTIMIZE = {"allow_synthetic_calibration", "seed"}


@pytest.mark.parametrize(("verb", "missing"), [(optimize, set()), (check, ONLY_OPTIMIZE), (run, ONLY_OPTIMIZE)])
def test_verbs_have_the_shared_options_by_name(verb: Callable[..., None], missing: set[str]) -> None:
    assert ASKED - set(signature(verb).parameters) == missing


def test_the_names_are_those_of_the_pipeline() -> None:
    assert set(Options.__annotations__) - {"cache"} == ASKED


def test_only_what_was_given_is_passed_on() -> None:
    arguments = {"model": "m", "json": True, "threads": 2, "limits": ["cosine=1"], "data": [], "metric": None}
    assert given(arguments) == {"threads": 2, "limits": ["cosine=1"]}
