"""n-gram references: distributions, a case by hand, and a chain whose entropy is known."""

import numpy as np
import pytest

from transformer.analysis.ngram import Bigram, bigram, unigram, unigram_probabilities


def _rows(tokens, width):
  """Rows of `width` targets with stride `width`, the last padded."""
  tokens = np.asarray(tokens)
  count = -(-(len(tokens) - 1) // width)
  rows = np.full((count, width + 1), -1, np.int32)
  for i in range(count):
    piece = tokens[i * width : (i + 1) * width + 1]
    rows[i, : len(piece)] = piece
  return rows


def test_unigram_by_hand():
  # targets 1 1 2 of four tokens: add-one gives 1/7 3/7 2/7 1/7
  train = np.array([[0, 1, 1, 2]], np.int32)
  np.testing.assert_allclose(unigram_probabilities(train, 4), np.array([1, 3, 2, 1]) / 7)
  held_out = np.array([[3, 1, 2, -1]], np.int32)  # two targets, padding left out
  assert unigram(train, held_out, 4) == pytest.approx(-(np.log(3 / 7) + np.log(2 / 7)) / 2)


def test_bigram_by_hand():
  # Stream 0 1 0 1 0 2: pairs 01 ×2, 10 ×2, 02 ×1. Counts of counts n1 = 1, n2 = 2, so D = 1/5.
  # Contexts: token 0 after {1}, 1 after {0}, 2 after {0}: one each of three pairs; all seen once,
  # so the lower discount is 1, and q is uniform over the vocabulary of 4: 1/4.
  # p(1|0) = (2 - 1/5)/3 + (1/5)(2)/3 · 1/4 = .6 + 1/30;  p(3|0) = 1/30;
  # p(0|1) = (2 - 1/5)/2 + (1/5)(1)/2 · 1/4 = .9 + 1/40;  context 3 was never seen: q = 1/4.
  model = Bigram(_rows([0, 1, 0, 1, 0, 2], 5), 4)
  contexts, targets = np.array([0, 0, 1, 3]), np.array([1, 3, 0, 2])
  expected = [0.6 + 1 / 30, 1 / 30, 0.9 + 1 / 40, 1 / 4]
  np.testing.assert_allclose(model.probabilities(contexts, targets), expected)


def test_rows_share_their_edge_token_and_padding_is_left_out():
  tokens = np.random.default_rng(0).integers(0, 9, 101)
  held_out = _rows(tokens[:40], 7)
  whole = bigram(_rows(tokens, 100), held_out, 9)
  assert bigram(_rows(tokens, 7), held_out, 9) == pytest.approx(whole, rel=1e-12)


@pytest.mark.parametrize('length', [1, 2, 40, 2000])
def test_probabilities_sum_to_one_for_every_context(length):
  vocab = 17
  tokens = np.random.default_rng(1).zipf(1.6, length) % (vocab - 2)  # two tokens are never seen
  model = Bigram(_rows(tokens, 16) if length > 1 else np.full((1, 3), -1), vocab)
  for context in range(-1, vocab):
    p = model.probabilities(np.full(vocab, context), np.arange(vocab))
    assert p.min() > 0
    assert p.sum() == pytest.approx(1, abs=1e-12)


def test_bigram_reaches_the_entropy_of_a_markov_chain():
  rng = np.random.default_rng(2)
  vocab = 12
  chain = rng.dirichlet(np.full(vocab, 0.4), vocab)
  edges = chain.cumsum(1)
  tokens, state = [], 0
  for u in rng.random(40_000):
    state = min(int(np.searchsorted(edges[state], u)), vocab - 1)
    tokens.append(state)
  train, held_out = _rows(tokens[:30_000], 64), _rows(tokens[30_000:], 64)
  t = np.asarray(tokens)
  entropy = -np.log(chain[t[30_000:-1], t[30_001:]]).mean()  # of the true chain on the same text
  found = bigram(train, held_out, vocab)
  assert entropy - 0.002 < found < entropy + 0.01
  assert unigram(train, held_out, vocab) > found + 0.3
