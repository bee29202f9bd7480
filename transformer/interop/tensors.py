"""A folder's tensors to parameters and back, by the table of a family."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from transformer import axes, count
from transformer.config import Config
from transformer.errors import UserError
from transformer.interop import layout, shards
from transformer.interop.family import Family


def read_params(path: Path, family: Family, config: Config) -> dict:
  """The parameters of a resolved config, a nested tree of float32 arrays, from a folder's files.

  Raises UserError naming the tensor that is missing, not known, twice there or of another shape.
  """
  tensors = _named(path, family, shards.read(path))
  shapes, found = count.shapes(config), {}
  entries = list(_present(family.tensors, config))
  for entry in entries:
    for _, name in _each(entry, shapes):
      if name not in tensors:
        raise UserError(f'{path}: tensor {name} is missing')
  for entry in entries:
    sizes = _sizes(entry, shapes)
    found |= {parameter: np.empty(shapes[parameter], np.float32) for parameter in entry.paths}
    for index, name in _each(entry, shapes):
      y = _load(path, name, tensors.pop(name), layout.joined_shape(entry.parts, sizes))
      for parameter, x in layout.split(y, entry.parts, sizes):
        found[parameter][index] = x
  _check_rest(path, family, config, tensors, found)
  return _nested({name: found[name] for name in shapes})


def write_params(
  family: Family, config: Config, params: dict, wider: Config
) -> dict[str, np.ndarray]:
  """Name -> float32 tensor of a config's parameters, as the family's files have them.

  wider: the same config with biases besides, which are zeros.
  """
  flat = {path: np.asarray(x, np.float32) for path, x in _leaves(params)}
  wrong = {(path, x.shape) for path, x in flat.items()} ^ set(count.shapes(config).items())
  if wrong:
    raise ValueError(f'params do not fit the config at {min(wrong)[0]}')
  shapes, found = count.shapes(wider), {}
  flat = {path: np.zeros(shape, np.float32) for path, shape in shapes.items()} | flat
  copies = tuple(copy for copy in family.copies if copy.written)
  for entry in _present((*family.tensors, *copies), wider):
    for index, name in _each(entry, shapes):
      arrays = [flat[path][index] for path in entry.paths]
      found[name] = layout.join(arrays, entry.parts)
  return found


def _named(path: Path, family: Family, tensors: dict[str, shards.Tensor]) -> dict:
  """Tensors under the names of today."""
  found = {}
  for name, tensor in tensors.items():
    new = name
    for pattern, replacement in family.old_names:
      new = re.sub(rf'^{pattern}', replacement, new)
    if new in found:
      raise UserError(f'{path}: tensor {new} is there twice, also as {name}')
    found[new] = tensor
  return found


def _load(path: Path, name: str, tensor: shards.Tensor, shape: tuple[int, ...]) -> np.ndarray:
  if tensor.shape != shape:
    raise UserError(
      f'{path}: tensor {name} has shape {tensor.shape}; by its config.json it should have {shape}'
    )
  return tensor.load()


def _check_rest(
  path: Path, family: Family, config: Config, tensors: dict, found: dict[str, np.ndarray]
) -> None:
  """Raises UserError unless what no parameter is made of is known to say nothing new."""
  shapes = {name: x.shape for name, x in found.items()}
  copies = {entry.name: entry for entry in _present(family.copies, config)}
  for name, tensor in tensors.items():
    if name in copies:
      entry = copies[name]
      y = _load(path, name, tensor, layout.joined_shape(entry.parts, _sizes(entry, shapes)))
      if not entry.idle and (y != layout.join([found[p] for p in entry.paths], entry.parts)).any():
        raise UserError(f'{path}: tensor {name} should equal the one it is tied to')
    elif name in family.sinusoids:
      from transformer.positions import sinusoid

      y = _load(path, name, tensor, (tensor.shape[0], config.model.d_model))
      if np.abs(y - sinusoid(np.arange(len(y))[None], y.shape[1])[0]).max() > 0.01:
        raise UserError(f'{path}: tensor {name} holds other positions than sines, then cosines')
    elif not any(re.fullmatch(pattern, name) for pattern in family.unused):
      raise UserError(f'{path}: tensor {name} is not one of {family.architecture}')


def _present(entries: tuple[layout.Tensor, ...], config: Config) -> Iterator[layout.Tensor]:
  """The entries of a table that a config has."""
  shapes = count.shapes(config)
  for entry in entries:
    told = all(config.get(setting) == value for setting, value in entry.only)
    if told and all(path in shapes for path in entry.paths):
      yield entry


def _each(entry: layout.Tensor, shapes: dict) -> Iterator[tuple[tuple[int, ...], str]]:
  """(index, name) of each tensor of an entry. index: of its layer and expert, if it has them."""
  first = entry.paths[0]
  for index in np.ndindex(shapes[first][: len(axes.stack_of(first))]):
    yield index, entry.name.format(*index)


def _sizes(entry: layout.Tensor, shapes: dict) -> dict[str, dict[str, int]]:
  """path -> size of each of its letters."""
  return {p: dict(zip(axes.letters(p), shapes[p], strict=True)) for p in entry.paths}


def _leaves(tree: dict, prefix: str = '') -> Iterator[tuple[str, Any]]:
  for name, value in tree.items():
    if isinstance(value, dict):
      yield from _leaves(value, f'{prefix}{name}/')
    else:
      yield f'{prefix}{name}', value


def _nested(flat: dict[str, np.ndarray]) -> dict:
  tree: dict = {}
  for path, leaf in flat.items():
    *owners, name = path.split('/')
    node = tree
    for owner in owners:
      node = node.setdefault(owner, {})
    node[name] = leaf
  return tree
