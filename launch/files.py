"""JSON files that are either whole or absent, and a lock per folder."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from transformer.errors import UserError

_NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)


def write_synced(path: Path, value: Any, sync: bool = True) -> None:
  """Writes `value` as JSON straight to `path`. Raises OSError naming `path`.

  sync: wait until the disk has it; without, a crash of the machine may lose it.
  """
  try:
    with open(path, 'w', encoding='utf-8') as f:
      json.dump(value, f, indent=1)
      f.write('\n')
      f.flush()
      if sync:
        os.fsync(f.fileno())
  except OSError as e:
    e.filename = str(path)  # a full disk is reported by write(), which knows no name
    raise


def write_json(path: str | Path, value: Any, sync: bool = True) -> None:
  """Replaces `path` by `value` as JSON, atomically. Raises OSError naming `path`."""
  path = Path(path)
  temporary = path.with_name(f'.{path.name}.{uuid.uuid4().hex[:12]}')  # pids of hosts may be equal
  try:
    write_synced(temporary, value, sync)
    os.replace(temporary, path)
  except OSError as e:
    with contextlib.suppress(OSError):
      temporary.unlink()
    e.filename = str(path)  # not the temporary one
    raise


def read_json(path: str | Path, strict: bool = True) -> dict | None:
  """The JSON object in `path`; None if there is no such file.

  strict: a file that holds no JSON object raises UserError naming it; otherwise it is as none.
  """
  try:
    text = Path(path).read_bytes()
  except FileNotFoundError:
    return None
  except OSError as e:
    if e.errno != errno.ESTALE:  # NFS: another host has replaced it just now
      raise
    text = Path(path).read_bytes()
  try:
    value = json.loads(text)
    if isinstance(value, dict):
      return value
  except ValueError:
    pass
  if strict:
    raise UserError(f'{path}: not a JSON object; delete the file to compute it again')
  return None


@contextlib.contextmanager
def locked(folder: str | Path) -> Iterator[None]:
  """Holds the folder's lock; waits for whoever holds it. The kernel frees it if the owner dies.

  Raises UserError on a file system that has no locks.
  """
  with open(Path(folder) / '.lock', 'a') as f:
    try:
      fcntl.flock(f, fcntl.LOCK_EX)
    except OSError as e:
      if e.errno not in _NO_LOCKS:
        raise
      raise UserError(
        f'{folder}: its file system has no locks ({e.strerror}); choose another --workdir'
      ) from None
    yield


def tail(path: str | Path, lines: int = 40, start: int = 0) -> str:
  """The last lines of a text file, of what was written after byte `start`; '' if unreadable."""
  try:
    with open(path, 'rb') as f:
      size = f.seek(0, os.SEEK_END)
      f.seek(max(start, size - 200 * lines))
      text = f.read().decode('utf-8', errors='replace')
  except OSError:
    return ''
  return '\n'.join(text.splitlines()[-lines:])
