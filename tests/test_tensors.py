"""Tensors by name: their sizes are those the model observes, their products those of its jaxpr."""

from __future__ import annotations

from collections import Counter
from math import prod
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import Literal

from tests import battery
from transformer import model, objective, params, step, tensors
from transformer.config import Config
from transformer.layers import order_name

ODD = {  # no two sizes alike, so that no product of them is taken for another
  'model.d_model': 20,
  'model.num_heads': 2,
  'model.head_dim': 6,
  'model.vocab_size': 37,
  'ffn.d_ff': 28,
  'data.seq_len': 7,
  'data.batch_size': 3,
}
SEQ2SEQ = {'model.architecture': 'encoder_decoder', 'data.source_len': 11}
SHAPES = {
  'decoder': {},
  'decoder, post': {'model.norm_placement': 'post', 'model.norm': 'layernorm'},
  'decoder, sandwich, parallel': {
    'model.norm_placement': 'sandwich',
    'model.parallel_branches': True,
  },
  'no norm, biases, alibi': {
    'model.norm': 'none',
    'model.bias': True,
    'ffn.bias': True,
    'model.positions': 'alibi',
  },
  'gated, d_v, grouped': {
    'ffn.activation': 'swiglu',
    'model.v_head_dim': 10,
    'model.num_kv_heads': 1,
    'model.positions': 'learned',
    'model.tied': False,
  },
  'three layers of FFN': {'ffn.hidden_layers': 2, 'ffn.activation': 'geglu'},
  'pattern': {'model.num_layers': 4, 'ffn.ratios': '1,1,2,0'},
  'no attention': {'model.num_heads': 0, 'model.positions': 'learned'},
  'micro-batches': {'data.batch_size': 6, 'train.accumulate': 2},
  'encoder': {
    'model.architecture': 'encoder',
    'model.token_types': 2,
  },
  'both': SEQ2SEQ | {'model.num_encoder_layers': 3, 'model.v_head_dim': 4},
  'both, post': SEQ2SEQ | {'model.norm_placement': 'post', 'model.shared_source': False},
  'both, other widths': SEQ2SEQ
  | {'ffn.encoder_ratios': '2,3', 'ffn.encoder_activation': 'swiglu', 'model.norm': 'layernorm'},
  'experts': {
    'moe.experts': 5,
    'moe.dispatch': 'capacity',
    'moe.layers': '1',
    'moe.shared_experts': 2,
    'data.seq_len': 12,
    'moe.group_size': 6,
  },
  'experts, soft': {
    'moe.experts': 3,
    'moe.router': 'soft(slots=2)',
    'moe.allow_noncausal': True,
    'ffn.activation': 'swiglu',
  },
}


def config_of(name: str, **changes: object) -> Config:
  return battery.tiny(**ODD | SHAPES[name] | changes)


def batch(config: Config) -> jax.ShapeDtypeStruct:
  rows = config.data.batch_size // config.train.accumulate
  columns = config.data.source_len + config.data.seq_len + 1
  return jax.ShapeDtypeStruct((rows, columns), jnp.int32)


def abstract(config: Config) -> dict:
  return jax.eval_shape(lambda: params.initialize(config, jax.random.key(0)))


def logits(config: Config, weights: dict, tokens: jax.Array) -> jax.Array:
  asked = objective.example(config, tokens)
  return model.build(config).apply({'params': weights}, *asked.arguments)[0]


def objective_of(config: Config, weights: dict, tokens: jax.Array) -> jax.Array:
  hypers = dict.fromkeys(('loss.z_loss', 'moe.balance_loss', 'moe.z_loss'), jnp.float32(0))
  return step.loss_sums(config, weights, hypers, tokens, None)[0]


