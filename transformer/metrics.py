"""metrics.jsonl: exact rows, written without waiting for the device at every step.

A step's metrics stay on the device until the step after a logging step has been sent off; then the
rows up to it are fetched, summed on the host in float64 and written. Sums that are not yet a row
are part of a checkpoint, so that a resumed run writes the rows an undisturbed one would have.
"""

from __future__ import annotations

import itertools
import json
import math
import os
import statistics
import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import numpy as np

from transformer.boards import Board
from transformer.errors import UserError
from transformer.files import replacing

FILE = 'metrics.jsonl'
_WINDOW, _LEAST = 50, 20  # losses that the next one is held against: at most, at least
_DEVIATIONS, _FLOOR = 6.0, 0.1  # how far above their median a spike is; in nats, at least


def is_spike(loss: float, recent: Sequence[float]) -> bool:
  """Whether a step's loss stands out from those before it.

  That is: it exceeds their median by six standard deviations of their noise, and by 0.1 nats. The
  noise is told from the median size of the change between neighbours, which neither a trend nor a
  spike moves; times 1.4826 / √2 it is the deviation, if the noise is normal.
  """
  if len(recent) < _LEAST:
    return False
  middle = statistics.median(recent)
  changes = (abs(b - a) for a, b in itertools.pairwise(recent))
  deviation = 1.4826 / math.sqrt(2) * statistics.median(changes)
  return loss > middle + max(_DEVIATIONS * deviation, _FLOOR)


class MetricsLog:
  """The metrics of one run.

  folder: the run's. step: where the run stands; rows past it are dropped. saved: `state` at the
  checkpoint resumed from, or {}. every: steps between rows. tokens: a step's, for
  perf/tokens_per_s. boards: who else is to get each row; closed with the log.
  """

  def __init__(
    self,
    folder: Path,
    step: int,
    saved: dict,
    every: int,
    tokens: int,
    boards: Sequence[Board] = (),
  ):
    _drop_rows_past(folder / FILE, step)
    # By lines, so that a reader sees each row at once, and a kill takes half of one at most.
    self._file = open(folder / FILE, 'a', 1, encoding='utf-8')  # noqa: SIM115 (closed in close)
    self._boards = boards
    self._sums = {n: np.array(pair, np.float64) for n, pair in saved.get('sums', {}).items()}
    self._recent = deque(saved.get('losses', ()), _WINDOW)
    self.spikes = saved.get('spikes', 0)  # in all
    self._every, self._tokens = every, tokens
    self._pending: list[tuple[int, dict, dict]] = []
    self._fetched = 0  # steps
    self._clock: tuple[float, int] | None = None  # when last read, and steps complete by then
    self.last: dict[str, float] = {}

  @property
  def state(self) -> dict:
    """What the rows to come depend on: sums fetched that are not yet a row, recent losses."""
    sums = {name: pair.tolist() for name, pair in self._sums.items()}
    return {'sums': sums, 'losses': list(self._recent), 'spikes': self.spikes}

  def add(self, step: int, metrics: dict[str, jax.Array], more: dict | None = None) -> None:
    """Takes note of a step's metrics, still on the device: name -> (sum, count).

    more: for a row of its own behind that step's, as `spread` takes it.
    """
    self._pending.append((step, metrics, more or {}))
    if self._clock is None:  # from here on, for the first step has had to be compiled
      self._read_clock()

  def due(self, step: int) -> bool:
    """Whether rows are waiting that end before `step`."""
    return any(s % self._every == 0 and s < step for s, *_ in self._pending)

  def flush(self, watch: Callable[[int, dict], None], before: float = math.inf) -> None:
    """Fetches pending metrics, writes the rows that are complete; `watch` sees every step.

    before: leave this step and later ones on the device, which is still at work on them.
    """
    pending = [entry for entry in self._pending if entry[0] < before]
    self._pending = self._pending[len(pending) :]
    fetched = jax.device_get([(metrics, more) for _, metrics, more in pending])
    self._fetched += len(pending)
    for (step, *_), (values, more) in zip(pending, fetched, strict=True):
      self._sum(values)
      if step % self._every == 0:
        self._row(step)
      if more:
        self.write(step, spread(more))
      watch(step, values)

  def pause(self) -> None:
    """Leaves what happens until `resume` (evaluation, saving) out of perf/."""
    self._paused = time.perf_counter()

  def resume(self) -> None:
    """Ends `pause`."""
    if self._clock:
      read, complete = self._clock
      self._clock = read + time.perf_counter() - self._paused, complete

  def write(self, step: int, values: dict[str, float]) -> None:
    """Writes one row."""
    finite = {k: v if math.isfinite(v) else None for k, v in values.items()}  # JSON has no NaN
    self._file.write(json.dumps({'step': step, **finite}) + '\n')
    for board in self._boards:
      board.write(step, values)
    self.last = {**self.last, **values}

  def sync(self) -> None:
    """Returns once every written row is on disk."""
    self._file.flush()
    os.fsync(self._file.fileno())

  def close(self) -> None:
    """Syncs and lets go of the files."""
    self.sync()
    self._file.close()
    for board in self._boards:
      board.close()

  def _sum(self, values: dict) -> None:
    total, count = map(float, values['train/loss'])
    spike = False
    if count:  # a skipped step has no loss
      spike = is_spike(total / count, self._recent)
      self._recent.append(total / count)
    self.spikes += spike
    for name, pair in (values | {'train/spikes': (spike, 1.0)}).items():
      self._sums[name] = self._sums.get(name, 0.0) + np.asarray(pair, np.float64)

  def _row(self, step: int) -> None:
    sums, self._sums = self._sums, {}
    row = means({name: pair for name, pair in sums.items() if '/' in name})
    for name in ('train/skipped_steps', 'train/spikes'):
      row[name] = float(sums[name][0])
    seconds, steps = self._read_clock()
    if steps:  # none, where the row before was written with this step complete as well
      row['perf/step_ms'] = 1e3 * seconds / steps
      row['perf/tokens_per_s'] = self._tokens * steps / seconds
    self.write(step, row)

  def _read_clock(self) -> tuple[float, int]:
    """Seconds since the last reading, and the steps completed in them: fetched or ready to be."""
    ready = sum(metrics['train/loss'].is_ready() for _, metrics, _ in self._pending)
    now, complete = time.perf_counter(), self._fetched + ready
    last, before = self._clock or (now, complete)
    self._clock = now, complete
    return max(now - last, 1e-9), complete - before


