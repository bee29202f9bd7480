"""Several processes, on one host or many, that run one program: who they are, what they agree on.

Every process runs the same code on its share of each batch. Whatever decides what is run next (to
stop, to evaluate, which checkpoint to take) is the same in all of them, or they would wait for each
other for ever; so it is computed from what all have, or told by the first process to the others.
"""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np

from transformer.config.placement import Rank, parse_distributed
from transformer.errors import UserError
from transformer.parallel import any_process

T = TypeVar('T')
HEARTBEAT_SECONDS = 40  # without a sign of a process after which jax ends the others
_START_SECONDS = 300  # for all processes to come
_END_SECONDS = 30  # for all to leave


def start(setting: str) -> None:
  """Joins the processes that --parallel.distributed names; before anything asks for a device.

  auto: as Slurm, Open MPI, a TPU pod or Kubernetes tell, or the variables JAX_COORDINATOR_ADDRESS
  (host:port), JAX_NUM_PROCESSES and JAX_PROCESS_ID (or, in an indexed job, JOB_COMPLETION_INDEX).
  Raises UserError where they cannot be found or do not all come.
  """
  asked = parse_distributed(setting)
  if asked == 'off':
    return
  jax.config.update('jax_cpu_collectives_implementation', 'gloo')
  # Stopping is agreed on at every step (`Agreement`); jax's own service would take SIGTERM.
  jax.config.update('jax_enable_preemption_service', False)
  try:
    jax.distributed.initialize(
      **_known(asked),
      initialization_timeout=_START_SECONDS,
      heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
      shutdown_timeout_seconds=_END_SECONDS,
    )
  except (RuntimeError, ValueError) as e:  # jaxlib's own errors are RuntimeErrors
    reason = str(e).strip().partition('\n')[0][:200]
    raise UserError(
      f'--parallel.distributed={setting}: the processes did not come together ({reason}); give '
      'each coordinator:port,rank,size'
    ) from None


def _known(asked: str | Rank) -> dict[str, Any]:
  """What of jax.distributed.initialize's arguments need not be found out by jax."""
  if isinstance(asked, Rank):
    return {
      'coordinator_address': asked.coordinator,
      'process_id': asked.rank,
      'num_processes': asked.size,
      'local_device_ids': [],  # all that the process sees
    }
  env = os.environ
  known: dict[str, Any] = {}
  if 'JAX_NUM_PROCESSES' in env:
    known['num_processes'] = int(env['JAX_NUM_PROCESSES'])
  rank = env.get('JAX_PROCESS_ID', env.get('JOB_COMPLETION_INDEX'))
  if rank is not None and 'JAX_COORDINATOR_ADDRESS' in env:
    known |= {'process_id': int(rank), 'local_device_ids': []}
  nodes = env.get('SLURM_STEP_NUM_NODES')
  if nodes and nodes == env.get('SLURM_STEP_NUM_TASKS'):
    known['local_device_ids'] = []  # one process a node has all its devices; jax would take one
  return known


def rank() -> int:
  """Which of the processes this is."""
  return jax.process_index()


def first() -> bool:
  """Whether this process writes what is written once."""
  return jax.process_index() == 0


def gather(text: str) -> list[str]:
  """What each process says, by rank; all wait for all."""
  if jax.process_count() == 1:
    return [text]
  from jax.experimental import multihost_utils

  encoded = np.frombuffer(text.encode(), np.uint8)
  longest = max(1, int(np.max(multihost_utils.process_allgather(np.int32(len(encoded))))))
  said = np.zeros(longest, np.uint8)
  said[: len(encoded)] = encoded
  heard = multihost_utils.process_allgather(said)
  return [bytes(row).rstrip(b'\0').decode() for row in heard]


def share(make: Callable[[], Any]) -> Any:
  """What `make` gives in the first process, as plain JSON values; in the others it is not called.

  A UserError is raised in all.
  """
  if jax.process_count() == 1:
    return make()
  answer: dict[str, Any] = {}
  if first():
    try:
      answer = {'made': make()}
    except UserError as e:
      answer = {'error': str(e)}
  answer = json.loads(gather(json.dumps(answer))[0])
  if 'error' in answer:
    raise UserError(answer['error'])
  return answer['made']


def together(make: Callable[[], T]) -> T:
  """What `make` gives in each process; a UserError in any is raised in all."""
  if jax.process_count() == 1:
    return make()
  made, error = None, ''
  try:
    made = make()
  except UserError as e:
    error = str(e)
  for rank, other in enumerate(gather(error)):
    if other:
      raise UserError(error or f'process {rank}: {other}')
  return made


def check_same(what: str, digest: str) -> None:
  """Raises UserError, in all processes, unless `digest` is the same in all."""
  told = gather(digest)
  for rank, other in enumerate(told):
    if other != told[0]:
      raise UserError(f'process {rank}: has other {what} than process 0; give all hosts the same')


class Agreement:
  """Whether to stop, told to all processes at the same step once any was asked to."""

  def __init__(self) -> None:
    self._before: jax.Array | None = None

  def __call__(self, asked: bool) -> bool:
    """To call once a step. Of several processes what was asked a step ago, so as not to wait."""
    if jax.process_count() == 1:
      return asked
    before, self._before = self._before, any_process(asked)
    return before is not None and bool(before)


@contextlib.contextmanager
def desk(folder: Path) -> Iterator[Path]:
  """Where this process writes of a run in `folder`: there, or what all but the first throw away."""
  if first():
    yield folder
  else:
    with tempfile.TemporaryDirectory() as scratch:
      yield Path(scratch)
