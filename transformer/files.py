"""Files and folders that appear whole or not at all."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from transformer.errors import UserError


@contextlib.contextmanager
def replacing(path: Path, mode: str = 'w') -> Iterator[IO[Any]]:
  """Opens a file beside `path` that takes its place, on disk, once the block has ended well."""
  temporary = path.with_name(f'{path.name}.tmp')
  with open(temporary, mode, encoding=None if 'b' in mode else 'utf-8') as f:
    yield f
    f.flush()
    os.fsync(f.fileno())
  os.replace(temporary, path)


@contextlib.contextmanager
def appearing(folder: Path, flag: str = '') -> Iterator[Path]:
  """A folder beside `folder` that takes its place, on disk, once the block has ended well.

  flag: that named it. Raises UserError, before the block, if there is something already, or
  nothing can be.
  """
  refuse_existing(folder, flag)
  where, folder = _named(folder, flag), folder.absolute()
  temporary = folder.with_name(f'.{folder.name}.{os.getpid()}.tmp')
  try:
    temporary.mkdir(parents=True)
  except OSError as e:
    raise UserError(f'{where}: cannot be written ({e.strerror})') from None
  try:
    yield temporary
    for path in temporary.rglob('*'):
      if path.is_file():
        with open(path, 'rb') as f:
          os.fsync(f.fileno())
    os.replace(temporary, folder)
  finally:
    shutil.rmtree(temporary, ignore_errors=True)


def refuse_existing(folder: Path, flag: str = '') -> None:
  """Raises UserError if `folder`, which a flag named, is anything but new or empty."""
  if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
    where = _named(folder, flag)
    raise UserError(f'{where}: is there already; name a folder that is not, or is empty')


def _named(folder: Path, flag: str) -> str:
  return f'--{flag}={folder}' if flag else str(folder)
