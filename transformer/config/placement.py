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
  """Where the cells of an experiment run. A cluster's task is one job of its queue."""

  workers: int = setting(
    0,
    'processes side by side, here or in each task; 0: one a core on CPU, one an accelerator',
    kind='free',
    low=0,
  )
  retries: int = setting(
    2, 'tries of a cell after one that may pass: its process died or was lost', kind='free', low=0
  )
  together: int = setting(
    1,
    'cells of one shape that a worker trains as one program, for accelerators',
    kind='free',
    low=1,
  )
  per_task: int = setting(1, 'cluster: cells a task runs', kind='free', low=1)
  throttle: int = setting(
    0, 'cluster: tasks at a time; 0: as many as it lets run', kind='free', low=0
  )
  nodes: int = setting(
    1, 'cluster: hosts that run each cell together, one process a host', kind='free', low=1
  )
  cpus: int = setting(0, "cluster: cores a host; 0: the cluster's default", kind='free', low=0)
  memory: str = setting('', "cluster: memory a host, as in '16G'", kind='free')
  gpus: int = setting(0, 'cluster: GPUs a host', kind='free', low=0)
  grace: int = setting(
    120,
    'cluster: seconds for saving state before a time limit or an eviction',
    kind='free',
    low=1,
    high=65535,
  )
  time: str = setting('', "Slurm: time limit of a task, as in '4:00:00' or '2-12'", kind='free')
  partition: str = setting('', 'Slurm: partition', kind='free')
  account: str = setting('', 'Slurm: account', kind='free')
  qos: str = setting('', 'Slurm: quality of service', kind='free')
  setup: str = setting(
    '', "Slurm: shell line that a task begins with, as in 'module load cuda'", kind='free'
  )
  image: str = setting('', 'Kubernetes: container image (launch/docker)', kind='free')
  namespace: str = setting('default', 'Kubernetes: namespace', kind='free')
  volume: str = setting(
    '',
    'Kubernetes: volume claim, or claim:folder in it, that pods find at --workdir',
    kind='free',
  )
  selector: str = setting(
    '', "Kubernetes: labels of the nodes to run on, as in 'gpu=h200,zone=a'", kind='free'
  )
  tpu: str = setting('', "Kubernetes: kind of TPU slice, as in 'tpu-v5p-slice'", kind='free')
  tpu_topology: str = setting('', "Kubernetes: chips of a slice, as in '2x2x4'", kind='free')
  tpus: int = setting(4, 'Kubernetes: TPU chips a host', kind='free', low=1)


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
