"""What the files of a checkpoint hold, written down once it is complete, and looked up before it is
read: a disk that lost or turned a bit is found out, and so is a file that was cut short."""

from __future__ import annotations

import concurrent.futures
import hashlib
import json
from pathlib import Path

from transformer.files import replacing

FILE = 'checksums.json'


def write(folder: Path) -> None:
  """Writes checksums.json into `folder`: SHA-256 and size of every other file below it."""
  found = _found(folder)
  with replacing(folder / FILE) as f:
    f.write(json.dumps(found, indent=0) + '\n')


def damage(folder: Path) -> str:
  """What of `folder` is not as it was written; empty if all is, or no checksums were kept."""
  try:
    told = json.loads((folder / FILE).read_text(encoding='utf-8'))
  except FileNotFoundError:
    return ''  # killed between the two; what orbax has committed is whole, if no disk failed
  except ValueError:
    return f'{FILE} is damaged'
  found = _found(folder)
  for name, known in told.items():
    if name not in found:
      return f'{name} is missing'
    if found[name] != known:
      return f'{name} is not what was written'
  return ''


def _found(folder: Path) -> dict[str, list]:
  """Name -> [SHA-256, size]."""
  names = sorted(str(path.relative_to(folder)) for path in folder.rglob('*') if path.is_file())
  names = [name for name in names if name not in (FILE, f'{FILE}.tmp')]

  def told(name: str) -> list:
    with open(folder / name, 'rb') as f:
      digest = hashlib.file_digest(f, 'sha256').hexdigest()
      return [digest, f.tell()]

  with concurrent.futures.ThreadPoolExecutor() as pool:  # hashing lets other threads run
    return dict(zip(names, pool.map(told, names), strict=True))
