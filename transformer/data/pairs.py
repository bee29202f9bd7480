"""Rows of pairs of a source and a target, for an encoder-decoder.

A row is int32 [S + T + 1]: the source, −1 up to S, then `0 target 0`, −1 up to the end. Columns
from S on are a row like any other: a 0 that predicts the target's first token, and targets of which
the last is the 0 that ends it. Nothing is cut: a pair whose source has more than S tokens, or whose
target and its end have more than T, is left out and counted.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from transformer.config import Config
from transformer.data import batches, stream
from transformer.errors import UserError

if TYPE_CHECKING:
  from transformer.data.packed import Packed

Texts = list[tuple[str, str]]  # sources and targets


class PairRows:
  """Rows of the pairs of a stream `0 source 0 target 0 …` that fit; indexed by an array of numbers.

  ends: places of the tokens 0. sizes: bytes of each text, None where there is none.
  """

  def __init__(
    self, tokens: np.ndarray, ends: np.ndarray, sizes: np.ndarray | None, config: Config
  ):
    self.tokens, self._ends = tokens, ends
    self._source_len, self._seq_len = config.data.source_len, config.data.seq_len
    lengths = np.diff(ends)
    self._sources, self._targets = lengths[::2] - 1, lengths[1::2]  # with the 0 after it
    fits = (self._sources <= self._source_len) & (self._targets <= self._seq_len)
    self.chosen = np.flatnonzero(fits)
    self.counts = {
      'pairs': len(self.chosen),
      'pairs_too_long': len(fits) - len(self.chosen),
      'source_tokens': int(self._sources[fits].sum()),
      'tokens': int(self._targets[fits].sum()),
      'bytes': 0 if sizes is None else int(sizes[1::2][fits].sum()),
    }

  def __len__(self) -> int:
    return len(self.chosen)

  def __getitem__(self, indices: np.ndarray) -> np.ndarray:
    """Rows, int32 [n, S + T + 1]."""
    first = 2 * self.chosen[indices]
    start, middle, end = (self._ends[first + k] for k in range(3))
    source = self._span(start + 1, middle, self._source_len)
    return np.concatenate([source, self._span(middle, end + 1, self._seq_len + 1)], axis=1)

  def _span(self, start: np.ndarray, stop: np.ndarray, width: int) -> np.ndarray:
    places = start[:, None] + np.arange(width)
    inside = places < stop[:, None]
    return np.where(inside, self.tokens[np.where(inside, places, 0)].astype(np.int32), -1)

  def check(self, least: int, which: str, source: str) -> None:
    """Raises UserError if fewer than `least` pairs fit."""
    fitting = f'--data.source_len={self._source_len} and --data.seq_len={self._seq_len}'
    flag, total = f'--data.source={source}', len(self._targets)
    if not len(self):
      medians = [int(np.median(lengths)) for lengths in (self._sources, self._targets)]
      raise UserError(
        f'{flag}: none of the {total:,} {which} pairs fits {fitting}; their medians are '
        f'{medians[0]} and {medians[1]} tokens'
      )
    if len(self) < least:
      raise UserError(
        f'{flag}: {len(self):,} of {total:,} {which} pairs fit {fitting}; one batch needs '
        f'--data.batch_size={least}'
      )


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Pairs(batches.Data):
  """Batches of pairs. Rows are int32 [·, S + T + 1]; `held_out_bytes` are those of targets."""

  pairs: PairRows
  held_out_pairs: PairRows
  texts: Callable[[], Texts]

  @property
  def rows(self) -> PairRows:
    """All training rows."""
    return self.pairs

  @property
  def eval_batch_count(self) -> int:
    """Batches in the held-out set."""
    return -(-len(self.held_out_pairs) // self.batch_size)

  def held_out_texts(self) -> Texts:
    """Sources and targets in the order of the held-out rows; none where there is no text."""
    return self.texts()

  def _held_out_rows(self) -> Iterator[np.ndarray]:
    size = self.batch_size
    for k in range(0, len(self.held_out_pairs), size):
      yield from self.held_out_pairs[np.arange(k, min(k + size, len(self.held_out_pairs)))]


def data(made: Packed, config: Config) -> Pairs:
  """Batches of packed pairs. Raises UserError if too few of them fit."""
  streams = (made.train[0], made.held_out)
  train, held_out = (
    PairRows(*side, config) for side in zip(streams, made.ends, made.sizes, strict=True)
  )
  return batched(
    train,
    held_out,
    config,
    batches.grain_order,
    info=made.info,
    digest=made.info['digest'],
    tokenizer=made.tokenizer,
    texts=lambda: _texts(made.folder / stream.KEPT, made.sizes[1], held_out.chosen),
  )


def batched(
  train: PairRows,
  held_out: PairRows,
  config: Config,
  order: Callable[[int, int], batches.Order],
  info: dict[str, Any],
  digest: str,
  tokenizer: Any = None,
  texts: Callable[[], Texts] = list,
) -> Pairs:
  """Batches of the pairs of both sides that fit; what fits and what does not is added to `info`.

  order: makes one of a number of rows and a seed. Raises UserError if too few fit.
  """
  size, length, source_len = config.data.batch_size, config.data.seq_len, config.data.source_len
  train.check(size, 'training', config.data.source)
  held_out.check(1, 'held-out', config.data.source)
  sides = {'train': train, 'held_out': held_out}
  return Pairs(
    info=info | {f'{side}_{k}': n for side, rows in sides.items() for k, n in rows.counts.items()},
    fingerprint=batches.fingerprint(f'{digest} source_len={source_len}', length),
    tokenizer=tokenizer,
    held_out_bytes=held_out.counts['bytes'],
    batch_size=size,
    seq_len=length,
    source_len=source_len,
    train=(train.tokens,),
    held_out=(held_out.tokens,),
    order=order(len(train), config.seed),
    pairs=train,
    held_out_pairs=held_out,
    texts=texts,
  )


def _texts(path: Path, sizes: np.ndarray, chosen: np.ndarray) -> Texts:
  """Sources and targets of the chosen pairs, out of the texts joined."""
  joined, ends = path.read_bytes(), np.cumsum([0, *sizes])

  def text(k: int) -> str:
    return joined[ends[k] : ends[k + 1]].decode()

  return [(text(2 * k), text(2 * k + 1)) for k in chosen]
