"""What the hardware at hand suggests, told without jax."""

from __future__ import annotations

import glob
import importlib.metadata
import importlib.util
import os
from pathlib import Path

AUTO_DTYPE = 'ISOFFN_AUTO_DTYPE'  # what --model.dtype=auto comes to, for clusters of mixed nodes
_DEVICES = {  # a word in the jax plugin's name -> device files that show the hardware is there
  'cuda': ('/dev/nvidia[0-9]*', '/dev/dxg'),
  'rocm': ('/dev/kfd',),
}
_TPU = ('/dev/accel*', '/dev/vfio/[0-9]*')


def fast_dtype() -> str:
  """The fastest type here that learns as well as float32: $ISOFFN_AUTO_DTYPE where it is set.

  bfloat16 on accelerators, and on CPUs that multiply it in hardware (AVX512_BF16, AMX); on others
  it is emulated, and float32 is the faster one.
  """
  if asked := os.environ.get(AUTO_DTYPE):
    return asked
  if not on_cpu():
    return 'bfloat16'
  try:
    told = Path('/proc/cpuinfo').read_text().partition('flags')[2].partition('\n')[0].split()
  except OSError:  # no Linux
    told = []
  return 'bfloat16' if {'avx512_bf16', 'amx_bf16'} & set(told) else 'float32'


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
