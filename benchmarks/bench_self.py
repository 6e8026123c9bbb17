"""Times optkit itself against the direct library calls, whole processes from outside. ``make bench-self`` prints it.

python benchmarks/bench_self.py [startup] [mlp] [large] [zoo] [calibrate] [aa] [slower5] [harness]      default: all
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import psutil

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.mlp import write_mlp
from benchmarks.self_measuring import Line, aa, harness, slower5

OPTKIT = [sys.executable, "-m", "optkit"]
DIRECT = (
    "import sys; from onnxruntime.quantization import quantize_dynamic, QuantType; "
    "quantize_dynamic(sys.argv[1], sys.argv[2], per_channel=True, weight_type=QuantType.QInt8)"
)


@dataclass(frozen=True)
class Run:
    """One finished process."""

    seconds: float
    peak_mb: float
    code: int
    output: str


def run(command: list[str], **environment: str) -> Run:
    """Run a command; wall seconds, and peak resident memory over its process tree, sampled every 10 ms."""
    started = time.perf_counter()
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env={**os.environ, **environment}
    )
    peak, done = [0.0], threading.Event()
    watcher = threading.Thread(target=_watch, args=(psutil.Process(process.pid), peak, done), daemon=True)
    watcher.start()
    output, _ = process.communicate()
    seconds = time.perf_counter() - started
    done.set()
    return Run(seconds, peak[0], process.returncode, output)


def _watch(root: psutil.Process, peak: list[float], done: threading.Event) -> None:
    while not done.is_set():
        total = 0
        try:
            for process in [root, *root.children(recursive=True)]:
                total += process.memory_info().rss
        except psutil.Error:
            pass
        peak[0] = max(peak[0], total / 1e6)
        done.wait(0.01)


def median(runs: list[Run]) -> Run:
    """The run with the median time, with the median peak."""
    middle = sorted(runs, key=lambda item: item.seconds)[len(runs) // 2]
    return Run(middle.seconds, statistics.median(item.peak_mb for item in runs), middle.code, middle.output)


def row(name: str, figure: str, target: str, held: bool) -> None:
    """One line of the report."""
    print(f"{name:<58} {figure:<34} target {target:<24} {'ok' if held else 'MISSED'}", flush=True)


def startup(_: Path) -> None:
    """``optkit --help`` above a bare interpreter."""
    bare = statistics.median(run([sys.executable, "-c", "pass"]).seconds for _ in range(9))
    script = str(Path(sys.executable).with_name("optkit"))
    help_ = statistics.median(run([script, "--help"]).seconds for _ in range(9))
    extra = help_ - bare
    figure = f"{extra:.3f} s ({help_:.3f} - {bare:.3f})"
    row("optkit --help above a bare interpreter", figure, "<= 0.25 s", extra <= 0.25)


def mlp(folder: Path) -> None:
    """quantize-dynamic alone on a 100 MB MLP: cold, cached, memory."""
    model = write_mlp(folder / "mlp.onnx", width=2500, layers=4)
    recipe = folder / "quantize.yaml"
    recipe.write_text("version: 1\nname: quantize\npasses: [quantize-dynamic]\n")
    direct, cold = [], []
    for index in range(5):
        direct.append(run([sys.executable, "-c", DIRECT, str(model), str(folder / "direct.onnx")]))
        command = _optimize(model, recipe, folder / "out")
        cold.append(run(command, OPTKIT_CACHE=str(folder / f"cache{index}")))
    command = _optimize(model, recipe, folder / "out")
    cached = median([run(command, OPTKIT_CACHE=str(folder / "cache0")) for _ in range(5)])
    d, c = median(direct), median(cold)
    _require(c)
    limit = 1.5 * d.seconds + 1
    row("100 MB MLP, cold", f"{c.seconds:.2f} s (direct {d.seconds:.2f} s)", f"<= {limit:.2f} s", c.seconds <= limit)
    peak = f"{c.peak_mb:.0f} MB (direct {d.peak_mb:.0f} MB)"
    row("100 MB MLP, peak memory", peak, f"<= {1.5 * d.peak_mb:.0f} MB", c.peak_mb <= 1.5 * d.peak_mb)
    row("100 MB MLP, cached re-run", f"{cached.seconds:.2f} s", "< 1.5 s", cached.seconds < 1.5)


def large(folder: Path) -> None:
    """simplify and quantize-dynamic on 3 GB with external data; a look at it."""
    model = write_mlp(folder / "large.onnx", width=5600, layers=24)
    recipe = folder / "large.yaml"
    recipe.write_text("version: 1\nname: large\npasses: [simplify, quantize-dynamic]\n")
    found = run(_optimize(model, recipe, folder / "out"), OPTKIT_CACHE=str(folder / "cache"))
    _require(found)
    figure = f"{found.peak_mb / 1000:.2f} GB, {found.seconds:.0f} s"
    row("3 GB MLP, simplify + quantize-dynamic, peak of the tree", figure, "< 12 GB", found.peak_mb < 12000)
    looked = median([run([*OPTKIT, "inspect", str(model)]) for _ in range(5)])
    figure = f"{looked.seconds:.2f} s, {looked.peak_mb:.0f} MB"
    row("3 GB MLP, inspect", figure, "< 1 s, < 300 MB", looked.seconds < 1 and looked.peak_mb < 300)


def zoo(folder: Path) -> None:
    """Real models end to end, cold."""
    from tests import zoo as models

    reviews = folder / "reviews.txt"
    reviews.write_text("\n".join(models.movie_reviews()["evaluation"].texts[:300]) + "\n")
    data = ["--data", str(reviews)]
    _zoo_row("MiniLM through int8, cold", _optimize(models.minilm(), "int8", folder / "minilm", *data), 40)

    weights, factory = models.efficientnet_lite0()
    code = ["--factory", factory, "--signature", "image=float32[batch,3,224,224]", "--metric", "top1"]
    data = ["--data", f"calibration={models.calibration_photos()}", "--data", f"evaluation={models.photos()}"]
    command = _optimize(weights, "int8-static", folder / "efficientnet", *code, *data)
    _zoo_row("EfficientNet-Lite0 through int8-static, cold", command, 60)


def calibrate(folder: Path) -> None:
    """Ranges of MiniLM's activations on 1,000 samples."""
    from tests import zoo as models

    texts = folder / "texts.txt"
    texts.write_text("\n".join(models.movie_reviews()["evaluation"].texts[:1000]) + "\n")
    recipe = folder / "calibrate.yaml"
    recipe.write_text("version: 1\nname: q\npasses: [export-onnx, quantize-static: {calibration: mse}]\n")
    data = ["--data", f"calibration={texts}", "--data", str(texts), "--limit", "cosine=null"]
    found = run(_optimize(models.minilm(), recipe, folder / "out", *data), OPTKIT_CACHE=str(folder / "cache"))
    _require(found)
    figure = f"{found.peak_mb:.0f} MB, {found.seconds:.0f} s"
    row("MiniLM, 1,000 calibration samples, peak of the tree", figure, "< 1500 MB", found.peak_mb < 1500)


