"""What a running cell sees of its launcher: whether to stop, whether it still owns the cell."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from pathlib import Path

from launch.claims import PRUNED, Claim, ClaimLost
from launch.files import write_json
from launch.lease import HEARTBEAT

BEAT_SECONDS = 0.5
_ALIVE = 5.0  # seconds between heartbeats while the run itself says nothing, as when it compiles


class Stopping:
  """True once SIGTERM, SIGINT or SIGUSR1 has come or the parent process is gone.

  Signals only ask: a step, a checkpoint or a write under way is finished first.
  """

  def __init__(self, parent: int):
    self._parent, self._asked = parent, False
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
      signal.signal(number, self._ask)

  def _ask(self, number: int, frame: object) -> None:
    self._asked = True

  def __bool__(self) -> bool:
    return self._asked or os.getppid() != self._parent


class Control:
  """Handed to the runner of one cell. As a context manager it ends its thread of heartbeats."""

  def __init__(self, claim: Claim, stopping: Stopping):
    self._claim, self._stopping = claim, stopping
    self._path = Path(claim.folder) / HEARTBEAT
    self._last, self._count = 0.0, 0
    self._now = dict(step=0, steps=0, loss=None, tokens_per_s=None, phase='')
    self._pruned, self._writing, self._over = False, threading.Lock(), threading.Event()
    self.beat(phase='starting')
    threading.Thread(target=self._stay_alive, daemon=True).start()

  def __enter__(self) -> Control:
    return self

  def __exit__(self, *error: object) -> None:
    self._over.set()

  @property
  def stop(self) -> bool:
    """Whether to checkpoint now and raise Stopped."""
    return bool(self._stopping) or self._pruned

  @property
  def pruned(self) -> bool:
    """Whether a search gave this cell up."""
    return self._pruned

  def check(self) -> None:
    """Raises ClaimLost if another process has the cell; to call before each checkpoint."""
    self._claim.check()

  def beat(
    self,
    *,
    step: int | None = None,
    steps: int | None = None,
    loss: float | None = None,
    tokens_per_s: float | None = None,
    spikes: int | None = None,
    phase: str | None = None,
  ) -> None:
    """Shows progress in heartbeat.json, at most twice a second and at each change of phase.

    What is left out stays as it was. loss: anything float() takes; read only when written.
    spikes: steps so far whose loss jumped. Raises ClaimLost where `check` does: whoever slept past
    its lease learns so here, before it writes anything.
    """
    turn = phase is not None and phase != self._now['phase']
    given = dict(step=step, steps=steps, loss=loss, tokens_per_s=tokens_per_s, phase=phase)
    given['spikes'] = spikes
    self._now.update({k: v for k, v in given.items() if v is not None})
    if turn or time.monotonic() - self._last >= BEAT_SECONDS:
      self._write()

  def _write(self) -> None:
    with self._writing:
      self._claim.check()
      self._last, self._count = time.monotonic(), self._count + 1
      write_json(self._path, {'count': self._count, **_plain(self._now)}, sync=False)
      self._pruned = self._path.with_name(PRUNED).exists()

  def _stay_alive(self) -> None:
    while not self._over.wait(_ALIVE):
      if time.monotonic() - self._last >= _ALIVE:
        with contextlib.suppress(OSError, ClaimLost):  # for the run itself to meet
          self._write()


def _plain(values: dict) -> dict:
  """With numbers that JSON knows, whatever array library they came from."""
  kinds = dict(step=int, steps=int, loss=float, tokens_per_s=float, spikes=int, phase=str)
  return {k: v if v is None else kinds[k](v) for k, v in values.items()}
