"""Repeating what is to be timed, and saying how far the times lie apart."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence

_CHUNK = 0.1  # seconds of steps in a row, under way together as in training
_LEAST = 5  # chunks, whatever they take


def chunked(go: Callable[[int], None], seconds: float, warm_up: int = 3) -> list[float]:
  """Seconds a step, of each of several chunks of steps.

  go: runs so many steps and waits for the last. Short steps are timed many in a row, as a trainer
  runs them, which does not wait for each; long ones alone.
  """
  go(warm_up)
  start = time.perf_counter()
  go(1)
  steps = max(1, int(_CHUNK / max(time.perf_counter() - start, 1e-9)))
  times: list[float] = []
  while len(times) < _LEAST or sum(times) < seconds:
    start = time.perf_counter()
    go(steps)
    times.append(time.perf_counter() - start)
  return [chunk / steps for chunk in times]


def repeated(go: Callable[[], None], seconds: float, least: int = 3) -> list[float]:
  """Seconds of each of several calls."""
  times: list[float] = []
  while len(times) < least or sum(times) < seconds:
    start = time.perf_counter()
    go()
    times.append(time.perf_counter() - start)
  return times


def quartiles(values: Sequence[float]) -> list[float]:
  """The lower and the upper one, to four significant digits."""
  low, _, high = statistics.quantiles(values, n=4) if len(values) > 1 else (values[0],) * 3
  return [float(f'{low:.4g}'), float(f'{high:.4g}')]


def per_step(times: Sequence[float]) -> dict:
  """step_ms, its quartiles and how many times it was timed."""
  return {
    'step_ms': 1e3 * statistics.median(times),
    'step_ms_quartiles': quartiles([1e3 * t for t in times]),
    'times': len(times),
  }