# What the model calls a tensor when it observes it -> how the table calls it.
OBSERVED = {
  **dict.fromkeys(('query', 'key', 'value', 'scores', 'mixed', 'out', 'gate', 'up', 'down'), ''),
  **dict.fromkeys(('middle_gate', 'middle_up', 'logits'), ''),
  **dict.fromkeys(('embedding', 'source_embedding', 'stream_attention', 'stream_ffn'), 'x'),
  **dict.fromkeys(('stream_cross_attention', 'stream_block'), 'x'),
  **dict.fromkeys(('attention_normed', 'cross_attention_normed', 'ffn_normed'), 'normed'),
  **dict.fromkeys(('attention_out_normed', 'ffn_out_normed', 'block_normed'), 'normed'),
  **{'hidden': 'h', 'middle_hidden': 'middle_h', 'final_normed': 'normed'},
  'encoder_normed': 'memory',
}
UNSEEN = {'tokens', 'source', 'target', 'mask', 'weights', 'nats', 'sum'}
UNSEEN |= {'probs', 'experts', 'rows', 'send', 'back', 'moe'}  # of routing


def observed(config: Config) -> Counter:
  """(name in the table, number of entries) -> how often the model observes it."""
  asked = objective.example(config, np.ones(batch(config).shape, np.int32))
  _, seen = step.forward(config, battery.weights(config), asked, watch=('observed',))
  found = Counter()
  for path, size in battery.flat(seen['observed']).items():
    owner, _, kind = path.rpartition('/')
    name = order_name(owner).rpartition('/')[2]
    if kind == 'count':
      found.update((OBSERVED[name] or name, int(n)) for n in np.ravel(size))
  return found


LONG = ('both', 'experts')


@pytest.mark.parametrize(
  'name', [pytest.param(n, marks=[pytest.mark.exhaustive] * (n in LONG)) for n in SHAPES]
)
def test_sizes_are_those_of_the_model(name):
  config, told = config_of(name), Counter()
  for part in tensors.forward(config):
    for tensor in part.tensors:
      if not tensor.name.startswith('logits_G'):  # a router's
        told[tensor.name.rpartition('_')[0], prod(tensor.shape)] += part.times
  absent = set(UNSEEN)
  if config.model.norm == 'none':
    absent |= {'normed'}  # which the model observes all the same
  if config.model.norm_placement == 'post':
    absent |= {'normed', 'memory'}  # the stream itself, and observed as both
  seen = observed(config)
  assert {k: n for k, n in seen.items() if k[0] not in absent} == {
    k: n for k, n in told.items() if k[0] not in absent
  }
  assert {'x', 'logits'} <= {name for name, _ in seen}


def operands(config: Config) -> Counter:
  """Entries -> how many tensors that depend on the tokens are a factor of some product."""
  read, made = set(), {}  # made: variable -> how often it is made anew

  def walk(jaxpr: Any, stands_for: list, times: int) -> list:
    """stands_for: of each input, and returned of each output, a variable; None: no token."""
    of = dict(zip(jaxpr.invars, stands_for, strict=True)) | dict.fromkeys(jaxpr.constvars)
    for eqn in jaxpr.eqns:
      given = [None if isinstance(x, Literal) else of[x] for x in eqn.invars]
      name, inner = eqn.primitive.name, eqn.params.get('jaxpr') or eqn.params.get('call_jaxpr')
      if name == 'dot_general':
        read.update(x for x in given if x is not None)
      if name == 'scan':  # what is the same in all rounds is made once
        body, fixed = inner.jaxpr, eqn.params['num_consts']
        fresh = [x and var for x, var in zip(given, body.invars, strict=True)][fixed:]
        rounds = times * eqn.params['length']
        made.update(dict.fromkeys(filter(None, fresh), rounds))
        ends = walk(body, given[:fixed] + fresh, rounds)
        of.update((out, x and out) for out, x in zip(eqn.outvars, ends, strict=True))
      elif inner is not None:
        ends = walk(getattr(inner, 'jaxpr', inner), given, times)
        of.update(zip(eqn.outvars, ends, strict=True))
      elif name in ('transpose', 'reshape', 'convert_element_type'):
        of[eqn.outvars[0]] = given[0]
      else:
        of.update((out, out if any(given) else None) for out in eqn.outvars)
        made.update(dict.fromkeys(eqn.outvars, times))
    return [None if isinstance(x, Literal) else of[x] for x in jaxpr.outvars]

  weights = abstract(config)
  with battery.references():
    jaxpr = jax.make_jaxpr(lambda t, w: logits(config, w, t))(batch(config), weights).jaxpr
  walk(jaxpr, [jaxpr.invars[0]] + [None] * (len(jaxpr.invars) - 1), 1)
  found = Counter()
  for var in read:
    found[prod(var.aval.shape)] += made.get(var, 1)
  return found