def _zoo_row(name: str, command: list[str], seconds: int) -> None:
    with tempfile.TemporaryDirectory() as cache:
        found = run(command, OPTKIT_CACHE=cache)
    _require(found)
    figure = f"{found.seconds:.1f} s, {found.peak_mb:.0f} MB"
    row(name, figure, f"< {seconds} s", found.seconds < seconds)


def _optimize(model: Path | str, recipe: Path | str, out: Path, *more: str) -> list[str]:
    fixed = ["--no-bench", "--force", "-o", str(out)]
    return [*OPTKIT, "optimize", str(model), "--recipe", str(recipe), *fixed, *more]


def _require(found: Run) -> None:
    if found.code:
        raise SystemExit(f"a run ended with {found.code}:\n{found.output}")


def _measuring(figure: Callable[[Path], Line], folder: Path) -> None:
    row(*figure(folder))


def main() -> None:
    """Run the asked figures."""
    figures = {"startup": startup, "mlp": mlp, "large": large, "zoo": zoo, "calibrate": calibrate}
    figures |= {each.__name__: partial(_measuring, each) for each in (aa, slower5, harness)}
    print(f"{psutil.cpu_count()} cores, Python {sys.version.split()[0]}")
    for name in sys.argv[1:] or figures:
        with tempfile.TemporaryDirectory() as folder:
            figures[name](Path(folder))


if __name__ == "__main__":
    main()
