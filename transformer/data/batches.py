"""Rows of token streams, and batch i as a pure function of (seed, i).

A stream is `0 doc 0 doc … 0`: token 0 ends a document, and one precedes the first. Row k holds the
T + 1 tokens from k·T on, so that each token but the first is predicted once per epoch.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from transformer.errors import UserError

# Maps positions start..stop of the endless shuffled sequence of rows to the rows' indices.
Order = Callable[[int, int], np.ndarray]
_SLOTS = 10_000  # positions after which the parts of a mixture repeat their pattern


@dataclasses.dataclass(frozen=True, eq=False)
class Data:
  """Batches of one corpus. Rows are int32 [·, T + 1]; −1 is padding, 0 the end of a document.

  Of pairs they are [·, S + T + 1], and such rows from column `source_len` on (data/pairs.py).
  """

  info: dict[str, Any]  # plain JSON: where the text comes from, and how much there is
  fingerprint: str  # equal exactly if the rows are
  tokenizer: Any  # encode, decode, vocab_size; None where there is no text
  held_out_bytes: int  # of UTF-8 text in the held-out set; 0 where there is no text
  batch_size: int
  seq_len: int
  train: tuple[np.ndarray, ...]  # streams of tokens, usually memory-mapped
  held_out: tuple[np.ndarray, ...]  # streams of tokens
  order: Order
  recode: Callable[[np.ndarray], np.ndarray] | None = None  # stored ids -> the model's
  source_len: int = 0  # S

  @functools.cached_property
  def rows(self) -> Rows:
    """All training rows; tokens of a stream that do not fill a last row are left out."""
    return Rows(self.train, self.seq_len)

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
    return self._ids(self.rows[self.order(start, start + share)])

  def token_counts(self, vocab_size: int, most: int = 4_000_000) -> np.ndarray:
    """How often each id occurs in the training rows, (V,); in evenly spread ones where many."""
    step = max(1, len(self.rows) * self.seq_len // most)
    ids = self._ids(self.rows[np.arange(0, len(self.rows), step)])
    return np.bincount(ids[ids >= 0], minlength=vocab_size)

  @property
  def eval_batch_count(self) -> int:
    """Batches in the held-out set."""
    return _ceil(sum(_ceil(len(s) - 1, self.seq_len) for s in self.held_out), self.batch_size)

  def eval_batches(self) -> Iterator[np.ndarray]:
    """The whole held-out set in fixed order, int32 [B, T + 1], filled up with −1."""
    rows = self._held_out_rows()
    while some := list(itertools.islice(rows, self.batch_size)):
      batch = np.full((self.batch_size, self.source_len + self.seq_len + 1), -1, np.int32)
      for row, tokens in zip(batch, some, strict=False):
        row[: len(tokens)] = self._ids(tokens.astype(np.int32))
      yield batch

  def _held_out_rows(self) -> Iterator[np.ndarray]:
    """Rows of T + 1 tokens or, at the end of a stream, less."""
    length = self.seq_len
    return (s[k:][: length + 1] for s in self.held_out for k in range(0, len(s) - 1, length))

  def _ids(self, stored: np.ndarray) -> np.ndarray:
    return self.recode(stored) if self.recode else stored


class Rows:
  """The rows of several streams, one stream's after another's; indexed by an array of numbers."""

  def __init__(self, streams: Sequence[np.ndarray], length: int):
    self._length = length
    self._views = [self._view(stream) for stream in streams]
    self.counts = [len(view) for view in self._views]
    self._starts = np.cumsum([0, *self.counts])

  def __len__(self) -> int:
    return int(self._starts[-1])

  def __getitem__(self, indices: np.ndarray) -> np.ndarray:
    """Rows, int32 [n, T + 1]. One gather a stream: half the time of row by row."""
    stream = np.searchsorted(self._starts, indices, 'right') - 1
    out = np.empty((len(indices), self._length + 1), np.int32)
    for k in np.unique(stream):
      chosen = stream == k
      out[chosen] = self._views[k][indices[chosen] - self._starts[k]]
    return out

  def _view(self, stream: np.ndarray) -> np.ndarray:
    if len(stream) <= self._length:
      return np.empty((0, self._length + 1), stream.dtype)
    return np.lib.stride_tricks.sliding_window_view(stream, self._length + 1)[:: self._length]


def grain_order(rows: int, seed: int, part: int = 0) -> Order:
  """Every epoch visits each row once, in an order of its own."""

  @functools.cache
  def shuffled() -> Any:
    import grain

    # grain shuffles epoch e with seed + e: unhashed, seed 1 would repeat what seed 0 does later.
    mixed = _mixed(f'{seed} {part}' if part else f'{seed}')
    return grain.MapDataset.range(rows).shuffle(seed=mixed).repeat()

  # Indices alone pass through grain; `Rows` fetches the rows.
  return lambda start, stop: np.array([shuffled()[p] for p in range(start, stop)])


def numpy_order(rows: int, seed: int) -> Order:
  """The same promise as `grain_order` (another order) where there is only NumPy."""

  @functools.lru_cache(maxsize=2)
  def permutation(epoch: int) -> np.ndarray:
    return np.random.default_rng((seed, epoch)).permutation(rows)

  def order(start: int, stop: int) -> np.ndarray:
    return np.array([permutation(p // rows)[p % rows] for p in range(start, stop)])

  return order


def mixed_order(rows: Sequence[int], weights: Sequence[float], seed: int) -> Order:
  """Parts of so many rows, each in its own order and its share of the positions, evenly spread.

  weights: add up to 1, and hold to a ten-thousandth. A part begins anew when it is through.
  """
  orders = [grain_order(n, seed, part) for part, n in enumerate(rows)]
  starts = np.cumsum([0, *rows])
  quota = np.maximum(1, np.round(np.asarray(weights) * _SLOTS)).astype(int)
  places = np.concatenate([(np.arange(q) + 0.5) / q for q in quota])  # when in a round of 0 to 1
  by_place = np.argsort(places, kind='stable')
  part_of = np.repeat(np.arange(len(quota)), quota)[by_place]
  turn_of = np.concatenate([np.arange(q) for q in quota])[by_place]

  def order(start: int, stop: int) -> np.ndarray:
    turns, slots = np.divmod(np.arange(start, stop), len(part_of))
    parts = part_of[slots]
    positions = turns * quota[parts] + turn_of[slots]
    out = np.empty(stop - start, np.int64)
    for k in np.unique(parts):
      mine = positions[parts == k]  # consecutive numbers
      out[parts == k] = starts[k] + orders[k](int(mine[0]), int(mine[-1]) + 1)
    return out

  return order


def fingerprint(digest: str, seq_len: int) -> str:
  """Names the rows that streams of this digest make at this length."""
  return hashlib.sha256(f'{digest} seq_len={seq_len}'.encode()).hexdigest()[:16]


def check_size(rows: Rows, tokens: int, source: str, batch: int, length: int) -> None:
  """Raises UserError if the training rows do not fill one batch."""
  if len(rows) < batch:
    raise UserError(
      f'--data.source={source}: {tokens:,} training tokens; one batch of '
      f'--data.batch_size={batch} rows of --data.seq_len={length} needs {batch * length + 1:,}'
    )


def token_type(vocab_size: int) -> type:
  """The smallest type that holds the ids."""
  return np.uint16 if vocab_size <= 2**16 else np.uint32


def _mixed(text: str) -> int:
  return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], 'big')


def _ceil(a: int, b: int) -> int:
  return -(-a // b)