@pytest.mark.parametrize('name', [name for name in SHAPES if 'grouped' not in name])
def test_what_products_read_is_kept_and_nothing_else_but_what_is_named_here(name):
  """Grouped keys are repeated before the product; backward could repeat them again."""
  config, kept, factors = config_of(name), Counter(), Counter()
  bare = config.model.norm == 'none' or config.model.norm_placement == 'post'
  products_read = {'normed', 'query', 'key', 'value', 'weights', 'mixed', 'h', 'middle_h', 'memory'}
  norms_read = {'sum'} if bare else {'x'}
  if config.model.norm_placement == 'sandwich':
    norms_read |= {'out', 'down'}
  others = {'tokens', 'source', 'target', 'mask', 'gate', 'up', 'middle_gate', 'middle_up'}
  if config.moe.experts:
    soft = config.moe.router.startswith('soft')
    products_read |= {'rows', 'send', 'back', 'down'} if soft else {'rows'}
    others |= {'probs', 'experts_GTR', 'weights_GTR', 'down'}
  for part in tensors.forward(config):
    for tensor in part.tensors:
      own = tensor.name.removesuffix('_GTR').rpartition('_')[0] or tensor.name
      if tensor.kept and own in products_read | ({'x'} if bare else set()):
        factors[prod(tensor.shape)] += part.times
      elif tensor.kept:
        kept[own] += part.times
  assert factors == operands(config)
  assert kept.keys() <= norms_read | others | {'logits'}


def residual_bytes(config: Config) -> int:
  """What jax.vjp keeps for backward, parameters (also one layer's, also cast) left out."""
  weights = abstract(config)
  own = {leaf.shape[i:] for leaf in jax.tree.leaves(weights) for i in (0, 1)}

  def residuals(weights: dict, tokens: jax.Array) -> list:
    return jax.tree.leaves(jax.vjp(lambda w: objective_of(config, w, tokens), weights)[1])

  with battery.references():
    leaves = jax.eval_shape(residuals, weights, batch(config))
  return sum(x.size * x.dtype.itemsize for x in leaves if x.shape not in own)


@pytest.mark.parametrize('name', SHAPES)
@pytest.mark.parametrize('activation', ['relu', 'swiglu'])
def test_jax_keeps_no_less_and_about_twice_as_much(name, activation):
  """Of these 1.11 to 2.01 times: to it a norm or a softmax is several steps, each with its own."""
  config = config_of(name, **{'ffn.activation': activation})
  ratio = residual_bytes(config) / tensors.kept_bytes(config)
  assert 1.1 <= ratio <= 2.05


def test_micro_batches_and_narrow_types_keep_less():
  """Half as many rows keep half; bfloat16 halves all but ids, masks and logits."""
  whole = tensors.kept_bytes(config_of('decoder', **{'data.batch_size': 6}))
  assert tensors.kept_bytes(config_of('micro-batches')) == whole // 2
  narrow = tensors.kept_bytes(config_of('decoder', **{'model.dtype': 'bfloat16'}))
  wide = tensors.kept_bytes(config_of('decoder'))
  apart = 21 * 4 + 147 + 777 * 4
  assert narrow - apart == (wide - apart) / 2


