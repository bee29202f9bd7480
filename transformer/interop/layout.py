"""How a tensor of a file lies in the model's parameters: axes in another order, merged, or joined.

A layout is written in the letters of axes.py: the query of a head, DNH here, is '(NH)D' in a weight
of torch's Linear: N and H merged into its rows. '1' is an axis of one entry.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from transformer import axes

Only = tuple[tuple[str, Any], ...]  # settings, with the values at which something is there


@dataclass(frozen=True)
class Tensor:
  """A tensor of a file, and the parameters it holds.

  name: with '{}' for the number of the layer, and another for that of the expert. parts: (path,
  layout) of each parameter; several are joined along the last axis. only: where it is there. Of a
  copy, written: transformers misses it if it is not there; idle: it does not enter the logits, so
  its values may be others.
  """

  name: str
  parts: tuple[tuple[str, str], ...]
  only: Only = ()
  written: bool = False
  idle: bool = False

  @property
  def paths(self) -> list[str]:
    """The parameters it holds."""
    return [path for path, _ in self.parts]


def to_file(x: np.ndarray, letters: str, layout: str) -> np.ndarray:
  """A parameter of these letters as it lies in a file."""
  order = [letters.index(c) for c in re.sub(r'[()1]', '', layout)]
  size = dict(zip(letters, x.shape, strict=True))
  return x.transpose(order).reshape(shape(layout, size))


def from_file(y: np.ndarray, letters: str, layout: str, size: dict[str, int]) -> np.ndarray:
  """Inverse of `to_file`. size: of each letter."""
  flat = re.sub(r'[()1]', '', layout)
  return y.reshape([size[c] for c in flat]).transpose([flat.index(c) for c in letters])


def shape(layout: str, size: dict[str, int]) -> tuple[int, ...]:
  """The shape of a tensor of this layout."""
  merged = re.findall(r'\((\w+)\)|(\w)', layout)
  return tuple(prod((size | {'1': 1})[c] for c in group or single) for group, single in merged)


def split(
  y: np.ndarray, parts: Sequence[tuple[str, str]], sizes: dict[str, dict[str, int]]
) -> Iterator[tuple[str, np.ndarray]]:
  """(path, parameter of one layer or expert) of each part. sizes: of the letters, by path."""
  widths = [shape(layout, sizes[path])[-1] for path, layout in parts]
  pieces = np.split(y, np.cumsum(widths)[:-1], axis=-1)
  for (path, layout), piece in zip(parts, pieces, strict=True):
    yield path, from_file(piece, _letters(path), layout, sizes[path])


def join(arrays: Sequence[np.ndarray], parts: Sequence[tuple[str, str]]) -> np.ndarray:
  """Inverse of `split`: the tensor of a file, of each part's parameter of one layer or expert."""
  pieces = [
    to_file(x, _letters(path), layout) for x, (path, layout) in zip(arrays, parts, strict=True)
  ]
  return np.ascontiguousarray(np.concatenate(pieces, axis=-1))


def joined_shape(
  parts: Sequence[tuple[str, str]], sizes: dict[str, dict[str, int]]
) -> tuple[int, ...]:
  """The shape of a tensor of these parts."""
  shapes = [shape(layout, sizes[path]) for path, layout in parts]
  return *shapes[0][:-1], sum(s[-1] for s in shapes)


def _letters(path: str) -> str:
  """Those of one layer's parameter, of one expert's."""
  return axes.letters(path).removeprefix(axes.stack_of(path))
