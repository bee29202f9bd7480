"""The letter table: what each shape letter means, how it is laid over a mesh, which letters each
parameter has, and how each parameter is initialised and decayed.

Initialisation, weight decay, sharding, counts and checks all read the tables of this file.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from math import prod

from transformer.errors import UserError, nearest

MESH_AXES = {
  'data': 'batches',
  'fsdp': 'batches, and parameters along d_model',
  'tensor': 'heads, FFN hidden units and vocabulary',
  'expert': 'batches, and experts',
}


@dataclass(frozen=True)
class Letter:
  """A dimension: its meaning, and the mesh axes that may share it out."""

  meaning: str
  activation: tuple[str, ...] = ()
  parameter: tuple[str, ...] = ()


LETTERS = {
  'B': Letter('batch, sequences', activation=('data', 'fsdp', 'expert')),
  'T': Letter('query tokens'),
  'S': Letter('key tokens'),
  'D': Letter('d_model', parameter=('fsdp',)),
  'F': Letter('d_ff, FFN hidden units', ('tensor',), ('tensor',)),
  'M': Letter('d_ff again: the second hidden layer of a three-layer FFN'),
  'N': Letter('attention heads', ('tensor',), ('tensor',)),
  'K': Letter('key/value heads', ('tensor',), ('tensor',)),
  'H': Letter('head width'),
  'V': Letter('vocabulary', ('tensor',), ('tensor',)),
  'L': Letter('layers'),
  'E': Letter('experts', ('expert',), ('expert',)),
  'G': Letter('routing groups, or all of a device', activation=('data', 'fsdp', 'expert')),
  'C': Letter('capacity, places of an expert'),
  'R': Letter('choices, experts a token'),
  'U': Letter('buckets of relative distance'),
  'W': Letter('width of the values of a head'),
  'A': Letter('token types'),
  'O': Letter('d_model again: the dense layer before the logits of masked tokens'),
}


@dataclass(frozen=True)
class Param:
  """One kind of parameter.

  letters: its dimensions; under `layers` a leading L is added.
  fan_in: the letters a product contracts; the initial standard deviation is 1/√(their sizes).
  init: 'normal' (scaled by fan_in), or the constant every entry begins at.
  residual: writes into the residual stream; the initial deviation is divided by √(number of
    branches that do), 2 a layer, 3 with cross-attention (Radford et al. 2019, §2.3).
  decay: whether weight decay applies.
  """

  letters: str
  fan_in: str = ''
  init: str | float = 'normal'
  residual: bool = False
  decay: bool = True


PARAMS = {  # pattern of the last two names of a path -> rule; exactly one must match
  r'(source_|un)?embed/table': Param('VD', 'D'),
  r'unembed/bias': Param('V', init=0.0, decay=False),
  r'types/table': Param('AD', 'D'),
  r'positions/table': Param('TD', 'D'),
  r'source_positions/table': Param('SD', 'D'),
  r'(source_)?positions/bias': Param('UN', init=0.0, decay=False),
  r'(cross_)?attention/query': Param('DNH', 'D'),
  r'(cross_)?attention/key': Param('DKH', 'D'),
  r'(cross_)?attention/value': Param('DKW', 'D'),
  r'(cross_)?attention/out': Param('NWD', 'NW', residual=True),
  r'(cross_)?attention/query_bias': Param('NH', init=0.0, decay=False),
  r'(cross_)?attention/key_bias': Param('KH', init=0.0, decay=False),
  r'(cross_)?attention/value_bias': Param('KW', init=0.0, decay=False),
  r'(cross_)?attention/out_bias': Param('D', init=0.0, decay=False),
  r'(query|key)_norm/scale': Param('H', init=1.0, decay=False),
  r'(ffn|shared)/(up|gate)': Param('DF', 'D'),
  r'(ffn|shared)/middle_(up|gate)': Param('FM', 'F'),
  r'(ffn|shared)/down': Param('FD', 'F', residual=True),
  r'(ffn|shared)/(middle_)?(up|gate)_bias': Param('F', init=0.0, decay=False),
  r'(ffn|shared)/down_bias': Param('D', init=0.0, decay=False),
  r'experts/(up|gate)': Param('EDF', 'D'),
  r'experts/middle_(up|gate)': Param('EFM', 'F'),
  r'experts/down': Param('EFD', 'F', residual=True),
  r'experts/(middle_)?(up|gate)_bias': Param('EF', init=0.0, decay=False),
  r'experts/down_bias': Param('ED', init=0.0, decay=False),
  r'ffn/router': Param('DE', 'D'),
  r'ffn/router_bias': Param('E', init=0.0, decay=False),
  r'ffn/router_table': Param('V', init=0.0, decay=False),
  r'ffn/router_slots': Param('DEC', 'D'),
  r'head/transform': Param('DO', 'D'),
  r'head/transform_bias': Param('D', init=0.0, decay=False),
  r'(?!query|key)\w*norm/scale': Param('D', init=1.0, decay=False),
  r'(?!query|key)\w*norm/bias': Param('D', init=0.0, decay=False),
}  # and a rule for each parameter that an activation declares (spec.declare)


def param(path: str) -> Param:
  """The one rule for a parameter path such as 'layers/ffn/up'.

  Raises KeyError if no rule or more than one matches: a parameter must never be decayed,
  initialised or sharded by accident.
  """
  tail = '/'.join(path.split('/')[-2:])
  found = [rule for pattern, rule in PARAMS.items() if re.fullmatch(pattern, tail)]
  if len(found) != 1:
    raise KeyError(f'{len(found)} rules in axes.PARAMS match {path!r}; there must be one')
  return found[0]


def stacked(path: str) -> bool:
  """Whether a parameter is a layer's, and so has a leading axis of layers."""
  return path.startswith(('layers', 'encoder_layers'))


