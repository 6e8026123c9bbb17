"""What this machine can do at best, measured: arithmetic through onnxruntime, memory by copying.

Together they bound any node: it takes at least its operations at the arithmetic limit, and at least its bytes at the
limit of memory (the roofline model: Williams, Waterman, Patterson, "Roofline: an insightful visual performance model
for multicore architectures", CACM 52(4), 2009).
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from optkit.bench.profile_facts import CopyRate, Peaks

SHAPES = ((256, 1024, 1024), (768, 768, 768), (128, 2048, 2048), (1024, 1024, 1024))
"""M, K, N of the products tried."""
TRY_S = 0.04
"""Per product and size of copy, each time."""
ROUNDS = 3
"""Each is tried as often, with the others between: what disturbs one try is over at the next."""
COPIES = (2**20, 2**23, 2**26)
"""Bytes moved by one copy, source and target together; the last size is chosen by the machine's caches."""
SMALL_COPY = 2**25
"""Bytes below which a copy is repeated, so that starting threads does not count."""
LEAST_LARGE, CACHES, MEMORY_SHARE = 2**29, 2, 8
"""The largest copy: at least so many bytes, or so many times the last-level cache, but no more than this part of the
memory."""

Call = Callable[[], object]
Doubles = NDArray[np.float64]


def measure_peaks(threads: int) -> Peaks:
    """The best rates found, with as many threads as the model has; takes about 2 s.

    Raises:
        PackageError: onnxruntime is not installed.
    """
    products = {(kind, shape): _product(kind, *shape, threads) for kind in ("fp32", "int8") for shape in SHAPES}
    copies = {size: _copy(size, threads) for size in (*COPIES, largest_copy())}
    best: dict[str | int, float] = {}
    for _ in range(ROUNDS):
        for (kind, shape), call in products.items():
            best[kind] = max(best.get(kind, 0.0), 2 * math.prod(shape) / fastest(call, TRY_S))
        for size, call in copies.items():
            moved = size * max(1, SMALL_COPY // size)
            best[size] = max(best.get(size, 0.0), moved / fastest(call, TRY_S))
    rates = falling([best[size] / 1e9 for size in copies])
    return Peaks(
        threads=threads,
        fp32_gflops=best["fp32"] / 1e9,
        int8_gops=best["int8"] / 1e9,
        copies=tuple(CopyRate(bytes=size, gb_s=rate) for size, rate in zip(copies, rates, strict=True)),
    )


def falling(rates: Sequence[float]) -> list[float]:
    """Rates of copies from small to large, without dips: what is as fast for more is as fast for less."""
    return [max(rates[index:]) for index in range(len(rates))]


def _product(kind: str, m: int, k: int, n: int, threads: int) -> Call:
    """[m, k] x [k, n], the second factor a weight."""
    from onnx import TensorProto, helper, numpy_helper

    from optkit.runner.providers import import_ort

    ort, rng = import_ort(), np.random.default_rng(0)
    left, right, operator, given, made = {
        "fp32": (np.float32, np.float32, "MatMul", TensorProto.FLOAT, TensorProto.FLOAT),
        "int8": (np.uint8, np.int8, "MatMulInteger", TensorProto.UINT8, TensorProto.INT32),
    }[kind]
    weight = numpy_helper.from_array(rng.integers(-9, 9, (k, n)).astype(right), "b")
    graph = helper.make_graph(
        [helper.make_node(operator, ["a", "b"], ["c"])],
        "product",
        [helper.make_tensor_value_info("a", given, [m, k])],
        [helper.make_tensor_value_info("c", made, [m, n])],
        [weight],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    # Else the threads of one product go on spinning for 30 ms and take a core from the next: half the rate was found.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    binding = session.io_binding()
    binding.bind_cpu_input("a", rng.integers(0, 9, (m, k)).astype(left))
    binding.bind_output("c")
    return lambda: session.run_with_iobinding(binding)


def fastest(call: Call, seconds: float) -> float:
    """Seconds of the fastest of as many calls as fit, at least three."""
    best, count, end = math.inf, 0, time.perf_counter() + seconds
    while count < 3 or time.perf_counter() < end:
        begin = time.perf_counter()
        call()
        best, count = min(best, time.perf_counter() - begin), count + 1
    return best


def largest_copy() -> int:
    """Bytes moved by a copy that no cache holds, as far as the memory allows."""
    from optkit.model.machine import machine

    return min(max(LEAST_LARGE, CACHES * cache_bytes()), machine().memory_bytes // MEMORY_SHARE)


def cache_bytes(folder: Path = Path("/sys/devices/system/cpu/cpu0/cache")) -> int:
    """Of the last-level cache; 0 where the system does not say."""
    units = {"K": 2**10, "M": 2**20, "G": 2**30}
    sizes = [file.read_text().strip() for file in folder.glob("index*/size")]
    return max((int(size[:-1]) * units[size[-1]] for size in sizes if size[-1:] in units), default=0)


def _copy(size: int, threads: int) -> Call:
    """numpy's copy of so many bytes, source and target together, each thread at its own part; small ones repeated."""
    part = size // 2 // threads // 8
    pairs = [(np.ones(part), np.zeros(part)) for _ in range(threads)]
    return lambda: _copy_all(pairs, max(1, SMALL_COPY // size))


def _copy_all(pairs: Sequence[tuple[Doubles, Doubles]], repeats: int) -> None:
    def copy(source: Doubles, target: Doubles) -> None:
        for _ in range(repeats):
            np.copyto(target, source)

    others = [threading.Thread(target=copy, args=pair) for pair in pairs[1:]]
    for thread in others:
        thread.start()
    copy(*pairs[0])
    for thread in others:
        thread.join()


def bandwidth(peaks: Peaks, size: int) -> float:
    """Bytes per second at which ``size`` bytes can be moved: the rate of the smallest copy that is as large."""
    found = next((copy for copy in peaks.copies if copy.bytes >= size), peaks.copies[-1])
    return found.gb_s * 1e9
