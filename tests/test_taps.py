"""What the model shows of itself on request: `observed` and `diagnostics`."""

from __future__ import annotations

import functools

import jax
import numpy as np
import pytest

from tests import battery, pairwise, reference
from transformer import attention, count, ffn, layers, model
from transformer.config import Config, widths

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
}


def config_of(name: str) -> Config:
  return battery.tiny(**CELLS[name])


def arguments(config: Config) -> tuple:
  return battery.weights(config), battery.tokens(config)[: len(SEGMENTS), :-1], SEGMENTS


@functools.cache
def compiled(config: Config, *collections: str):
  """(weights, tokens, segments) -> logits, or ((logits), what was asked for)."""

  def apply(weights: dict, tokens: np.ndarray, segments: np.ndarray):
    out = model.build(config).apply(
      {'params': weights}, tokens, segments, mutable=list(collections) if collections else False
    )
    return (out[0][0], out[1]) if collections else out[0]

  return jax.jit(apply)


def noted(config: Config) -> dict[str, list[np.ndarray]]:
  """Of the oracle: 'embedding', '0/query', … -> the tensors of all rows, in forward order."""
  found: dict[str, list[np.ndarray]] = {}
  weights, tokens, segments = arguments(config)
  for row in zip(tokens, segments, strict=True):
    note = lambda name, x: found.setdefault(name, []).append(np.array(x))  # noqa: E731
    reference.decoder(config, weights, *row, note)
  return found


def by_layer(config: Config, tree: dict) -> dict[str, dict]:
  """'embedding', '0/query', … -> what was kept, out of the tree of a collection."""
  groups = {group.name: group for group in count.groups(config)}
  found = {}
  for name, value in tree.items():
    if name not in groups:
      found[name] = value
      continue
    inside = value | value.pop('attention', {}) | value.pop('ffn', {})
    for leaf, stacked in inside.items():
      if leaf in ('attention', 'ffn'):
        continue
      for i in range(groups[name].size):
        layer = groups[name].first + i
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
  leaf = [where.rpartition('/')[2] for where in order]
  assert set(leaf) <= set(layers.ORDER)

  def place(where: str) -> tuple[int, float]:
    layer, _, own = where.rpartition('/')
    of_model = config.model.num_layers if own in ('final_normed', 'logits') else -1
    after = config.model.norm_placement == 'post' and own.endswith('_normed')
    stream = f'stream_{own.removesuffix("_normed")}'
    at = layers.ORDER.index(stream) - 0.5 if after else layers.ORDER.index(own)
    return int(layer) if layer else of_model, at

  assert sorted(order, key=place) == order


def test_order_names_nothing_that_is_never_seen():
  seen = {where.rpartition('/')[2] for name in CELLS for where in noted(config_of(name))}
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
  for layer, d_ff in enumerate(widths(config)):
    tensors = lambda leaf: np.stack(expected[f'{layer}/{leaf}'])  # noqa: B023, E731
    before = f'{layer - 1}/stream_{"block" if m.parallel_branches else "ffn"}'
    inside = m.num_heads and not m.parallel_branches and d_ff
    entering = f'{layer}/stream_attention' if inside else before if layer else 'embedding'
    np.testing.assert_allclose(got[f'{layer}/stream'], np.stack(expected[entering]), atol=1e-4)
    if not d_ff:
      assert f'{layer}/hidden' not in got
      continue
    shape = (*SEGMENTS.shape, -1)  # the oracle goes by positions
    update = tensors('ffn_out_normed' if m.norm_placement == 'sandwich' else 'down')
    np.testing.assert_allclose(got[f'{layer}/update'], update.reshape(shape), atol=1e-4)
    hidden = tensors(f'{stage}hidden').reshape(shape)
    np.testing.assert_allclose(got[f'{layer}/hidden'], hidden, atol=1e-4)
    gated = f'{layer}/{stage}gate' in expected
    inputs = [tensors(stage + of) for of in (('gate', 'up') if gated else ('up',))]
    for one, other in zip(got[f'{layer}/inputs'], inputs, strict=True):
      np.testing.assert_allclose(one, other.reshape(shape), atol=1e-4)
