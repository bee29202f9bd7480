"""Dropout and stochastic depth in the model: only where keys are given, by row, by layer."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import battery
from transformer import count, model, objective
from transformer.config import Config

NOISE = {'model.dropout': 0.3, 'model.stochastic_depth': 0.4, 'ffn.dropout': 0.2}


def keys(seed: int, rows: int) -> jax.Array:
  return jax.random.split(jax.random.key(seed), rows)


@functools.cache
def compiled(config: Config):
  """(weights, tokens, keys of rows or None) -> (logits, what the layers kept)."""

  def apply(weights: dict, tokens: np.ndarray, noise_B: jax.Array | None) -> tuple:
    (logits, _), kept = model.build(config).apply(
      {'params': weights}, tokens, None, noise_B, mutable=['diagnostics']
    )
    groups = [kept['diagnostics'][group.name] for group in count.groups(config)]
    layers = {n: jnp.concatenate([g[n] for g in groups]) for n in ('stream', 'update')}
    return logits, layers

  return jax.jit(apply)


def logits(config: Config, noise_B: jax.Array | None, order=slice(None)) -> np.ndarray:
  tokens = battery.tokens(config)[:, :-1]
  return np.asarray(compiled(config)(battery.weights(config), tokens[order], noise_B)[0])


@pytest.mark.parametrize('name', [*NOISE, ''])
def test_whether_training_draws_anything(name):
  config = battery.tiny(**{name: NOISE[name]} if name else {})
  assert objective.uses_noise(config) == bool(name)


@pytest.mark.parametrize('name', NOISE)
def test_keys_of_rows_decide_and_evaluation_knows_none(name):
  config = battery.tiny(**{name: NOISE[name]})
  assert np.array_equal(logits(config, None), logits(battery.tiny(), None))
  one, again, other = (logits(config, keys(seed, 8)) for seed in (0, 0, 1))
  assert np.array_equal(one, again)
  assert not np.array_equal(one, other)
  assert not np.array_equal(one, logits(config, None))
  assert np.array_equal(logits(battery.tiny(), keys(0, 8)), logits(battery.tiny(), None))


def test_noise_is_of_the_row_wherever_it_lies():
  config, order = battery.tiny(**NOISE), np.array([3, 7, 0, 1, 6, 2, 5, 4])
  one = logits(config, keys(0, 8))
  np.testing.assert_allclose(logits(config, keys(0, 8)[order], order), one[order], atol=1e-5)
  elsewhere = logits(config, keys(0, 8), order)  # negative control: keys left where they were
  assert np.max(np.abs(elsewhere - one[order])) > 0.01


@pytest.mark.parametrize('ratios', ['', '1,1,2,2'])
def test_rates_of_stochastic_depth_grow_linearly(ratios):
  """Layer i of 4 at rate r drops a row's branch with chance r · (i + 1)/4, else scales it up.

  Without attention, `stream` is what enters layer i, and `update` what its branch adds. Layers
  count on from group to group of equal width, and no two draw alike.
  """
  rows, rate, layers = 512, 0.8, 4
  config = battery.tiny(
    **{'model.num_layers': layers, 'model.num_heads': 0, 'model.positions': 'none'},
    **{'model.stochastic_depth': rate, 'data.seq_len': 2, 'data.batch_size': rows},
    **{'ffn.ratios': ratios},
  )
  tokens = battery.tokens(config)[:, :-1]
  _, kept = compiled(config)(battery.weights(config), tokens, keys(0, rows))
  stream_LBTD, update_LBTD = (np.asarray(kept[name]) for name in ('stream', 'update'))
  draws = set()
  for layer in range(layers - 1):
    chance = rate * (layer + 1) / layers
    added_BTD = stream_LBTD[layer + 1] - stream_LBTD[layer]
    dropped_B = np.all(added_BTD == 0, axis=(1, 2))
    # 512 draws: a deviation of the share is at most √(.25 / 512) = .022
    assert np.mean(dropped_B) == pytest.approx(chance, abs=0.066)
    kept_BTD = update_LBTD[layer][~dropped_B] / (1 - chance)
    np.testing.assert_allclose(added_BTD[~dropped_B], kept_BTD, atol=1e-5)
    draws.add(dropped_B.tobytes())
  assert len(draws) == layers - 1


def test_an_encoder_and_its_decoder_draw_apart():
  """Each stack's rates grow over its own depth, and no layer drops what another does.

  With nothing written by attention, a stream that has not moved lost its FFN.
  """
  rows, rate = 512, 0.8
  config = battery.tiny(
    **{'model.architecture': 'encoder_decoder', 'model.num_layers': 3, 'data.batch_size': rows},
    **{'model.num_encoder_layers': 2, 'data.seq_len': 2, 'model.stochastic_depth': rate},
  )
  weights = battery.weights(config)
  for stack, branch in (
    ('encoder_layers', 'attention'),
    ('layers', 'attention'),
    ('layers', 'cross_attention'),
  ):
    weights[stack][branch]['out'][:] = 0
  source, target = battery.tokens(config)[:, :2], battery.tokens(config, 1)[:, :2]

  def streams(noise_B: jax.Array) -> tuple:
    _, kept = model.build(config).apply(
      {'params': weights}, source, target, noise_B, mutable=['internals']
    )
    kept = kept['internals']
    pairs = ('source_embedding', 'encoder_layers'), ('embedding', 'layers')
    return [jnp.concatenate([kept[a][None], kept[b]['stream']]) for a, b in pairs]

  draws = set()
  for stream_LBTD in jax.jit(streams)(keys(0, rows)):
    moved_LB = np.any(np.diff(stream_LBTD, axis=0) != 0, axis=(2, 3))
    for layer, moved_B in enumerate(moved_LB):
      chance = rate * (layer + 1) / len(moved_LB)
      assert np.mean(~moved_B) == pytest.approx(chance, abs=0.066)
      draws.add(moved_B.tobytes())
  assert len(draws) == 5


def test_noise_differs_between_layers_and_sites():
  """The same row must not lose the same entries at two layers, nor in two branches of one."""
  from transformer.layers import dropout

  key = keys(0, 1)
  fold = lambda layer: jax.vmap(lambda k: jax.random.fold_in(k, layer))(key)  # noqa: E731
  masks = [
    np.asarray(dropout(jnp.ones((1, 64)), fold(layer), 0.5, site))
    for layer in range(3)
    for site in range(5)
  ]
  assert len({mask.tobytes() for mask in masks}) == 15


def test_dropout_keeps_the_mean_of_the_hidden_layer():
  """With `down` alone behind it, which is linear, the mean over keys is what evaluation gives."""
  rows = 512
  config = battery.tiny(
    **{'model.num_layers': 1, 'model.num_heads': 0, 'model.positions': 'none'},
    **{'ffn.dropout': 0.3, 'data.seq_len': 2, 'data.batch_size': rows},
  )
  tokens = np.tile(battery.tokens(config)[:1, :-1], (rows, 1))
  noisy, exact = (
    np.asarray(compiled(config)(battery.weights(config), tokens, noise_B)[1]['update'][0])
    for noise_B in (keys(0, rows), None)
  )
  spread = noisy.std(axis=0) / rows**0.5
  assert np.all(spread > 0)
  assert np.all(np.abs(noisy.mean(axis=0) - exact[0]) < 5 * spread)
