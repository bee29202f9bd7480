"""Sparse upcycling (Komatsuzaki et al. 2023): a dense model as experts that compute the same."""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from transformer import count, spec
from transformer.config import Config, resolve
from transformer.config.field import setting
from transformer.errors import UserError, nearest
from transformer.params import initialize


@dataclass(frozen=True)
class Upcycling:
  """What --upcycle asks for. layers: as --moe.layers has it."""

  experts: int = setting(0, 'copies of each FFN', low=1)
  k: int = setting(2, 'experts a token', low=1)
  layers: str = setting('all', 'layers with experts')


def upcycle(config: Config, params: dict, text: str) -> tuple[Config, dict]:
  """A resolved dense config and its parameters as a mixture of experts.

  text: 'experts=8', or 'experts=8, k=2, layers=every(2)'. Each expert is a copy of the FFN in whose
  place it stands, and a token's k weights add up to 1 (a softmax over the chosen): at first the
  logits are those of the dense model, to rounding. Routers are those that a run with the config's
  seed begins with. Raises UserError naming --upcycle for what there is no such mixture of.
  """
  wide = _widened(config, text)
  groups = {group.name: group for group in count.groups(config)}
  dense = {}  # parameters; those of a layer by (stack, number, path in it)
  for path, x in flatten_dict(params, sep='/').items():
    owner, _, rest = path.partition('/')
    if group := groups.get(owner):
      dense |= {(group.stack, group.first + i, rest): x[i] for i in range(group.size)}
    else:
      dense[path] = x
  found = _routers(wide)
  groups = {group.name: group for group in count.groups(wide)}
  for path in count.shapes(wide):
    owner, _, rest = path.partition('/')
    if path in found:
      continue
    if group := groups.get(owner):
      source = rest.replace('ffn/experts/', 'ffn/')
      layers = [dense[group.stack, group.first + i, source] for i in range(group.size)]
      found[path] = np.stack(layers)
      if source != rest:
        found[path] = np.repeat(found[path][:, None], group.experts, axis=1)
    else:
      found[path] = dense[path]
  return wide, unflatten_dict({path: found[path] for path in count.shapes(wide)}, sep='/')


def _widened(config: Config, text: str) -> Config:
  asked, where = _parse(text), f'--upcycle={text}'
  if config.moe.experts:
    raise UserError(f'{where}: the source has {config.moe.experts} experts; name a dense one')
  if asked.k == 1:
    raise UserError(
      f'{where}: k=1 either has the weight 1 always, and its router never learns, or another, and '
      'the result is not the dense model; take k=2 or more'
    )
  changes = {
    'moe.experts': asked.experts,
    'moe.router': f'topk(k={asked.k})',
    'moe.layers': asked.layers,
    'data.source': 'synthetic',  # whose files are not asked for
  }
  try:
    moe = resolve(config.replace(**changes)).moe
  except UserError as e:
    raise UserError(f'{where}: {e}') from None
  return dataclasses.replace(config, moe=moe)


def _parse(text: str) -> Upcycling:
  where, given = f'--upcycle={text}', {}
  known = {f.name: f for f in dataclasses.fields(Upcycling)}
  for part in spec.split(text):
    name, _, value = (piece.strip() for piece in part.partition('='))
    if name not in known:
      raise UserError(f'{where}: no argument {name!r}{nearest(name, known)}')
    if name in given:
      raise UserError(f'{where}: {name} is given twice')
    number = known[name].type == 'int' and re.fullmatch(r'-?\d+', value)
    value = int(value) if number else value.strip('\'"')
    given[name] = spec.check_value(f'{where}: {name}', known[name], value)
  if 'experts' not in given:
    raise UserError(f"{where}: of how many experts? Say it, as in 'experts=8'")
  return Upcycling(**given)


def _routers(config: Config) -> dict[str, np.ndarray]:
  """Path -> router, of those that a run begins with."""
  paths = [path for path in count.shapes(config) if path.endswith('ffn/router')]

  @jax.jit
  def draw() -> dict[str, jax.Array]:
    init_key, _ = jax.random.split(jax.random.key(config.seed))  # as state.create does
    weights = flatten_dict(initialize(config, init_key), sep='/')
    return {path: weights[path] for path in paths}

  return {path: np.asarray(x) for path, x in draw().items()}
