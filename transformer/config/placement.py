"""Settings of where a run happens: devices and launch. They never change a result."""

from __future__ import annotations

import re
from dataclasses import dataclass

from transformer.config.field import setting
from transformer.errors import UserError


@dataclass(frozen=True)
class ParallelConfig:
  """How one program is laid over devices. Never changes a result beyond rounding."""

  mode: str = setting('auto', 'executor', kind='free', choices=('auto', 'pmap', 'mesh'))
  mesh: str = setting(
    '', "mesh axes and sizes, as in 'data:4,fsdp:2'; empty: all devices on data", kind='free'
  )
  distributed: str = setting(
    'off',
    'several processes as one: off; auto: as the cluster tells; coordinator:port,rank,size',
    kind='free',
  )


@dataclass(frozen=True)
class LaunchConfig:
  """Where the cells of an experiment run."""

  workers: int = setting(
    0, 'processes side by side; 0: one a core on CPU, one an accelerator', kind='free', low=0
  )
  retries: int = setting(
    2, 'tries of a cell after one that may pass: its process died or was lost', kind='free', low=0
  )


@dataclass(frozen=True)
class Rank:
  """One of several processes of a run. coordinator: host:port that process 0 listens on."""

  coordinator: str
  rank: int
  size: int


def parse_distributed(text: str) -> str | Rank:
  """'off', 'auto', or who a process is, of '10.0.0.1:1234,0,2'. Raises UserError."""
  if text in ('off', 'auto'):
    return text
  found = re.fullmatch(r'(\S+:\d+),(\d+),(\d+)', text)
  if not found or int(found[2]) >= int(found[3]):
    raise UserError(
      f'--parallel.distributed={text}: should be off, auto, or coordinator:port,rank,size with a '
      'rank below size, as in 10.0.0.1:1234,0,2'
    )
  return Rank(found[1], int(found[2]), int(found[3]))
