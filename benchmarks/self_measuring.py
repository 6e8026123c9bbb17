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
CLOSE = 0.01
"""How near to ``SLOWER`` the slower copy must come by the bare loops."""
LAUNCHES = 10
"""Bare loops of a model beside which the harness is held."""
PAIRS = 5
"""Processes with bare loops of two models in turn, for how much slower one is."""

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


PAIR = """
import sys, time
from statistics import median
import numpy as np, onnxruntime as ort
paths, batch, width, threads, seconds = sys.argv[1:3], *map(int, sys.argv[3:6]), float(sys.argv[6])
def opened(path):
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.add_session_config_entry("session.force_spinning_stop", "1")  # else each takes a core from the other
    return ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
sessions = [opened(path) for path in paths]
feeds = {"x": np.random.default_rng(0).standard_normal((batch, width), dtype=np.float32)}
def block(session):
    times = []
    for _ in range(11):
        begin = time.perf_counter()
        session.run(None, feeds)
        times.append(time.perf_counter() - begin)
    return median(times[1:])
ratios, end = [], time.perf_counter() + seconds
while time.perf_counter() < end:
    one, other, again = block(sessions[0]), block(sessions[1]), block(sessions[0])
    ratios.append(2 * other / (one + again))
print(median(ratios))
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
        first = bare_ms(model)
        inside = _bench([model], seed, "--launches", "1", "--budget", "2", "--precision", "0.001")
        pairs.append((inside["steady"]["median_ms"], (first + bare_ms(model)) / 2))
    added = statistics.median(one / other for one, other in pairs) - 1
    figure = f"{added:+.1%} (bare {statistics.median(other for _, other in pairs):.2f} ms)"
    return "optkit bench beside a bare loop", figure, "within 2 %", abs(added) < 0.02


def slower_copy(model: Path, path: Path) -> tuple[Path, float]:
    """A copy with one more MatMul, as wide as it takes, and how much slower it really is.

    Its width is found by bare loops, step by step.
    """
    columns, really = 152, 0.0
    for _ in range(8):
        _add_matmul(model, path, columns)
        rounds = [(pair(model, path), pair(model, model)) for _ in range(PAIRS)]  # the second session's place counts
        really = statistics.median(one for one, _ in rounds) / statistics.median(other for _, other in rounds) - 1
        if abs(really - SLOWER) <= CLOSE:
            return path, really
        columns = max(8, 8 * round(columns * min(3.0, SLOWER / max(really, 0.005)) / 8))
    raise SystemExit(f"no copy came out {SLOWER:.0%} slower by bare loops; the last one: {really:.1%}")


def pair(model: Path, other: Path, seconds: float = 1.5) -> float:
    """Time of ``other`` over that of ``model``, from bare loops of both in turn, in a process of their own."""
    asked = [str(each) for each in (model, other, BATCH, WIDTH, usable_threads(), seconds)]
    done = subprocess.run([sys.executable, "-c", PAIR, *asked], capture_output=True, text=True, check=True)
    return float(done.stdout)


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
