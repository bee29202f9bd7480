"""Settings of where a run happens: devices and launch. They never change a result."""

from __future__ import annotations

from dataclasses import dataclass

from transformer.config.field import setting


@dataclass(frozen=True)
class ParallelConfig:
  """How one program is laid over devices. Never changes a result beyond rounding."""

  mode: str = setting('auto', 'executor', kind='free', choices=('auto', 'pmap', 'mesh'))
  mesh: str = setting(
    '', "mesh axes and sizes, as in 'data:4,fsdp:2'; empty: all devices on data", kind='free'
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
