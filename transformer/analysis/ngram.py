"""What a count of tokens or of pairs of tokens would reach: reference lines for a language model.

Rows are int32 [n, T+1] with stride T, -1 is padding; targets are row[1:] where they are not
padding, exactly what the model is asked. Numpy only.
"""

from __future__ import annotations

import numpy as np


def unigram(train_rows: np.ndarray, held_out_rows: np.ndarray, vocab: int) -> float:
  """Nats per token of token frequencies (add-one smoothed) on the held-out targets."""
  _, targets = _pairs(held_out_rows)
  return float(-np.log(unigram_probabilities(train_rows, vocab)[targets]).mean())


def unigram_probabilities(train_rows: np.ndarray, vocab: int) -> np.ndarray:
  """Add-one smoothed frequency of each token as a target: [vocab]."""
  _, targets = _pairs(train_rows)
  counts = np.bincount(targets, minlength=vocab) + 1.0
  return counts / counts.sum()


def bigram(train_rows: np.ndarray, held_out_rows: np.ndarray, vocab: int) -> float:
  """Nats per token of an interpolated Kneser-Ney bigram on the held-out targets."""
  model = Bigram(train_rows, vocab)
  return float(-np.log(model.probabilities(*_pairs(held_out_rows))).mean())


class Bigram:
  """Interpolated Kneser-Ney with one absolute discount an order (Chen & Goodman 1999, eq. 26).

  p(w | v) = max(c(v w) - D, 0) / c(v) + D N(v .) / c(v) q(w), where N counts distinct followers
  and q discounts the number of distinct contexts of w in the same way, down to uniform.
  A context never seen (or padding) gets q.
  """

  def __init__(self, train_rows: np.ndarray, vocab: int):
    contexts, targets = _pairs(train_rows)
    contexts, targets = contexts[contexts >= 0], targets[contexts >= 0]
    self.vocab = vocab
    self.codes, self.counts = np.unique(contexts * vocab + targets, return_counts=True)
    self.discount = _discount(self.counts)
    self.totals = np.bincount(contexts, minlength=vocab)  # c(v)
    self.followers = np.bincount(self.codes // vocab, minlength=vocab)  # N(v .)
    self.lower = self._continuation(np.bincount(self.codes % vocab, minlength=vocab))

  def _continuation(self, contexts: np.ndarray) -> np.ndarray:
    """q: [vocab], from the number of distinct contexts of each token."""
    seen = contexts[contexts > 0]
    if not len(seen):
      return np.full(self.vocab, 1 / self.vocab)
    discount = _discount(seen)
    spared = discount * len(seen) / seen.sum()
    return np.maximum(contexts - discount, 0) / seen.sum() + spared / self.vocab

  def probabilities(self, contexts: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """p(target | context) of int arrays of one shape; context -1 is unknown."""
    known = contexts >= 0
    v = np.where(known, contexts, 0)
    total = np.where(known, self.totals[v], 0)
    codes = v.astype(np.int64) * self.vocab + targets
    place = np.minimum(np.searchsorted(self.codes, codes), max(len(self.codes) - 1, 0))
    if len(self.codes):
      count = np.where(self.codes[place] == codes, self.counts[place], 0)
    else:
      count = np.zeros_like(codes)
    seen = total > 0
    total = np.maximum(total, 1)
    direct = np.maximum(count - self.discount, 0) / total
    spared = self.discount * self.followers[v] / total
    q = self.lower[targets]
    return np.where(seen, direct + spared * q, q)


def _pairs(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """(contexts, targets) int64 [n] of every target that is not padding."""
  rows = np.asarray(rows, np.int64)
  wanted = rows[:, 1:] >= 0
  return rows[:, :-1][wanted], rows[:, 1:][wanted]


def _discount(counts: np.ndarray) -> float:
  """n1 / (n1 + 2 n2) of the counts of counts; one half where nothing was seen exactly once."""
  once, twice = int((counts == 1).sum()), int((counts == 2).sum())
  return once / (once + 2 * twice) if once else 0.5
