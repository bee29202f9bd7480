"""Rows of a token stream, and batch i as a pure function of (seed, i).

A stream is `0 doc 0 doc … 0`: token 0 ends a document, and one precedes the first. Row k holds the
T + 1 tokens from k·T on, so that each token but the first is predicted once per epoch.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from transformer.errors import UserError

# Maps positions start..stop of the endless shuffled sequence of rows to the rows' indices.
Order = Callable[[int, int], np.ndarray]


@dataclasses.dataclass(frozen=True, eq=False)
class Data:
  """Batches of one corpus. Rows are int32 [·, T + 1]; −1 is padding, 0 the end of a document."""

  info: dict[str, Any]  # plain JSON: where the text comes from, and how much there is
  fingerprint: str  # equal exactly if the rows are
  tokenizer: Any  # encode, decode, vocab_size; None where there is no text
  held_out_bytes: int  # of UTF-8 text in the held-out set; 0 where there is no text
  batch_size: int
  seq_len: int
  train: np.ndarray  # stream of tokens, usually memory-mapped
  held_out: np.ndarray  # stream of tokens
  order: Order

  @functools.cached_property
  def rows(self) -> np.ndarray:
    """All training rows, a view [R, T + 1]; tokens that do not fill a last row are left out."""
    return np.lib.stride_tricks.sliding_window_view(self.train, self.seq_len + 1)[:: self.seq_len]

  def train_batch(self, i: int, process: int = 0, processes: int = 1) -> np.ndarray:
    """Part `process` of `processes` of training batch i, int32 [B / processes, T + 1].

    Raises UserError if the batch size is not divisible by `processes`.
    """
    if self.batch_size % processes:
      raise UserError(
        f'--data.batch_size={self.batch_size}: not divisible by the {processes} processes'
      )
    share = self.batch_size // processes
    start = i * self.batch_size + process * share
    return self.rows[self.order(start, start + share)].astype(np.int32)

  @property
  def eval_batch_count(self) -> int:
    """Batches in the held-out set."""
    return _ceil(_ceil(len(self.held_out) - 1, self.seq_len), self.batch_size)

  def eval_batches(self) -> Iterator[np.ndarray]:
    """The whole held-out set in fixed order, int32 [B, T + 1], filled up with −1."""
    for i in range(self.eval_batch_count):
      batch = np.full((self.batch_size, self.seq_len + 1), -1, np.int32)
      for k, row in enumerate(batch, start=i * self.batch_size):
        tokens = self.held_out[k * self.seq_len :][: self.seq_len + 1]
        if len(tokens) > 1:  # a lone token predicts nothing
          row[: len(tokens)] = tokens
      yield batch


def grain_order(rows: int, seed: int) -> Order:
  """Every epoch visits each row once, in an order of its own."""

  @functools.cache
  def shuffled() -> Any:
    import grain

    # grain shuffles epoch e with seed + e: unhashed, seed 1 would repeat what seed 0 does later.
    return grain.MapDataset.range(rows).shuffle(seed=_mixed(seed)).repeat()

  # Indices alone pass through grain, and one gather fetches the rows: half the time of rows.
  return lambda start, stop: np.array([shuffled()[p] for p in range(start, stop)])


def numpy_order(rows: int, seed: int) -> Order:
  """The same promise as `grain_order` (another order) where there is only NumPy."""

  @functools.lru_cache(maxsize=2)
  def permutation(epoch: int) -> np.ndarray:
    return np.random.default_rng((seed, epoch)).permutation(rows)

  def order(start: int, stop: int) -> np.ndarray:
    return np.array([permutation(p // rows)[p % rows] for p in range(start, stop)])

  return order


def fingerprint(digest: str, seq_len: int) -> str:
  """Names the rows that streams of this digest make at this length."""
  return hashlib.sha256(f'{digest} seq_len={seq_len}'.encode()).hexdigest()[:16]


def token_type(vocab_size: int) -> type:
  """The smallest type that holds the ids."""
  return np.uint16 if vocab_size <= 2**16 else np.uint32


def _mixed(seed: int) -> int:
  return int.from_bytes(hashlib.sha256(str(seed).encode()).digest()[:4], 'big')


def _ceil(a: int, b: int) -> int:
  return -(-a // b)
