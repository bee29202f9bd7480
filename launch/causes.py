"""Why a cell failed, and whether it is worth another try."""

from __future__ import annotations

MEMORY = 'out of memory'
TIME = 'time limit'
PREEMPTED = 'preempted'
NON_FINITE = 'non-finite'
BUG = 'bug'
REFUSED = 'refused'
DIED = 'died'
LOST = 'lost'
CAUSES = (MEMORY, TIME, PREEMPTED, NON_FINITE, BUG, REFUSED, DIED, LOST)
MAY_PASS = (TIME, PREEMPTED, DIED, LOST)  # the same cell may well end on another try
SHORT = {'oom': MEMORY, 'time': TIME, 'nan': NON_FINITE}  # as they may be typed


def tries(failed: dict | None, launch: str) -> int:
  """How often a launch has tried the cell of this failed.json."""
  return int(failed.get('tries', 1)) if failed and failed.get('launch') == launch else 0


def may_retry(failed: dict | None, launch: str, retries: int) -> bool:
  """Whether a launch, which tries again `retries` times, goes on with a cell that has failed."""
  return bool(failed) and failed.get('cause') in MAY_PASS and tries(failed, launch) <= retries
