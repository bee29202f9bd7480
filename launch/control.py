"""What a running cell sees of its launcher: whether to stop, whether it still owns the cell."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

from launch.claims import Claim
from launch.files import write_json

BEAT_SECONDS = 0.5


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
  """Handed to the runner of one cell."""

  def __init__(self, claim: Claim, stopping: Stopping):
    self._claim, self._stopping = claim, stopping
    self._path = Path(claim.folder) / 'heartbeat.json'
    self._last, self._count = 0.0, 0
    self._now = dict(step=0, steps=0, loss=None, tokens_per_s=None, phase='')
    self.beat(phase='starting')

  @property
  def stop(self) -> bool:
    """Whether to checkpoint now and raise Stopped."""
    return bool(self._stopping)

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
    spikes: steps so far whose loss jumped.
    """
    turn = phase is not None and phase != self._now['phase']
    given = dict(step=step, steps=steps, loss=loss, tokens_per_s=tokens_per_s, phase=phase)
    given['spikes'] = spikes
    self._now.update({k: v for k, v in given.items() if v is not None})
    now = time.monotonic()
    if not turn and now - self._last < BEAT_SECONDS:
      return
    self._last, self._count = now, self._count + 1
    write_json(self._path, {'count': self._count, **_plain(self._now)}, sync=False)


def _plain(values: dict) -> dict:
  """With numbers that JSON knows, whatever array library they came from."""
  kinds = dict(step=int, steps=int, loss=float, tokens_per_s=float, spikes=int, phase=str)
  return {k: v if v is None else kinds[k](v) for k, v in values.items()}