def test_kept_by_hand():
  """3 rows of 7 tokens, d 20, 2 heads of 6, d_ff 28, vocabulary 37, 2 layers; entries of 4 bytes.

  A layer: stream and normed, twice, 4·420; query, key, value, mixed 4·252; weights 294; up and h
  2·588. Around: the embedding 420, which is counted for the first layer, so that the last stream is
  extra; normed 420; logits 777; ids 21; the mask 147 of one byte. Dropout: masks of one byte, 420
  after the embedding and each branch, 588 in each FFN.
  """
  layer = 4 * 420 + 4 * 252 + 294 + 2 * 588
  plain = 4 * (2 * layer + 2 * 420 + 777 + 21) + 147
  assert tensors.kept_bytes(config_of('decoder')) == plain
  rates = {'model.dropout': 0.1, 'ffn.dropout': 0.1}
  assert tensors.kept_bytes(config_of('decoder', **rates)) == plain + 5 * 420 + 2 * 588
  normed = {'model.qk_norm': True, 'model.attention_cap': 2.0}  # both sides of a norm, and scores
  assert tensors.kept_bytes(config_of('decoder', **normed)) == plain + 4 * 2 * (2 * 252 + 294)
  bert = {'model.embedding_norm': True, 'model.head': 'transform'}  # x before it; head, h, normed
  assert tensors.kept_bytes(config_of('encoder', **bert)) == plain + 4 * 4 * 420


def test_rows_of_experts_by_hand():
  """3 rows of 7 tokens, d 20, 3 experts of 28, 2 a token: 42 choices, or ⌊1.5 · 2 · 7 / 3⌋ places.

  Where scores weigh the result they are kept, 21 · 3, and what experts make of each row; ids and
  weights of choices always. Every layer has experts; the FFN it is without them keeps 2 · 588.
  """
  plain, own = tensors.kept_bytes(config_of('decoder')), {'moe.experts': 3}
  choices, scores = 42 * (20 + 2 * 28 + 20 + 2), 21 * 3

  def more(**changes: object) -> int:
    return (tensors.kept_bytes(config_of('decoder', **own | changes)) - plain) // 8 + 2 * 588

  assert more() == choices + scores
  assert more(**{'moe.router': 'hash(k=2)'}) == choices - 42 * 20
  places = {'moe.dispatch': 'capacity', 'moe.capacity_factor': 1.5}
  assert more(**places) == 3 * 3 * 7 * (20 + 2 * 28 + 20) + 2 * 42 + scores
  assert more(**{'moe.dispatch': 'dense'}) == 21 * 3 * (2 * 28 + 20) + 2 * 42 + scores


def test_names_and_shapes_of_each_part():
  config = config_of('both')
  parts = {part.name: part for part in tensors.forward(config)}
  assert {name: part.times for name, part in parts.items()} == {
    'source embedding': 1,
    'encoder layer, self-attention': 3,
    'encoder layer, FFN': 3,
    'encoder output': 1,
    'embedding': 1,
    'decoder layer, self-attention': 2,
    'decoder layer, cross-attention': 2,
    'decoder layer, FFN': 2,
    'logits': 1,
  }
  cross = parts['decoder layer, cross-attention'].tensors
  assert {t.name: t.shape for t in cross} == {
    'normed_BTD': (3, 7, 20),
    'query_BTNH': (3, 7, 2, 6),
    'key_BSKH': (3, 11, 2, 6),
    'value_BSKW': (3, 11, 2, 4),
    'scores_BNTS': (3, 2, 7, 11),
    'weights_BNTS': (3, 2, 7, 11),
    'mixed_BTNW': (3, 7, 2, 4),
    'out_BTD': (3, 7, 20),
    'x_BTD': (3, 7, 20),
  }
  assert [t.made for t in cross][1:5] == [
    'normed_BTD · query_DNH',
    'memory_BSD · key_DKH',
    'memory_BSD · value_DKW',
    'query_BTNH · key_BSKH / √H',
  ]
  uneven = [part.name for part in tensors.forward(config_of('pattern'))]
  assert uneven[1:6] == [
    'decoder layers 1 to 2, self-attention',
    'decoder layers 1 to 2, FFN',
    'decoder layer 3, self-attention',
    'decoder layer 3, FFN',
    'decoder layer 4, self-attention',
  ]