def means(pairs: dict[str, np.ndarray]) -> dict[str, float]:
  """Sums over counts (2, …) as a row; nothing where there is a count of 0."""
  with np.errstate(invalid='ignore', divide='ignore'):
    return spread({name: total / count for name, (total, count) in pairs.items()})


def spread(found: dict[str, np.ndarray]) -> dict[str, float]:
  """Name -> a number, one a layer or more, as a row: 'name', 'name/layer'. Only finite ones."""
  row = {}
  for name, values in found.items():
    for at, value in np.ndenumerate(np.asarray(values)):
      if math.isfinite(value):
        row['/'.join([name, *map(str, at)])] = float(value)
  return row


def read(path: Path) -> list[dict]:
  """The rows of a metrics.jsonl; a last line cut short by a kill is left out.

  Raises UserError naming file and line for any other damage.
  """
  if not path.exists():
    return []
  rows, lines = [], path.read_bytes().split(b'\n')
  for number, line in enumerate(lines, 1):
    try:
      if line:
        row = json.loads(line)
        row['step']  # whatever else it holds, a row has its step
        rows.append(row)
    except (ValueError, TypeError, KeyError):
      if number < len(lines):
        raise UserError(
          f'{path}: line {number} is not a row of metrics; remove it or the cell'
        ) from None
  return rows


def _drop_rows_past(path: Path, step: int) -> None:
  rows = [row for row in read(path) if row['step'] <= step]
  with replacing(path) as f:
    f.writelines(json.dumps(row) + '\n' for row in rows)