def stack_of(path: str) -> str:
  """The letters of the leading axes along which a parameter is many of its kind: L, LE or none."""
  return letters(path)[: stacked(path) + ('/experts/' in path)]


def letters(path: str) -> str:
  """The letters of a parameter's dimensions, the layer axis included."""
  return ('L' if stacked(path) else '') + param(path).letters


def partition(
  dims: str, shape: tuple[int, ...], mesh: dict[str, int], parameter: bool
) -> tuple[tuple[str, ...] | None, ...]:
  """Which mesh axes share out each dimension of an array with letters `dims`.

  Each axis serves one dimension at most; an axis whose size does not divide what is left of a
  dimension is not used for it.
  """
  used: set[str] = set()
  out = []
  for letter, size in zip(dims, shape, strict=True):
    rule = LETTERS[letter]
    taken: list[str] = []
    for axis in rule.parameter if parameter else rule.activation:
      parts = prod(mesh[a] for a in taken) * mesh.get(axis, 1)
      if axis in mesh and axis not in used and size % parts == 0:
        taken.append(axis)
    used.update(taken)
    out.append(tuple(taken) or None)
  return tuple(out)


def parse_mesh(text: str) -> dict[str, int]:
  """'data:4,fsdp:2' -> {'data': 4, 'fsdp': 2}; empty -> {}."""
  mesh = {}
  for part in filter(None, text.replace(' ', '').split(',')):
    name, _, size = part.partition(':')
    if name not in MESH_AXES:
      raise UserError(f'--parallel.mesh={text}: no axis {name!r}{nearest(name, MESH_AXES)}')
    if name in mesh:
      raise UserError(f'--parallel.mesh={text}: axis {name} is given twice')
    if not size.isdecimal() or int(size) < 1:
      raise UserError(f'--parallel.mesh={text}: {part!r} should be axis:size, as in data:4')
    mesh[name] = int(size)
  return mesh
