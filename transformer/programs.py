"""Compiled programs are kept on disk, so that the same run starts in seconds the second time.

This is JAX's own persistent cache, in a folder of ours. $JAX_COMPILATION_CACHE_DIR names another,
and JAX_ENABLE_COMPILATION_CACHE=0 keeps nothing.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import socket
import time
from pathlib import Path
from typing import Any

import jax

from transformer import provenance
from transformer.data import cache

_WORTH = 0.2  # seconds of compilation from which on a program is kept
_DAYS = 30  # for which it is kept unused


def keep(setting: str) -> Path | None:
  """Has this process find compiled programs, and leave new ones, beside the prepared data.

  setting: --data.cache. Returns the folder; None if programs go elsewhere, or nowhere. Called
  before the first program is compiled; later calls change nothing.
  """
  if jax.config.jax_compilation_cache_dir or not jax.config.jax_enable_compilation_cache:
    return None
  try:
    from jax._src.lru_cache import LRUCache  # what serves the folder; a later JAX may move it
  except ImportError:
    return None
  # Code for one processor may not run on another that shares the disk.
  folder = cache.root(setting) / 'programs' / _processor()
  try:
    folder.mkdir(parents=True, exist_ok=True)
    _drop_unused(folder)
  except OSError:  # a full or read-only disk: compile anew
    return None
  LRUCache.put, LRUCache.get = _put, _get
  jax.config.update('jax_compilation_cache_dir', str(folder))
  jax.config.update('jax_persistent_cache_min_compile_time_secs', _WORTH)
  return folder


def _put(self: Any, key: str, value: bytes) -> None:
  """Files appear whole: workers and hosts write the same one at once, and any may be killed."""
  path = Path(f'{self.path}/{key}-cache')
  temporary = path.with_name(f'{key[-16:]}.{socket.gethostname()}.{os.getpid()}.tmp')
  try:
    temporary.write_bytes(value)
    temporary.replace(path)
  finally:
    temporary.unlink(missing_ok=True)


def _get(self: Any, key: str) -> bytes | None:
  path = Path(f'{self.path}/{key}-cache')
  try:
    found = path.read_bytes()
  except FileNotFoundError:
    return None
  with contextlib.suppress(OSError):
    os.utime(path)  # in use
  return found


def _drop_unused(folder: Path) -> None:
  """Removes what has not been read for a month, and what was never finished."""
  oldest = time.time() - _DAYS * 86400
  for entry in os.scandir(folder):
    with contextlib.suppress(FileNotFoundError):  # another process was faster
      if entry.stat().st_mtime < oldest:
        os.unlink(entry.path)


def _processor() -> str:
  """Names the machine code that this processor runs."""
  with contextlib.suppress(OSError):
    lines = Path('/proc/cpuinfo').read_text().splitlines()
    flags = next((x for x in lines if x.startswith(('flags', 'Features'))), '')
    return hashlib.sha256(f'{provenance.cpu_model()} {flags}'.encode()).hexdigest()[:8]
  return hashlib.sha256(provenance.cpu_model().encode()).hexdigest()[:8]
