"""What the model shows of itself on request: `observed` and `diagnostics`."""

from __future__ import annotations

import functools

import jax
import numpy as np
import pytest

from tests import battery, pairwise, reference, reference_source
from transformer import attention, count, ffn, layers, model
from transformer.config import Config

SEGMENTS = np.array([[0, 0, 1, 1, 1, 1, 2, 2], [1, 1, 1, 1, 1, 1, 1, 1]])
CELLS = {
  'pre': {},
  'post': {
    'model.norm_placement': 'post',
    'model.num_layers': 3,
    'ffn.ratios': '2,2,0',
    'model.num_kv_heads': 1,
    'model.positions': pairwise.SHORT['relative'],
  },
  'sandwich': {
    'model.norm_placement': 'sandwich',
    'ffn.activation': 'product(leaky_relu(0.1), prelu)',
    'ffn.hidden_layers': 2,
    'model.attention_cap': 2.0,
  },
  'parallel, shared': {
    'model.parallel_branches': True,
    'ffn.shared': True,
    'ffn.activation': 'swiglu',
    'model.logit_cap': 2.0,
  },
  'no attention': {'model.num_heads': 0, 'model.positions': 'none', 'model.norm': 'none'},
  'encoder': {
    'model.architecture': 'encoder',
    'model.embedding_norm': True,
    'model.positions': pairwise.SHORT['relative'],
    'model.head': 'transform',
    'ffn.ratios': '1,2',
  },
  'source': {
    'model.architecture': 'encoder_decoder',
    'model.norm_placement': 'sandwich',
    'model.num_encoder_layers': 3,
    'model.v_head_dim': 4,
    'ffn.encoder_ratios': '1,1,2',
    'ffn.encoder_activation': 'swiglu',
    'ffn.ratios': '0,2',
    'data.source_len': 6,
  },
}


def config_of(name: str) -> Config:
  return battery.tiny(**CELLS[name])


def arguments(config: Config) -> tuple:
  """Weights and what the model takes besides, two rows without padding."""
  tokens = battery.tokens(config)[: len(SEGMENTS), :-1]
  if config.model.architecture != 'encoder_decoder':
    return battery.weights(config), tokens, SEGMENTS
  return battery.weights(config), tokens[::-1, : config.data.source_len], tokens


@functools.cache
def compiled(config: Config, *collections: str):
  """(weights, …) -> logits, or ((logits), what was asked for)."""

  def apply(weights: dict, *args: np.ndarray):
    out = model.build(config).apply(
      {'params': weights}, *args, mutable=list(collections) if collections else False
    )
    return (out[0][0], out[1]) if collections else out[0]

  return jax.jit(apply)


@functools.cache
def noted(config: Config) -> dict[str, list[np.ndarray]]:
  """Of the oracle: 'embedding', '0/query', … -> the tensors of all rows, in forward order.

  Layers are numbered from the encoder's first to the decoder's last.
  """
  found: dict[str, list[np.ndarray]] = {}
  oracle = getattr(reference_source, config.model.architecture, reference.decoder)
  weights, *args = arguments(config)
  for row in zip(*args, strict=True):
    note = lambda name, x: found.setdefault(name, []).append(np.array(x))  # noqa: E731
    oracle(config, weights, *row, note=note)
  return {name: x for name, x in found.items() if not name.endswith('/weights')}


def leaf_of(where: str) -> str:
  """'3/cross_attention/query' -> 'cross_attention/query'."""
  layer, _, leaf = where.partition('/')
  return leaf or layer


def by_layer(config: Config, tree: dict) -> dict[str, dict]:
  """'embedding', '0/query', … -> what was kept, out of the tree of a collection."""
  groups = {group.name: group for group in count.groups(config)}
  found = {}
  for name, value in tree.items():
    if name not in groups:
      found[name] = value
      continue
    group, inside = groups[name], dict(value)
    for owner, prefix in (('attention', ''), ('cross_attention', 'cross_attention/'), ('ffn', '')):
      inside |= {f'{prefix}{leaf}': x for leaf, x in inside.pop(owner, {}).items()}
    for leaf, stacked in inside.items():
      for i in range(group.size):
        layer = group.before + group.first + i
        found[f'{layer}/{leaf}'] = jax.tree.map(lambda x, i=i: np.asarray(x)[i], stacked)
  return found


@pytest.mark.parametrize('name', CELLS)
def test_observed_against_numpy(name):
  """Every tensor on the way, under the oracle's name, with its sums; and no other."""
  config = config_of(name)
  _, kept = compiled(config, 'observed')(*arguments(config))
  got, expected = by_layer(config, jax.device_get(kept)['observed']), noted(config)
  assert set(got) == set(expected)
  for where, tensors in expected.items():
    x = np.abs(np.concatenate([np.ravel(t) for t in tensors]))
    sums = {'sum_squares': np.sum(x**2), 'sum_abs': np.sum(x), 'largest': np.max(x)}
    assert got[where].pop('finite') and got[where].pop('count') == x.size, where
    assert set(got[where]) == set(sums)
    for key, value in sums.items():
      assert got[where][key] == pytest.approx(value, rel=1e-4), (where, key)


