"""What this machine offers the workers of a launch. Decided without importing jax."""

from __future__ import annotations

import contextlib
import glob
import importlib.metadata
import importlib.util
import math
import os
from dataclasses import dataclass
from pathlib import Path

_DEVICES = {  # a word in the jax plugin's name -> device files that show the hardware is there
  'cuda': ('/dev/nvidia[0-9]*', '/dev/dxg'),
  'rocm': ('/dev/kfd',),
}
_TPU = ('/dev/accel*', '/dev/vfio/[0-9]*')
_ONE_THREAD = '--xla_cpu_multi_thread_eigen=false'
# XLA takes a step's scratch memory from malloc anew each time. Kept by the process, and in huge
# pages, it is not zeroed and mapped again: 1.5 times the speed of GEGLU at d_model 96 on one core.
_KEEP_MEMORY = (
  'glibc.malloc.hugetlb=1'
  ':glibc.malloc.mmap_threshold=10000000000:glibc.malloc.trim_threshold=10000000000'
)


@dataclass(frozen=True)
class Seat:
  """Where one worker runs. cores: to pin it to; empty: not pinned. one_thread: on CPU."""

  cores: tuple[int, ...]
  one_thread: bool
  share: float  # of an accelerator's memory; 0: on CPU, or all of it

  def environment(self) -> dict[str, str]:
    """The worker's environment: ours, and what its seat asks for."""
    env = dict(os.environ)
    if self.one_thread:
      env['XLA_FLAGS'] = f'{env.get("XLA_FLAGS", "")} {_ONE_THREAD}'.strip()
      env['OMP_NUM_THREADS'] = '1'
    if on_cpu():
      env.setdefault('GLIBC_TUNABLES', _KEEP_MEMORY)
    if self.share:
      env.setdefault('XLA_PYTHON_CLIENT_MEM_FRACTION', f'{self.share:.3f}')
    return env


def seats(workers: int, cells: int) -> list[Seat]:
  """A seat for each worker to start.

  workers: 0: one a core on CPU, one on an accelerator. Never more than there are cells. A lone
  worker has the whole machine; several on CPU get equal shares of the cores to themselves, and
  where that is one core each (15-30 % faster at small sizes) JAX is told to use one thread.
  """
  cpu, cores = on_cpu(), schedulable_cores()
  count = min(workers or (len(cores) if cpu else 1), cells)
  if count <= 1 or not cpu:
    share = 0.9 / count if count > 1 else 0.0  # each would take three quarters
    return [Seat((), False, share)] * count
  each = len(cores) // count
  if (
    each == 0 or crowded()
  ):  # more workers than cores, or others on them: the system deals them out
    return [Seat((), each <= 1, 0.0)] * count
  # a remainder stays idle: cells to be compared should run alike
  groups = [tuple(cores[i * each : (i + 1) * each]) for i in range(count)]
  return [Seat(group, each == 1, 0.0) for group in groups]


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


def on_cpu() -> bool:
  """Whether JAX would run on CPU: by $JAX_PLATFORMS, else unless both device and plugin exist."""
  asked = os.environ.get('JAX_PLATFORMS', '').split(',')[0].strip()
  if asked:
    return asked == 'cpu'
  if importlib.util.find_spec('libtpu') and any(map(glob.glob, _TPU)):
    return False
  plugins = ' '.join(e.name for e in importlib.metadata.entry_points(group='jax_plugins'))
  hidden = os.environ.get('CUDA_VISIBLE_DEVICES') in ('', '-1')
  return not any(
    word in plugins and any(map(glob.glob, files)) and not (word == 'cuda' and hidden)
    for word, files in _DEVICES.items()
  )
