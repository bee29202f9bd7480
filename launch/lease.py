"""Whether whoever claims a cell still lives, told by its heartbeat alone.

No two machines agree on the time, so nothing here compares their clocks: an observer counts, on its
own monotonic clock, how long a heartbeat's counter has stood still while it looked.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from launch.files import read_json

LEASE = 60.0  # seconds without a heartbeat after which a claim is void
_GAP = 5.0  # seconds between looks that count at most: an observer that slept saw nothing
HEARTBEAT = 'heartbeat.json'


@dataclass
class _Seen:
  token: str
  count: int
  still: float
  at: float


class Leases:
  """What one observer has seen of heartbeats."""

  def __init__(self, seconds: float = LEASE, clock: Callable[[], float] = time.monotonic):
    self._seconds, self._clock = seconds, clock
    self._seen: dict[Path, _Seen] = {}

  def lapsed(self, folder: Path, claim: dict) -> bool:
    """Whether this claim's heartbeat has stood still for a lease; to be asked again and again."""
    now, token, count = self._clock(), claim.get('token', ''), beats(folder)
    seen = self._seen.get(folder)
    if seen is None or (seen.token, seen.count) != (token, count):
      self._seen[folder] = _Seen(token, count, 0.0, now)
      return False
    seen.still += min(now - seen.at, _GAP)
    seen.at = now
    return seen.still >= self._seconds


def beats(folder: Path) -> int:
  """The counter in a cell's heartbeat; 0 if there is none."""
  return int((read_json(folder / HEARTBEAT, strict=False) or {}).get('count', 0))
