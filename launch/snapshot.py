"""The code as it is when cells are handed to a cluster: those that wait see no later edit.

  <workdir>/code/<digest>/   transformer/  launch/  experiments/  plugins/  COMMIT

Tasks run with this folder first on PYTHONPATH, so that the digest of code in their results is that
of the snapshot.
"""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Iterator
from pathlib import Path

from transformer import plugin
from transformer.files import appearing

_PACKAGES = ('transformer', 'launch', 'experiments')


def where(workdir: Path) -> Path:
  """The folder of a snapshot taken now; of the same code it is the same."""
  total = hashlib.sha256()
  for name, path in _files():
    total.update(name.encode() + b'\0' + path.read_bytes() + b'\0')
  return workdir / 'code' / total.hexdigest()[:16]


def take(workdir: Path) -> Path:
  """Copies packages and loaded plugins to their folder unless they are there; returns it."""
  from transformer.provenance import git_commit

  target = where(workdir)
  if not target.exists():
    with appearing(target) as folder:
      for name, path in _files():
        copy = folder / name
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(path.read_bytes())
      (folder / 'COMMIT').write_text(git_commit())
  return target


def plugins(snapshot: Path) -> dict[str, str]:
  """Loaded plugin -> its copy in a snapshot."""
  return {str(path): str(snapshot / _copy(i, path)) for i, path in enumerate(plugin.loaded())}


def _files() -> Iterator[tuple[str, Path]]:
  """Name in the snapshot -> file, in a fixed order."""
  for package in _PACKAGES:
    root = Path(importlib.util.find_spec(package).origin).parent
    for path in sorted(root.rglob('*')):
      if path.is_file() and '__pycache__' not in path.parts:
        yield f'{package}/{path.relative_to(root)}', path
  for i, path in enumerate(plugin.loaded()):
    yield _copy(i, path), path


def _copy(i: int, path: Path) -> str:
  return f'plugins/{i}/{path.name}'
