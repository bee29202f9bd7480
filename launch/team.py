"""Several processes that run cells together: the first claims and commits, the others follow it.

Each is a worker with the same arguments but for its rank. What goes wrong in one of them leaves the
others waiting, so a process that cannot go on in step ends at once: jax ends the others, and who
supervises them (launch/peers.py, launch/local.py, a cluster) starts all of them anew.
"""

from __future__ import annotations

from collections.abc import Iterator

from launch.control import Stopping
from transformer.errors import UserError


class Alone:
  """A worker of one process."""

  def begin(self, name: str) -> None:
    """Tells the others which cell is next."""

  def survives(self, e: Exception) -> bool:
    """Whether the next cell can be run after this one has ended so."""
    return True

  def is_loss(self, e: Exception) -> bool:
    """Whether what ended a cell is that another process is gone."""
    return False


class Team(Alone):
  """A worker that is one of several processes. distributed: as --parallel.distributed."""

  def __init__(self, distributed: str):
    from transformer import hosts  # brings jax, once affinity is set

    hosts.start(distributed)
    self._hosts, self.rank, self.ended_well = hosts, hosts.rank(), False

  def begin(self, name: str) -> None:
    self._hosts.share(lambda: name)

  def end(self, well: bool) -> None:
    """Tells the others that no cell is next, and whether they were not stopped before that."""
    self.ended_well = self._hosts.share(lambda: well)

  def begun(self) -> Iterator[str]:
    """The cells that the first process begins, in another; then `ended_well` is known."""
    while isinstance(told := self._hosts.share(str), str):
      yield told
    self.ended_well = told

  def survives(self, e: Exception) -> bool:
    """Whether all processes have met this, and so are free for the next cell."""
    return isinstance(e, UserError) or type(e).__name__ in ('NonFinite', 'Stopped')

  def is_loss(self, e: Exception) -> bool:
    return type(e).__name__ == 'JaxRuntimeError' and 'RESOURCE_EXHAUSTED' not in str(e)


class Follower:
  """What a run sees of its launcher in all processes but the first: whether to stop."""

  def __init__(self, stopping: Stopping):
    self._stopping = stopping

  @property
  def stop(self) -> bool:
    """Whether to checkpoint now; the run asks all processes."""
    return bool(self._stopping)

  def check(self) -> None:
    """Nothing: the claim is the first process's."""

  def beat(self, **progress: object) -> None:
    """Nothing: the first process shows it."""
