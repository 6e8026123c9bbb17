"""Does ``optkit bench`` tell the truth? Real runs of it, beside bare loops around onnxruntime.

Each figure is ``(name, figure, target, held)``, a line of ``bench_self.py``.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from benchmarks.mlp import write_mlp
from optkit.model.machine import usable_threads
from optkit.model.manifest import Ratio

Line = tuple[str, str, str, bool]

RUNS = 20
WIDTH, LAYERS, BATCH = 512, 6, 64
"""Of the model: 0.2 GFLOP, 1 to 2 ms on two cores."""
SLOWER = 0.05
CLOSE = 0.005
"""How near to ``SLOWER`` the slower copy must come by the bare loops."""
LAUNCHES = 24
"""Bare loops of a model beside which the harness is held."""
PAIRS = 24
"""Bare loops of two models in turn, for how much slower one is: a process each time, as their luck differs by 2 %."""

BARE = """
import sys, time
from statistics import median
import numpy as np, onnxruntime as ort
path, batch, width, threads, seconds = sys.argv[1], *map(int, sys.argv[2:5]), float(sys.argv[5])
options = ort.SessionOptions()
options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
random = np.random.default_rng(0)
feeds = [{"x": random.standard_normal((batch, width), dtype=np.float32)} for _ in range(4)]
names, now, times = [output.name for output in session.get_outputs()], time.perf_counter, []
end = now() + 0.3 + seconds
while now() < end:
    begin = now()
    session.run(names, feeds[len(times) % 4])
    times.append((begin, now() - begin))
print(median(each for begin, each in times if begin > end - seconds))
"""


def aa(folder: Path) -> Line:
    """A model against itself."""
    model = write_mlp(folder / "a.onnx", width=WIDTH, layers=LAYERS)
    found, seconds = _runs(model, model)
    same = sum(each.word == "same" for each in found)
    return "optkit bench A A: same", _counted(found, same, seconds), f">= {RUNS - 1} of {RUNS}", same >= RUNS - 1


def slower5(folder: Path) -> Line:
    """A model against a copy with one more operator, which takes 5 % longer by the bare loops."""
    model = write_mlp(folder / "a.onnx", width=WIDTH, layers=LAYERS)
    copy, really = slower_copy(model, folder / "slower.onnx")
    found, seconds = _runs(model, copy)
    slower = sum(each.word == "slower" for each in found)
    name = f"optkit bench A B, B {really:.1%} slower by bare loops: slower"
    return name, _counted(found, slower, seconds), f">= {RUNS - 2} of {RUNS}", slower >= RUNS - 2


def harness(folder: Path) -> Line:
    """What the harness adds to a call: its median beside a bare loop's, the two in turn."""
    model = write_mlp(folder / "a.onnx", width=WIDTH, layers=LAYERS)
    pairs = []
    for seed in range(LAUNCHES):
        first = bare_ms(model, 0.6)
        inside = _bench([model], seed, "--launches", "1", "--budget", "1", "--precision", "0.001")
        pairs.append((inside["steady"]["median_ms"], (first + bare_ms(model, 0.6)) / 2))
    added = statistics.median(one / other for one, other in pairs) - 1
    figure = f"{added:+.1%} (bare {statistics.median(other for _, other in pairs):.2f} ms)"
    return "optkit bench beside a bare loop", figure, "within 2 %", abs(added) < 0.02


def slower_copy(model: Path, path: Path) -> tuple[Path, float]:
    """A copy with one more MatMul, as wide as it takes, and how much slower it really is by bare loops."""
    columns = 8 * round(SLOWER * LAYERS * WIDTH / 8)
    for _ in range(5):
        _add_matmul(model, path, columns)
        really = really_slower(model, path)
        if abs(really - SLOWER) <= CLOSE:
            return path, really
        columns = max(8, columns + 8 * round((SLOWER - really) * LAYERS * WIDTH / 8))
    raise SystemExit(f"no copy came out {SLOWER:.0%} slower by bare loops; the last one: {really:.1%}")


def really_slower(model: Path, other: Path) -> float:
    """How much longer ``other`` takes than ``model`` in bare loops, each in processes of its own, in turn."""
    pairs = [bare_ms(other, 0.6) / bare_ms(model, 0.6) for _ in range(PAIRS)]
    return statistics.median(pairs) - 1


def bare_ms(model: Path, seconds: float = 1.0) -> float:
    """Median milliseconds of a call in a bare loop, in a process of its own."""
    asked = [str(each) for each in (model, BATCH, WIDTH, usable_threads(), seconds)]
    done = subprocess.run([sys.executable, "-c", BARE, *asked], capture_output=True, text=True, check=True)
    return float(done.stdout) * 1e3


def _add_matmul(source: Path, path: Path, columns: int) -> None:
    """``y`` -> also ``MatMul(y, w[WIDTH, columns])``, as one more output."""
    model = onnx.load(source)
    weight = np.random.default_rng(1).standard_normal((WIDTH, columns), dtype=np.float32)
    model.graph.initializer.append(numpy_helper.from_array(weight, "extra_w"))
    model.graph.node.append(helper.make_node("MatMul", [model.graph.output[0].name, "extra_w"], ["extra"], "extra"))
    model.graph.output.append(helper.make_tensor_value_info("extra", TensorProto.FLOAT, ["batch", columns]))
    onnx.save(model, path)


def _runs(*models: Path) -> tuple[list[Ratio], float]:
    """``RUNS`` times the last model against the first, and the median seconds of a run."""
    found, seconds = [], []
    for seed in range(RUNS):
        begin = time.perf_counter()
        found.append(Ratio(**_bench(models, seed)["ratio"]))
        seconds.append(time.perf_counter() - begin)
    return found, statistics.median(seconds)


def _bench(models: Sequence[Path], seed: int, *more: str) -> dict:
    """Facts of the last candidate of one ``optkit bench``."""
    asked = [*map(str, models), "--dims", f"batch={BATCH}", "--seed", str(seed), "--no-samples", "--json", *more]
    done = subprocess.run(
        [sys.executable, "-m", "optkit", "bench", *asked], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(f"optkit bench ended with {done.returncode}:\n{done.stdout}{done.stderr}")
    return json.loads(done.stdout)["result"]["points"][0]["candidates"][-1]


def _counted(found: Sequence[Ratio], right: int, seconds: float) -> str:
    speedups = [each.speedup for each in found]
    return f"{right} of {len(found)} ({min(speedups):.3f} to {max(speedups):.3f}x, {seconds:.0f} s a run)"
