"""What this machine offers the workers of a launch. Decided without importing jax."""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from launch import devices
from transformer import count, hardware, memory
from transformer.config import Config

_ONE_THREAD = '--xla_cpu_multi_thread_eigen=false'
_PARTS = '--xla_force_host_platform_device_count'
# XLA takes a step's scratch memory from malloc anew each time. Kept by the process, and in huge
# pages, it is not zeroed and mapped again: 1.5 times the speed of GEGLU at d_model 96 on one core.
_KEEP_MEMORY = (
  'glibc.malloc.hugetlb=1'
  ':glibc.malloc.mmap_threshold=10000000000:glibc.malloc.trim_threshold=10000000000'
)


@dataclass(frozen=True)
class Seat:
  """Where one worker runs. cores: to pin it to; empty: not pinned. one_thread: on CPU.

  devices: variables of the environment, as pairs, that say which accelerators are its own. parts:
  of a CPU, each a device of one thread, that share out a batch: XLA's threads would share out
  products alone.
  """

  cores: tuple[int, ...] = ()
  one_thread: bool = False
  devices: tuple[tuple[str, str], ...] = ()
  parts: int = 1

  def environment(self) -> dict[str, str]:
    """The worker's environment: ours, and what its seat asks for."""
    env = os.environ | dict(self.devices)
    xla = env.get('XLA_FLAGS', '')
    if self.parts > 1 and _PARTS not in xla:
      xla = f'{xla} {_PARTS}={self.parts}'
    if self.one_thread or self.parts > 1:
      env['XLA_FLAGS'] = f'{xla} {_ONE_THREAD}'.strip()
      env['OMP_NUM_THREADS'] = '1'
    if hardware.kind() is None:
      env.setdefault('GLIBC_TUNABLES', _KEEP_MEMORY)
    return env


def seats(workers: int, cells: int, each: int = 1, rows: int = 1) -> list[Seat]:
  """A seat for each worker to start.

  workers: 0: one a core on CPU, one an accelerator. Never more than there are cells. each: the
  accelerators that a cell takes. rows: what every micro-batch is a multiple of. A lone worker has
  the whole machine, on CPU as a device a core where they divide the rows. Several on CPU get equal
  shares of the cores to themselves, and where that is one core each (15-30 % faster at small sizes)
  JAX is told to use one thread; several on accelerators get their own, or share them.
  """
  kind, cores = hardware.kind(), schedulable_cores()
  places = max(1, len(kind.devices()) // each) if kind else len(cores)
  count = min(workers or places, cells)
  if count <= 1:
    parts = 1 if kind else max(n for n in range(1, len(cores) + 1) if rows % n == 0)
    return [Seat(parts=parts)] * count
  if kind:
    return [Seat(devices=tuple(env.items())) for env in devices.dealt(kind, count, each)]
  share = len(cores) // count
  if not share or crowded():  # the system shares cores out, among others, too
    return [Seat(one_thread=share <= 1)] * count
  # a remainder stays idle: cells to be compared should run alike
  groups = [tuple(cores[i * share : (i + 1) * share]) for i in range(count)]
  return [Seat(group, share == 1) for group in groups]


def rows_of(configs: Sequence[Config]) -> int:
  """What every micro-batch is a multiple of; 1 where a batch is not to be shared out over cores.

  That is where a run says itself how it lies on devices, and where a state a core would fill more
  than a quarter of the memory.
  """
  places = (config.parallel for config in configs)
  if not configs or any(p.mesh or p.mode != 'auto' or p.distributed != 'off' for p in places):
    return 1
  if any(config.launch.together > 1 for config in configs):
    return 1
  largest = max(configs, key=count.params)
  if len(schedulable_cores()) * sum(memory.state(largest).values()) > _memory() / 4:
    return 1
  return math.gcd(*(c.data.batch_size // c.train.accumulate for c in configs))


def _memory() -> int:
  """Bytes of this machine."""
  return os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES')


def schedulable_cores() -> list[int]:
  """Cores this process may use, within its affinity and what its container or Slurm grants."""
  return _cores()[: _granted()]


def crowded() -> bool:
  """Whether fewer cores are granted than we can be put on: then others are pinned to the same."""
  return len(schedulable_cores()) < len(_cores())


def _cores() -> list[int]:
  if not hasattr(os, 'sched_getaffinity'):  # macOS: no pinning either
    return list(range(os.cpu_count() or 1))
  return sorted(os.sched_getaffinity(0))


def _granted() -> int | None:
  """Cores' worth of time that we may use; None: no limit."""
  limits = []
  with contextlib.suppress(OSError, ValueError):  # no cgroup v2, or 'max'
    quota, period = Path('/sys/fs/cgroup/cpu.max').read_text().split()
    limits.append(max(1, math.ceil(int(quota) / int(period))))
  with contextlib.suppress(KeyError, ValueError):
    limits.append(max(1, int(os.environ['SLURM_CPUS_ON_NODE'])))
  return min(limits, default=None)


def oom_kills() -> int:
  """How many processes of this container, or machine, were killed so far for want of memory."""
  for path in ('/sys/fs/cgroup/memory.events', '/proc/vmstat'):
    with contextlib.suppress(OSError):
      for line in Path(path).read_text().splitlines():
        name, _, count = line.partition(' ')
        if name == 'oom_kill':
          return int(count)
  return 0
