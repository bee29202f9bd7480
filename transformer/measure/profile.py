"""A trace of a few steps, and the operations that they spend their time in."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import jax

_STEPS = 5
_MOST = 25  # operations told
# These run others, which are told themselves.
_CONTROL = re.compile(r'(while|call|conditional|async)[.\-\d]*$')
# Parts of an origin that say how the model was traced, and not where in it we are.
_WRAPPING = re.compile(r'\(|\._|^(closed_call|while|body|cond|remat\d*|checkpoint)$')


def costliest(folder: str, step: Callable[[], None], origins: dict[str, str]) -> list[dict]:
  """Traces steps into `folder` (for TensorBoard, XProf or Perfetto) and tells where time went.

  Returns for each operation ms and calls a step, its share of all that was traced, and where in
  the model it comes from, if `origins` has it; costliest first. Operations that run side by side
  count each their own time, so shares are of the sum, not of the clock.
  """
  with jax.profiler.trace(folder, create_perfetto_trace=True):
    for i in range(_STEPS):
      with jax.profiler.StepTraceAnnotation('step', step_num=i):
        step()
  newest = max(Path(folder).rglob('*.xplane.pb'), key=lambda path: path.stat().st_mtime)
  spent = by_operation(jax.profiler.ProfileData.from_file(str(newest)))
  total = sum(ns for ns, _ in spent.values()) or 1.0
  rows = sorted(spent.items(), key=lambda item: -item[1][0])[:_MOST]
  return [
    {
      'operation': name,
      'ms': ns / 1e6 / _STEPS,
      'share': ns / total,
      'calls': calls / _STEPS,
      'origin': _short(origins.get(name, '')),
    }
    for name, (ns, calls) in rows
  ]


def by_operation(trace: Any) -> dict[str, tuple[float, int]]:
  """HLO operation -> (nanoseconds less what runs inside it, calls), of a ProfileData."""
  spent: dict[str, list] = defaultdict(lambda: [0.0, 0])
  for plane in trace.planes:
    for line in plane.lines:
      events = (
        (e.start_ns, e.duration_ns, e.name)
        for e in line.events
        if any(name == 'hlo_op' for name, _ in e.stats) and not _CONTROL.match(e.name)
      )
      for name, own in _own_times(events):
        spent[name][0] += own
        spent[name][1] += 1
  return {name: (ns, calls) for name, (ns, calls) in spent.items()}


def _own_times(events: Iterable[tuple[float, float, str]]) -> list[tuple[str, float]]:
  """(name, its time less that of events within it), of one thread's (start, duration, name)."""
  found: list[list] = []
  open_: list[tuple[float, int]] = []  # (end, index in found) of those that may hold the next
  for start, duration, name in sorted(events, key=lambda e: (e[0], -e[1])):
    while open_ and open_[-1][0] <= start:
      open_.pop()
    if open_:
      found[open_[-1][1]][1] -= duration
    open_.append((start + duration, len(found)))
    found.append([name, duration])
  return [(name, own) for name, own in found]


def _short(origin: str) -> str:
  """'jit(train_step)/transpose(jvp(Decoder))/…/attention/…' as 'backward: attention/…'."""
  parts = origin.split('/')
  named = [p for p in parts if not _WRAPPING.search(p)]
  if len(named) > 1 and '->' in named[-2]:
    named.pop()  # the primitive of an einsum
  where = '/'.join(named)
  if 'jvp(' not in origin:
    return where
  return f'{"backward" if "transpose(" in origin else "forward"}: {where}'
