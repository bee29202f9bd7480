"""Files that appear whole or not at all."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any


@contextlib.contextmanager
def replacing(path: Path, mode: str = 'w') -> Iterator[IO[Any]]:
  """Opens a file beside `path` that takes its place, on disk, once the block has ended well."""
  temporary = path.with_name(f'{path.name}.tmp')
  with open(temporary, mode, encoding=None if 'b' in mode else 'utf-8') as f:
    yield f
    f.flush()
    os.fsync(f.fileno())
  os.replace(temporary, path)
