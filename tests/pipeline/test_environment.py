"""Where it was measured."""

from __future__ import annotations

from optkit.model.machine import machine, usable_threads
from optkit.model.manifest import Environment
from optkit.model.target import Target
from optkit.pipeline.environment import environment, load_average


def test_it_holds_the_machine_and_the_threads_really_used() -> None:
    here, found = machine(), environment(Target("cpu", 0), 1.5)
    assert (found.threads, environment(Target("cpu", 3)).threads) == (usable_threads(), 3)
    assert (found.cores, found.physical_cores, found.affinity) == (
        here.logical_cores,
        here.physical_cores,
        here.affinity,
    )
    assert (found.cpu_limit, found.memory_bytes, found.gpus) == (here.cpu_limit, here.memory_bytes, here.gpus)
    assert (found.load_average, environment(Target()).load_average) == (1.5, None)
    assert {"onnxruntime", "numpy"} <= found.packages.keys()


def test_the_load_average_is_no_negative_number() -> None:
    assert (load_average() or 0.0) >= 0


def test_manifests_from_before_still_load() -> None:
    old = {"optkit": "0.1.0", "python": "3.11", "platform": "Linux", "cpu": "x", "cpu_features": [], "cores": 2}
    found = Environment.model_validate({**old, "threads": 0, "provider": "cpu", "packages": {}})
    assert (found.physical_cores, found.load_average, found.gpus) == (None, None, ())
