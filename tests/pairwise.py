"""A few models in which every two settings of the model meet at every two of their values."""

from __future__ import annotations

import functools
import itertools

from tests import battery
from transformer import spec
from transformer.config import Config, idle
from transformer.errors import UserError

BASE = {  # valid together with any one value of FACTORS
  'model.num_layers': 3,
  'model.num_heads': 4,
  'model.positions': 'none',
  'ffn.d_ff': 0,
  'ffn.ratio': 1.5,
  'data.source_len': 6,  # where there is a source
}
SHORT = {
  'relative': 'relative(buckets=5, max_distance=6)'
}  # so that 8 tokens reach its last bucket
FACTORS: dict[str, tuple] = {
  'model.architecture': ('decoder', 'encoder', 'encoder_decoder'),
  'model.num_encoder_layers': (0, 2),
  'model.remat': ('none', 'full', 'dots'),
  'model.num_heads': (4, 0),
  'model.num_kv_heads': (0, 2, 1),
  'model.head_dim': (0, 6),
  'model.v_head_dim': (0, 3),
  'model.attention_window': (0, 3),
  'model.positions': tuple(SHORT.get(n, n) for n in spec.variants('model.positions')),
  'model.norm': (*spec.variants('model.norm'), 'layernorm(bias=False)'),
  'model.norm_placement': ('pre', 'post', 'sandwich'),
  'model.parallel_branches': (False, True),
  'model.qk_norm': (False, True),
  'model.bias': (False, True),
  'model.qkv_bias': (False, True),
  'model.logits_bias': (False, True),
  'model.tied': (True, False),
  'model.embedding_scale': ('sqrt_d_model', 'one'),
  'model.embedding_norm': (False, True),
  'model.token_types': (0, 2),
  'model.head': ('linear', 'transform'),
  'model.shared_source': (True, False),
  'model.out_init': (1.0, 0.5),
  'model.logit_cap': (0.0, 2.0),
  'model.attention_cap': (0.0, 1.0),
  'model.dropout': (0.0, 0.1),
  'model.stochastic_depth': (0.0, 0.2),
  'model.unroll': (False, True),
  'ffn.ratio': (1.5, 0.0),
  'ffn.ratios': ('', '1,1,2', '2,0,1'),
  'ffn.activation': ('gelu', 'swiglu', 'prelu', 'product(leaky_relu(0.1), prelu)'),
  'ffn.encoder_ratios': ('', 'ramp(0,2)', '2'),
  'ffn.encoder_activation': ('', 'geglu'),
  'ffn.multiple_of': (1, 5),
  'ffn.hidden_layers': (1, 2),
  'ffn.shared': (False, True),
  'ffn.bias': (False, True),
  'ffn.dropout': (0.0, 0.1),
  'ffn.down_init': (1.0, 2.0),
}
Pair = frozenset  # of two (setting, value)


def config_of(row: dict) -> Config:
  """The resolved config of a row; raises UserError where it cannot run."""
  return battery.tiny(**BASE | row)


@functools.cache
def rows() -> tuple[list[dict], list[Pair]]:
  """(rows, pairs that no model can have). Each pair that can be had is in some row.

  Greedy: a row begins with a pair not met so far, and each further setting takes the value that
  meets most new pairs among those that can run. A value that acts on nothing in a row does not run.
  """
  open_pairs = {
    Pair([(a, x), (b, y)]): None  # a dictionary, for its order
    for a, b in itertools.combinations(FACTORS, 2)
    for x, y in itertools.product(FACTORS[a], FACTORS[b])
  }
  found, never = [], []
  while open_pairs:
    first = next(iter(open_pairs))
    row = _begun(dict(sorted(first)))
    if not row:
      never.append(first)
      del open_pairs[first]
      continue
    for name in sorted(FACTORS, key=lambda name: -len(FACTORS[name])):
      if name not in row:
        row |= _best(row, name, open_pairs)
    for pair in itertools.combinations(row.items(), 2):
      open_pairs.pop(Pair(pair), None)
    found.append(row)
  return found, never


def _begun(pair: dict) -> dict:
  """A pair with what it needs besides: an architecture, an encoder's own widths; empty: no use."""
  needs = ('model.architecture', 'ffn.encoder_ratios')
  rows = (dict(zip(needs, own, strict=True)) for own in itertools.product(*map(FACTORS.get, needs)))
  return next((row | pair for row in rows if _runs(row | pair)), {})


def _best(row: dict, name: str, open_pairs: dict) -> dict:
  """The value of one more setting."""

  def new(value: object) -> int:
    return sum(Pair([(name, value), other]) in open_pairs for other in row.items())

  for value in sorted(FACTORS[name], key=new, reverse=True):
    if _runs(row | {name: value}):
      return {name: value}
  raise AssertionError(f'no value of {name} runs with {row}')


def _runs(row: dict) -> bool:
  try:
    config_of(row)
  except UserError:
    return False
  unheard = set(idle(Config().replace(**battery.TINY | BASE | row)))
  if row.get('ffn.ratios'):
    unheard.add('ffn.ratio')
  return all(value == FACTORS[name][0] for name, value in row.items() if name in unheard)
