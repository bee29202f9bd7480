"""safetensors files of a checkpoint: all of its tensors by name, whole or a UserError.

A folder holds model.safetensors, or shards that model.safetensors.index.json lists.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from transformer.errors import UserError

FILE, INDEX = 'model.safetensors', 'model.safetensors.index.json'
_FLOATS = ('F32', 'F16', 'BF16')


def read(directory: Path) -> dict[str, Tensor]:
  """Name -> tensor of a checkpoint, of which only the headers have been read.

  Raises UserError naming the file that is missing, cut short, or says what is not so.
  """
  path = directory / FILE
  if path.exists():
    return _open(path)
  path = directory / INDEX
  if not path.exists():
    others = sorted([*directory.glob('*.bin'), *directory.glob('*.pt'), *directory.glob('*.ckpt')])
    what = f'only {others[0].name}' if others else 'none'
    raise UserError(
      f'{directory}: no {FILE} in it, {what}; write one with transformers: '
      'model.save_pretrained(folder, safe_serialization=True)'
    )
  return _open_shards(path)


def read_json(path: Path) -> dict:
  """The object in a JSON file. Raises UserError naming the file if there is none."""
  try:
    tree = json.loads(path.read_text(encoding='utf-8'))
  except OSError as e:
    raise UserError(f'{path}: cannot be read ({e.strerror}); name a folder that has it') from None
  except (ValueError, RecursionError):
    tree = None
  if not isinstance(tree, dict):
    raise UserError(f'{path}: should hold a JSON object')
  return tree


class Tensor:
  """One tensor of an open file."""

  def __init__(self, path: Path, file: Any, name: str):
    self._path, self._file, self._name = path, file, name
    entry = file.get_slice(name)
    self.shape, self._dtype = tuple(entry.get_shape()), entry.get_dtype()

  def load(self) -> np.ndarray:
    """Its values as float32. Raises UserError naming it if they are of another kind."""
    if self._dtype not in _FLOATS:
      raise UserError(
        f'{self._path}: tensor {self._name} is of type {self._dtype}, not one of '
        f'{", ".join(_FLOATS)}'
      )
    return np.ascontiguousarray(self._file.get_tensor(self._name), np.float32)


def _open_shards(index: Path) -> dict[str, Tensor]:
  shard_of = read_json(index).get('weight_map')
  if not isinstance(shard_of, dict) or not shard_of:
    raise UserError(f'{index}: has no weight_map of tensor names to files')
  for shard in shard_of.values():
    if not isinstance(shard, str) or Path(shard).name != shard:
      raise UserError(f'{index}: names the file {shard!r}; it should lie in the same folder')
  found: dict[str, Tensor] = {}
  for shard in dict.fromkeys(shard_of.values()):
    path = index.with_name(shard)
    for name, tensor in _open(path).items():
      if shard_of.get(name) != shard:
        raise UserError(f'{path}: holds tensor {name}, which {INDEX} does not place there')
      found[name] = tensor
  missing = [name for name in shard_of if name not in found]
  if missing:
    raise UserError(
      f'{index}: places tensor {missing[0]} in {shard_of[missing[0]]}, which lacks it'
    )
  return found


def _open(path: Path) -> dict[str, Tensor]:
  from safetensors import SafetensorError, safe_open

  try:
    file = safe_open(path, 'numpy')
    _refuse_twins(path)
    return {name: Tensor(path, file, name) for name in file.keys()}  # noqa: SIM118
  except SafetensorError as e:
    reason = str(e).removeprefix('Error while deserializing header: ').partition('\n')[0][:120]
    raise UserError(f'{path}: is no whole safetensors file ({reason}); fetch it again') from None
  except OSError as e:
    raise UserError(f'{path}: cannot be read ({e.strerror or e}); fetch it again') from None


def _refuse_twins(path: Path) -> None:
  """The library keeps the last of two entries of one name."""

  def check(pairs: Iterable[tuple[str, Any]]) -> dict:
    names = [name for name, _ in pairs]
    twins = (
      [name for name in names if names.count(name) > 1] if len(set(names)) < len(names) else []
    )
    if twins:
      raise UserError(f'{path}: lists {twins[0]} twice in its header; fetch it again')
    return dict(pairs)

  with open(path, 'rb') as f:
    [size] = struct.unpack('<Q', f.read(8))
    json.loads(f.read(size), object_pairs_hook=check)


def write(path: Path, tensors: dict[str, np.ndarray]) -> None:
  """One file of float32 tensors, as transformers reads it."""
  from safetensors.numpy import save_file

  save_file(tensors, path, metadata={'format': 'pt'})
