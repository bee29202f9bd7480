"""A folder is made once, by whichever process comes first, and appears whole or not at all."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from transformer.errors import UserError


def root(setting: str) -> Path:
  """Where prepared data lives: --data.cache, else $ISOFFN_CACHE, else ~/.cache/isoffn."""
  return Path(setting or os.environ.get('ISOFFN_CACHE') or '~/.cache/isoffn').expanduser()


def once(folder: Path, build: Callable[[Path], None]) -> Path:
  """Returns `folder`; if it is not there, `build` fills a folder beside it, which is renamed.

  A killed build leaves only a `.partial` folder, which the next one removes.
  Raises UserError naming --data.cache if nothing can be written there.
  """
  partial = folder.with_name(f'{folder.name}.partial')
  try:
    if folder.is_dir():
      return folder
    with locked(folder):
      if not folder.is_dir():
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        try:
          build(partial)
          partial.rename(folder)
        finally:
          shutil.rmtree(partial, ignore_errors=True)
  except OSError as e:
    raise UserError(
      f'--data.cache: {folder.parent} cannot be written ({e.strerror or e}); '
      'name another folder, or set $ISOFFN_CACHE'
    ) from e
  return folder


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
  """Holds the lock beside `path` against all other processes; freed when the holder dies."""
  path.parent.mkdir(parents=True, exist_ok=True)
  with open(path.with_name(f'{path.name}.lock'), 'w') as lock:
    fcntl.flock(lock, fcntl.LOCK_EX)
    yield
