"""Where cells run: the name that --on takes -> the module that knows how.

An engine of a cluster has these functions (launch/slurm.py, launch/kubernetes.py):
  plan(job) -> str             the exact scripts or manifests, for --dry_run
  submit(job) -> dict          what was submitted, as plain JSON values
  states(record) -> dict       folder name of a cell -> 'waiting', 'running' or 'gone'
  cancel(record) -> None       what was submitted is to stop; it saves itself first
"""

from __future__ import annotations

import importlib
from types import ModuleType

from transformer.errors import UserError, nearest

LOCAL = 'local'
_MODULES = {'slurm': 'launch.slurm', 'kubernetes': 'launch.kubernetes'}


def engine(name: str) -> ModuleType:
  """The module of a cluster's engine. Raises UserError for a name that is none."""
  if name not in _MODULES:
    raise UserError(f'--on={name}: no such engine{nearest(name, [LOCAL, *_MODULES])}')
  return importlib.import_module(_MODULES[name])
