"""Windows over a stream, and sums of what their tokens cost by group."""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import battery
from transformer import evaluate, loss, model, objective, params


def chunks(*sizes):
  """A stream that counts up, cut into groups 0, 1, …"""
  edges = np.cumsum([0, *sizes])
  return [(g, np.arange(a, b)) for g, (a, b) in enumerate(itertools.pairwise(edges))]


@pytest.mark.parametrize('total', [2, 5, 8, 9, 10, 16, 17, 18, 31])
@pytest.mark.parametrize('stride', [1, 3, 5, 8])
def test_each_token_but_the_first_is_scored_once_with_its_context(total, stride):
  length, seen = 8, []
  for window, scored in evaluate.windows(chunks(total - 1, 1), length, stride):
    assert window.shape == (length + 1,) and scored.shape == (length,)
    for t in np.flatnonzero(scored >= 0):
      target = int(window[t + 1])
      assert scored[t] == (target == total - 1)
      assert t + 1 >= min(target, length - stride + 1)  # tokens before it in this row
      assert window[: t + 1].tolist() == list(range(target - t - 1, target))
      seen.append(target)
  assert seen == list(range(1, total))


def test_at_stride_length_the_rows_are_those_of_training():
  rows = list(evaluate.windows(chunks(5, 1, 9), 6, 6))
  assert [window.tolist() for window, _ in rows] == [
    [0, 1, 2, 3, 4, 5, 6],
    [6, 7, 8, 9, 10, 11, 12],
    [12, 13, 14, -1, -1, -1, -1],
  ]
  assert rows[0][1].tolist() == [0, 0, 0, 0, 1, 2] and rows[2][1].tolist() == [2, 2, -1, -1, -1, -1]


def test_chunks_may_be_cut_anywhere():
  whole = list(evaluate.windows([(0, np.arange(50))], 8, 3))
  pieces = list(evaluate.windows([(0, np.arange(k, k + 1)) for k in range(50)], 8, 3))
  for a, b in zip(whole, pieces, strict=True):
    assert np.array_equal(a[0], b[0]) and np.array_equal(a[1], b[1])


@pytest.fixture(scope='module')
def tiny():
  config = battery.tiny()
  return config, battery.jiggle(params.initialize(config, jax.random.key(0)))


def tokens_of(config, count, seed=0):
  rng = np.random.default_rng(seed)
  return rng.integers(0, config.model.vocab_size, count)


def test_per_token_nats_add_up_to_the_loss(tiny):
  config, weights = tiny
  tokens = tokens_of(config, 2 * (config.data.seq_len + 1)).reshape(2, -1).astype(np.int32)
  tokens[1, 5:] = -1
  nats = evaluate.per_token_nats(config, weights, tokens)
  inputs, targets, mask, segments = objective.split(jnp.asarray(tokens))
  logits, _ = model.build(config).apply({'params': weights}, inputs, segments)
  total, count = loss.sums(logits, targets, mask, 0.0, 0.0)[1]
  assert float(nats.sum()) == pytest.approx(float(total), rel=1e-6)
  assert int(count) == config.data.seq_len + 4
  assert np.flatnonzero(np.asarray(nats[1])).tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize('shift', [1, 4])
def test_groups_add_up_to_the_whole(tiny, shift):
  config, weights = tiny
  tokens, stride = tokens_of(config, 301), config.data.seq_len // shift
  whole = evaluate.score(config, weights, [('a', tokens)], stride)['a']
  cut = [('a', tokens[:100]), ('b', tokens[100:120]), ('a', tokens[120:])]
  parts = evaluate.score(config, weights, cut, stride)
  assert (whole.tokens, parts['a'].tokens, parts['b'].tokens) == (300, 280, 20)
  assert sum(p.nats for p in parts.values()) == pytest.approx(whole.nats, rel=1e-9)


def test_a_stride_shows_each_token_what_one_row_of_its_own_would(tiny):
  """Against one window a token: the last T tokens before it."""
  config, weights = tiny
  length, tokens = config.data.seq_len, tokens_of(config, 60)
  expected = 0.0
  for t in range(1, len(tokens)):
    first = max(0, t - length)
    row = np.full((1, length + 1), -1, np.int32)
    row[0, : t - first + 1] = tokens[first : t + 1]
    expected += float(evaluate.per_token_nats(config, weights, row)[0, t - first - 1])
  found = evaluate.score(config, weights, [('', tokens)], 1)['']
  assert found.nats == pytest.approx(expected, rel=1e-5)
  coarse = evaluate.score(config, weights, [('', tokens)], length)['']
  assert coarse.nats != pytest.approx(expected, rel=1e-5)  # it does look at the context
