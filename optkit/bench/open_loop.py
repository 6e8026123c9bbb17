"""How long do requests take that do not wait for one another? Poisson arrivals, latency from the scheduled arrival.

A closed loop sends a request when the one before is answered: while the model stalls, nobody asks, and the stall is
one slow call among thousands (coordinated omission: Gil Tene, "How NOT to Measure Latency"; his wrk2 counts from the
intended time of sending, and so does this). Here arrivals are drawn beforehand, and everybody who should have come
during a stall counts with the whole of the wait.

There is one server and the line is first come, first served, so the line needs no second thread that would take the
interpreter and a core away from the model: whoever is due while a call runs stands in line from the due time on. So
``started[i] = max(sent[i], done[i - 1])`` and ``done[i] = started[i] + service[i]`` (Lindley 1952). The clock is only
waited for while nothing runs.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from optkit.bench.facts import OpenLoop, Percentile
from optkit.errors import UsageError

Times = NDArray[np.float64]

PERCENTS = (50, 90, 95, 99)
ENOUGH = 10
"""Samples that have to lie above a percentile for it to say something."""
SPIN_S = 2e-4
"""The last part of a wait is spent looking at the clock: a sleep ends .1 to .2 ms late."""
MOST_REQUESTS = 1_000_000


@dataclass(frozen=True)
class LoadSamples:
    """The requests of one run in the order of their arrival; seconds since the start, float64[requests] each."""

    scheduled: Times
    """When the request was due, drawn beforehand."""
    sent: Times
    """When it stood in line: on schedule where a call was running, else when the wait for it ended."""
    started: Times
    """When the call began; NaN = never, the run was given up before."""
    done: Times
    """When the call ended; NaN as above."""


def wait(seconds: float) -> None:
    """Sleep, and look at the clock for the last ``SPIN_S``: about 3 microseconds late on an idle core."""
    end = time.perf_counter() + seconds
    if seconds > SPIN_S:
        time.sleep(seconds - SPIN_S)
    while time.perf_counter() < end:
        pass


def open_loop(
    call: Callable[[int], object],
    *,
    rate: float,
    seconds: float,
    seed: int,
    clock: Callable[[], float] = time.perf_counter,
    sleep: Callable[[float], None] = wait,
) -> LoadSamples:
    """Serve ``rate * seconds`` requests, each when it is due or as soon after as the ones before it allow.

    Args:
        call: runs the model on the i-th inputs; warmed up already.
        rate: requests per second.
        seconds: length of the load. Where the line's head has waited as long as that, the rest is not served.
        seed: of the arrivals.
        clock: seconds, from anywhere.
        sleep: waits for so many seconds of ``clock`` or longer.

    Raises:
        UsageError: no rate, no time, or more than ``MOST_REQUESTS``.
    """
    scheduled = arrivals(rate, seconds, seed)
    sent, started, done = (np.full(len(scheduled), np.nan) for _ in range(3))
    begin = clock()
    for index, due in enumerate(scheduled.tolist()):
        now = clock() - begin
        if now - due > seconds:
            sent[index:] = scheduled[index:]
            break
        sent[index] = due
        if now < due:
            sleep(due - now)
            sent[index] = now = clock() - begin
        started[index] = now
        call(index)
        done[index] = clock() - begin
    return LoadSamples(scheduled, sent, started, done)


def arrivals(rate: float, seconds: float, seed: int) -> Times:
    """Sorted times of ``rate * seconds`` arrivals, float64[requests].

    A Poisson process of which the number of arrivals is given: they are uniform over the time, and gaps come out
    exponential. So every candidate and seed gets exactly the load that was asked for.

    Raises:
        UsageError: see ``open_loop``.
    """
    count = rate * seconds if rate > 0 and seconds > 0 else 0
    if not 0 < count <= MOST_REQUESTS:
        raise UsageError(
            f"A load of {rate:g} requests per second for {seconds:g} seconds cannot be run.",
            expected=f"a rate and a time above 0, and at most {MOST_REQUESTS:,} requests in all",
            fix="give another --load",
        )
    return np.sort(np.random.default_rng(seed).uniform(0, seconds, max(1, round(count))))


def summarize(samples: LoadSamples, label: str, rate: float) -> OpenLoop:
    """The facts of one run of ``open_loop`` at ``rate`` requests per second.

    Requests that were never served count with the time they had waited when the run ended: percentiles are lower
    bounds then.
    """
    served = ~np.isnan(samples.done)
    end = float(samples.done[served].max())
    latency = np.where(served, samples.done, max(end, float(samples.scheduled[-1]))) - samples.scheduled
    service = (samples.done - samples.started)[served]
    lag_p50, lag_p99 = np.percentile(samples.sent - samples.scheduled, [50, 99]) * 1e3
    return OpenLoop(
        label=label,
        rate=rate,
        seconds=end,
        requests=len(latency),
        achieved=float(served.sum()) / end,
        percentiles=percentiles(latency),
        max_ms=float(latency.max()) * 1e3,
        service_ms=float(np.median(service)) * 1e3,
        service_p99_ms=float(np.percentile(service, 99)) * 1e3,
        lag_p50_ms=float(lag_p50),
        lag_p99_ms=float(lag_p99),
        saturated=saturated(samples, rate),
        samples_ms=tuple((latency * 1e3).tolist()),
    )


def saturated(samples: LoadSamples, rate: float) -> bool:
    """Whether more came than could be done: the line grows as long as the load lasts.

    So it is where requests were left unserved, or where in the second half of the load a request kept the server for
    longer, on average, than the time to the next one (utilization ``rate * mean service`` of at least 1). A single
    stall makes a line too, but one that is worked off.
    """
    if np.isnan(samples.done).any():
        return True
    free = np.maximum(samples.sent, np.concatenate([[0.0], samples.done[:-1]]))
    second = (samples.done - free)[len(free) // 2 :]
    return bool(rate * second.mean() >= 1)


def percentiles(seconds: Times) -> tuple[Percentile, ...]:
    """``PERCENTS`` of latencies in seconds (float64[calls]), linear between samples, in milliseconds.

    ``enough`` where ``ENOUGH`` samples lie above it: 1000 for the 99th.
    """
    values = np.percentile(seconds, PERCENTS) * 1e3
    return tuple(
        Percentile(percent=percent, ms=float(value), enough=(100 - percent) * len(seconds) >= 100 * ENOUGH)
        for percent, value in zip(PERCENTS, values, strict=True)
    )