@pytest.mark.parametrize('name', CELLS)
def test_names_are_in_forward_order(name):
  """ORDER has every name, and the oracle comes by them in that order, layer after layer."""
  config = config_of(name)
  order = list(noted(config))
  assert set(map(leaf_of, order)) <= set(layers.ORDER)
  encoder, total = sum(count.depth(config, s) for s in count.stacks(config)[:-1]), 100
  outside = {'source_embedding': -1, 'encoder_normed': encoder - 0.5, 'embedding': encoder - 0.5}

  def place(where: str) -> tuple[float, float]:
    own = leaf_of(where)
    after = config.model.norm_placement == 'post' and own.endswith('_normed')
    stream = f'stream_{own.removesuffix("_normed")}'
    at = layers.ORDER.index(stream) - 0.5 if after else layers.ORDER.index(own)
    return outside.get(own, total) if own == where else int(where.partition('/')[0]), at

  assert sorted(order, key=place) == order


def test_order_names_nothing_that_is_never_seen():
  seen = {leaf_of(where) for name in CELLS for where in noted(config_of(name))}
  assert seen == set(layers.ORDER)


def test_the_documented_tree():
  config = config_of('pre')
  kept = jax.eval_shape(compiled(config, 'observed'), *arguments(config))[1]['observed']
  sums = {'sum_squares', 'sum_abs', 'largest', 'count', 'finite'}
  tree = jax.tree.map(lambda value: set(value) == sums, kept, is_leaf=lambda v: 'count' in v)
  assert tree == {
    'embedding': True,
    'layers': {
      'attention_normed': True,
      'attention': dict.fromkeys(('query', 'key', 'value', 'scores', 'mixed', 'out'), True),
      'stream_attention': True,
      'ffn_normed': True,
      'ffn': {'up': True, 'hidden': True, 'down': True},
      'stream_ffn': True,
    },
    'final_normed': True,
    'logits': True,
  }
  assert {x.shape for x in jax.tree.leaves(kept['layers'])} == {(config.model.num_layers,)}


def test_the_first_tensor_that_is_not_finite_is_found():
  config = config_of('pre')
  weights, *rest = arguments(config)
  broken = jax.tree.map(np.copy, weights)
  broken['layers']['ffn']['up'][1] = np.inf
  _, kept = compiled(config, 'observed')(broken, *rest)
  kept = by_layer(config, jax.device_get(kept)['observed'])
  found = [where for where in noted(config) if not kept[where]['finite']]
  assert found[0] == '1/up' and found[-1] == 'logits' and '1/out' not in found


@pytest.mark.parametrize('name', ['pre', 'sandwich', 'parallel, shared'])
def test_unasked_it_costs_nothing(name, monkeypatch):
  """The program is the one of a model without taps, and asking changes no logit."""
  config = config_of(name)
  args = arguments(config)
  without = str(jax.make_jaxpr(compiled(config).__wrapped__)(*args))
  asked = str(jax.make_jaxpr(compiled(config, 'observed').__wrapped__)(*args))
  plain = compiled(config)(*args)
  seen, _ = compiled(config, 'observed')(*args)
  np.testing.assert_allclose(plain, seen, atol=1e-6)
  for module in (attention, ffn, layers, model):
    for tap in ('observe', 'keep'):
      if hasattr(module, tap):
        monkeypatch.setattr(module, tap, lambda *_: None)
  monkeypatch.setattr(attention, 'scores', None)  # nor are scores computed a second time
  assert str(jax.make_jaxpr(compiled(config).__wrapped__)(*args)) == without
  assert asked != without  # negative control


@pytest.mark.parametrize('name', CELLS)
def test_diagnostics_against_numpy(name):
  """Of each layer's FFN: what enters the activation, what comes out, the stream and its update."""
  config = config_of(name)
  _, kept = compiled(config, 'diagnostics')(*arguments(config))
  got, expected = by_layer(config, jax.device_get(kept)['diagnostics']), noted(config)
  m = config.model
  stage = 'middle_' if config.ffn.hidden_layers == 2 else ''

  def tensors(where: str, like: np.ndarray) -> np.ndarray:
    return np.stack(expected[where]).reshape(like.shape)  # the oracle's FFN goes by positions

  streams = [where for where in expected if 'embedding' in where or '/stream_' in where]
  for group in count.groups(config):
    for layer in range(group.before + group.first, group.before + group.first + group.size):
      if not group.d_ff:
        assert f'{layer}/hidden' not in got
        continue
      own = f'{layer}/stream_{"block" if m.parallel_branches else "ffn"}'
      entering = streams[streams.index(own) - 1]
      for name, where in (
        ('stream', entering),
        ('update', f'{layer}/{"ffn_out_normed" if m.norm_placement == "sandwich" else "down"}'),
        ('hidden', f'{layer}/{stage}hidden'),
      ):
        found = got[f'{layer}/{name}']
        np.testing.assert_allclose(found, tensors(where, found), atol=1e-4, err_msg=where)
      gated = f'{layer}/{stage}gate' in expected
      inputs = [f'{layer}/{stage}{of}' for of in (('gate', 'up') if gated else ('up',))]
      for one, where in zip(got[f'{layer}/inputs'], inputs, strict=True):
        np.testing.assert_allclose(one, tensors(where, one), atol=1e-4, err_msg=where)
