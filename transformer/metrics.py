"""metrics.jsonl: exact rows, written without waiting for the device at every step.

A step's metrics stay on the device until the step after a logging step has been sent off; then the
rows up to it are fetched, summed on the host in float64 and written. Sums that are not yet a row
are part of a checkpoint, so that a resumed run writes the rows an undisturbed one would have.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable
from pathlib import Path

import jax

from transformer.errors import UserError

FILE = 'metrics.jsonl'


class MetricsLog:
  """The metrics of one run.

  folder: the run's. step: where the run stands; rows past it are dropped. sums: unwritten sums of
  the checkpoint resumed from. every: steps between rows. tokens: a step's, for perf/tokens_per_s.
  """

  def __init__(
    self,
    folder: Path,
    step: int,
    sums: dict[str, list[float]],
    every: int,
    tokens: int,
    tensorboard: bool = False,
  ):
    _drop_rows_past(folder / FILE, step)
    # By lines, so that a reader sees each row at once, and a kill takes half of one at most.
    self._file = open(folder / FILE, 'a', 1, encoding='utf-8')  # noqa: SIM115 (closed in close)
    self._board = _Board(folder / 'tensorboard', step) if tensorboard else None
    self._sums = {name: list(pair) for name, pair in sums.items()}
    self._every, self._tokens = every, tokens
    self._pending: list[tuple[int, dict]] = []
    self._since, self._steps = time.perf_counter(), 0
    self.last: dict[str, float] = {}

  @property
  def sums(self) -> dict[str, list[float]]:
    """What has been fetched but is not yet a row."""
    return self._sums

  def add(self, step: int, metrics: dict[str, jax.Array]) -> None:
    """Takes note of a step's metrics, still on the device: name -> (sum, count)."""
    self._pending.append((step, metrics))

  def due(self, step: int) -> bool:
    """Whether rows are waiting that end before `step`."""
    return any(s % self._every == 0 and s < step for s, _ in self._pending)

  def flush(self, watch: Callable[[int, dict], None], before: float = math.inf) -> None:
    """Fetches pending metrics, writes the rows that are complete; `watch` sees every step.

    before: leave this step and later ones on the device, which is still at work on them.
    """
    pending = [(step, metrics) for step, metrics in self._pending if step < before]
    self._pending = self._pending[len(pending) :]
    for (step, _), values in zip(pending, jax.device_get([m for _, m in pending]), strict=True):
      self._steps += 1
      for name, (total, count) in values.items():
        pair = self._sums.setdefault(name, [0.0, 0.0])
        pair[0] += float(total)
        pair[1] += float(count)
      if step % self._every == 0:
        self._row(step)
      watch(step, values)

  def pause(self) -> None:
    """Leaves what happens until `resume` (evaluation, saving) out of perf/."""
    self._since = time.perf_counter() - self._since

  def resume(self) -> None:
    """Ends `pause`."""
    self._since = time.perf_counter() - self._since

  def write(self, step: int, values: dict[str, float]) -> None:
    """Writes one row."""
    self._file.write(json.dumps({'step': step, **values}) + '\n')
    if self._board:
      self._board.write(step, values)
    self.last = {**self.last, **values}

  def sync(self) -> None:
    """Returns once every written row is on disk."""
    self._file.flush()
    os.fsync(self._file.fileno())

  def close(self) -> None:
    """Syncs and lets go of the files."""
    self.sync()
    self._file.close()
    if self._board:
      self._board.close()

  def _row(self, step: int) -> None:
    sums, self._sums = self._sums, {}
    row = {n: total / count for n, (total, count) in sums.items() if count and '/' in n}
    row['train/skipped_steps'] = sums['train/skipped_steps'][0]
    now = time.perf_counter()
    seconds = max(now - self._since, 1e-9) / max(self._steps, 1)
    self._since, self._steps = now, 0
    row |= {'perf/step_ms': 1e3 * seconds, 'perf/tokens_per_s': self._tokens / seconds}
    self.write(step, row)


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
  temporary = path.with_suffix('.tmp')
  with open(temporary, 'w', encoding='utf-8') as f:
    f.writelines(json.dumps(row) + '\n' for row in rows)
    f.flush()
    os.fsync(f.fileno())
  os.replace(temporary, path)


class _Board:
  """TensorBoard event files without TensorFlow. What lies past `step` is marked as undone."""

  def __init__(self, folder: Path, step: int):
    try:
      from tensorboard.compat.proto import event_pb2, summary_pb2
      from tensorboard.summary.writer.event_file_writer import EventFileWriter
    except ImportError:
      raise UserError(
        "--train.tensorboard: needs the extra: pip install 'isoffn[tensorboard]'"
      ) from None
    self._event, self._summary = event_pb2, summary_pb2.Summary
    self._writer = EventFileWriter(str(folder))
    start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
    self._add(step + 1, session_log=start)

  def write(self, step: int, values: dict[str, float]) -> None:
    scalars = [self._summary.Value(tag=tag, simple_value=v) for tag, v in values.items()]
    self._add(step, summary=self._summary(value=scalars))

  def close(self) -> None:
    self._writer.close()

  def _add(self, step: int, **what: object) -> None:
    self._writer.add_event(self._event.Event(step=step, wall_time=time.time(), **what))
    self._writer.flush()
