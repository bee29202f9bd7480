"""The accelerators of this machine, and what it is fast at, told without jax."""

from __future__ import annotations

import glob
import importlib.metadata
import importlib.util
import os
from dataclasses import dataclass
from pathlib import Path

from transformer.errors import UserError

AUTO_DTYPE = 'ISOFFN_AUTO_DTYPE'  # what --model.dtype=auto comes to, for clusters of mixed nodes


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


def fast_dtype() -> str:
  """The fastest type here that learns as well as float32: $ISOFFN_AUTO_DTYPE where it is set.

  bfloat16 on accelerators, and on CPUs that multiply it in hardware (AVX512_BF16, AMX); on others
  it is emulated, and float32 is the faster one. Raises UserError where the variable says another.
  """
  if asked := os.environ.get(AUTO_DTYPE):
    if asked not in ('float32', 'bfloat16'):
      raise UserError(f'${AUTO_DTYPE}={asked}: should be float32 or bfloat16')
    return asked
  if kind() is not None:
    return 'bfloat16'
  try:
    told = Path('/proc/cpuinfo').read_text().partition('flags')[2].partition('\n')[0].split()
  except OSError:  # no Linux
    told = []
  return 'bfloat16' if {'avx512_bf16', 'amx_bf16'} & set(told) else 'float32'
