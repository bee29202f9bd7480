"""The accelerators of this machine, and how a worker is told which of them are its own. No jax."""

from __future__ import annotations

import glob
import importlib.metadata
import importlib.util
import os
from dataclasses import dataclass


@dataclass(frozen=True)
class Kind:
  """A kind of accelerator.

  files: patterns of device files that show it is there. each: patterns of one file a device.
  variable: of the environment, that says which devices a process may see. plugin: a word in the
  name of the jax plugin that drives it; '': libtpu does.
  """

  name: str
  files: tuple[str, ...]
  each: tuple[str, ...]
  variable: str
  plugin: str = ''

  def there(self) -> bool:
    """Whether both the hardware and what drives it are installed, and it is not hidden."""
    if not any(map(glob.glob, self.files)) or os.environ.get(self.variable) in ('', '-1'):
      return False
    if not self.plugin:
      return importlib.util.find_spec('libtpu') is not None
    plugins = importlib.metadata.entry_points(group='jax_plugins')
    return any(self.plugin in entry.name for entry in plugins)

  def devices(self) -> list[str]:
    """Those this process may use: what the variable lists, else all there are; [] if unknown."""
    if listed := os.environ.get(self.variable):
      return [name.strip() for name in listed.split(',') if name.strip()]
    return [str(i) for i in range(sum(len(glob.glob(pattern)) for pattern in self.each))]


_NVIDIA, _TPU = '/dev/nvidia[0-9]*', ('/dev/accel*', '/dev/vfio/[0-9]*')
KINDS = (
  Kind('tpu', _TPU, _TPU, 'TPU_VISIBLE_CHIPS'),
  Kind('cuda', (_NVIDIA, '/dev/dxg'), (_NVIDIA,), 'CUDA_VISIBLE_DEVICES', 'cuda'),
  Kind('rocm', ('/dev/kfd',), ('/dev/dri/renderD*',), 'ROCR_VISIBLE_DEVICES', 'rocm'),
)


def kind() -> Kind | None:
  """What JAX would run on: by $JAX_PLATFORMS, else by what is here; None for the CPU."""
  asked = os.environ.get('JAX_PLATFORMS', '').split(',')[0].strip()
  if asked == 'cpu':
    return None
  if asked:
    return next((k for k in KINDS if k.name == asked), KINDS[1])
  return next((k for k in KINDS if k.there()), None)


def dealt(kind: Kind, workers: int, each: int) -> list[dict[str, str]]:
  """An environment for each of several workers: `each` devices of its own, or a share of one.

  Where there are more workers than devices they share them, and their memory, evenly.
  """
  names = kind.devices()
  groups = [names[i : i + each] for i in range(0, len(names) - each + 1, each)] or [names]
  share = -(-workers // len(groups))  # on the fullest
  found = []
  for i in range(workers):
    group = groups[i % len(groups)]
    env = {kind.variable: ','.join(group)} if group else {}
    if kind.name == 'tpu' and len(group) == 1:  # one chip of a host is a whole topology
      env |= {'TPU_CHIPS_PER_PROCESS_BOUNDS': '1,1,1', 'TPU_PROCESS_BOUNDS': '1,1,1'}
    if share > 1 and kind.name != 'tpu':  # each would take three quarters
      env['XLA_PYTHON_CLIENT_MEM_FRACTION'] = f'{0.9 / share:.3f}'
    found.append(env)
  return found
