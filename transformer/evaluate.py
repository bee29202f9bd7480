"""Loss of a model token by token: what each target costs, and sums of it by group of documents."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from transformer import model, objective
from transformer.config import Config


@dataclasses.dataclass
class Score:
  """Sums over some targets; `bytes` of UTF-8 text, 0 where there is none."""

  nats: float = 0.0
  tokens: int = 0
  bytes: int = 0


@functools.partial(jax.jit, static_argnums=0)
def per_token_nats(config: Config, params: dict, tokens: jax.Array) -> jax.Array:
  """−ln p of each target, float32 (B, T); 0 on padding.

  tokens: int32 (B, T+1), −1 is padding. Target t is token t + 1, seen from its row up to t.
  """
  inputs_BT, targets_BT, weights_BT, segments_BT = objective.split(tokens)
  logits_BTV, _ = model.build(config).apply({'params': params}, inputs_BT, segments_BT)
  log_p_BTV = jax.nn.log_softmax(logits_BTV)
  targets_BT = jnp.maximum(targets_BT, 0)
  return -weights_BT * jnp.take_along_axis(log_p_BTV, targets_BT[..., None], axis=-1)[..., 0]


def windows(
  chunks: Iterable[tuple[int, np.ndarray]], length: int, stride: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
  """Rows over a stream, one each `stride` tokens, that together score each token but the first.

  chunks: (group, ids), which joined are the stream. Yields int32 (T+1,) tokens, −1 past the end,
  and int (T,): the group of a target that this row scores, −1 elsewhere. Each target has the
  T − stride tokens before it in its row, or all there are. At stride = T these are the rows that
  training evaluates.
  """
  tokens, groups = np.zeros(0, np.int32), np.zeros(0, np.int64)
  seen = 0  # targets of the next row that the row before it has scored

  def row() -> tuple[np.ndarray, np.ndarray]:
    window, scored = np.full(length + 1, -1, np.int32), np.full(length, -1, np.int64)
    window[: len(tokens)] = tokens[: length + 1]
    scored[seen : len(tokens) - 1] = groups[1 + seen : length + 1]
    return window, scored

  for group, ids in chunks:
    tokens = np.concatenate([tokens, ids]).astype(np.int32)
    groups = np.concatenate([groups, np.full(len(ids), group)])
    while len(tokens) > length:
      yield row()
      tokens, groups, seen = tokens[stride:], groups[stride:], length - stride
  if len(tokens) > seen + 1:
    yield row()


def score(
  config: Config,
  params: dict,
  chunks: Iterable[tuple[Hashable, np.ndarray]],
  stride: int,
) -> dict[Hashable, Score]:
  """Nats and targets by group over one stream, given in chunks (group, ids).

  The first token of the stream is not scored. stride: as of `windows`.
  """
  numbers: dict[Hashable, int] = defaultdict(itertools.count().__next__)
  found: dict[int, Score] = defaultdict(Score)
  numbered = ((numbers[group], ids) for group, ids in chunks)
  rows = windows(numbered, config.data.seq_len, stride)
  params = jax.device_put(params)
  pending: list[tuple[jax.Array, np.ndarray]] = []
  while some := list(itertools.islice(rows, config.data.batch_size)):
    batch = np.full((config.data.batch_size, config.data.seq_len + 1), -1, np.int32)
    batch[: len(some)] = [window for window, _ in some]
    pending.append((per_token_nats(config, params, batch), np.stack([s for _, s in some])))
    if len(pending) > 1:  # one batch is cut while another is computed
      _add(found, *pending.pop(0))
  for nats_and_groups in pending:
    _add(found, *nats_and_groups)
  return {group: found[number] for group, number in numbers.items() if number in found}


def score_text(
  config: Config,
  params: dict,
  tokenizer: Any,
  documents: Iterable[tuple[Hashable, str]],
  stride: int,
) -> dict[Hashable, Score]:
  """`score` of (group, text), packed as training packs them: 0 doc 0 doc … 0."""
  sizes: Counter[Hashable] = Counter()

  def chunks() -> Iterator[tuple[Hashable, np.ndarray]]:
    yield None, np.zeros(1, np.int32)
    remaining = iter(documents)
    while some := list(itertools.islice(remaining, 64)):
      for (group, text), ids in zip(some, tokenizer.encode([t for _, t in some]), strict=True):
        sizes[group] += len(text.encode())
        yield group, np.append(ids, 0)

  found = score(config, params, chunks(), stride)
  for group, size in sizes.items():
    found[group].bytes = size
  return found


def _add(found: dict[int, Score], nats: jax.Array, groups: np.ndarray) -> None:
  nats_BT = np.asarray(nats, np.float64)[: len(groups)]
  there, place = np.unique(groups, return_inverse=True)
  sums = np.bincount(place.ravel(), nats_BT.ravel())
  for group, total, count in zip(there, sums, np.bincount(place.ravel()), strict=True):
    if group >= 0:
      found[int(group)].nats += float(total)
      found[int(group)].tokens += int(count)
