"""Random tokens of a fixed first-order Markov chain: NumPy alone, no files.

From each token lead eight successors, found by hashing (no V × V table), with probability ½, ¼, ….
A counter and a hash are the only randomness, so that every machine makes the same tokens.
"""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np

from transformer.config import Config
from transformer.config.data import wants_pairs
from transformer.data import batches, pairs
from transformer.errors import UserError

_LENGTH = 128  # of a document, its end included
_CHOICE = np.array([(n & -n).bit_length() - 1 if n else 7 for n in range(128)], np.uint64)


def synthetic(declared: Any, config: Config) -> batches.Data:
  """`declared.rows` training rows of a vocabulary of --model.vocab_size, and a held-out share."""
  vocab, length = config.model.vocab_size, config.data.seq_len
  if vocab < 2:
    raise UserError(f'--model.vocab_size={vocab}: synthetic data needs at least 2')
  held_out_rows = max(1, round(declared.rows * config.data.held_out))
  if wants_pairs(config):
    return _reversals(declared.rows, held_out_rows, config)
  train = chain(declared.rows * length + 1, vocab, first=0)
  held_out = chain(held_out_rows * length + 1, vocab, first=2**32)
  digest = hashlib.sha256(train.tobytes() + held_out.tobytes()).hexdigest()
  return batches.Data(
    info=dict(
      source=config.data.source,
      vocab_size=vocab,
      train_tokens=len(train),
      held_out_tokens=len(held_out),
      held_out_bytes=0,
    ),
    fingerprint=batches.fingerprint(digest, length),
    tokenizer=None,
    held_out_bytes=0,
    batch_size=config.data.batch_size,
    seq_len=length,
    train=(train,),
    held_out=(held_out,),
    order=batches.numpy_order(declared.rows, config.seed),
  )


def _reversals(rows: int, held_out_rows: int, config: Config) -> pairs.Pairs:
  """Pieces of the chain and, as their targets, the same tokens from the last to the first.

  Their lengths go from half of what fits to all of it.
  """
  longest, vocab = min(config.data.source_len, config.data.seq_len - 1), config.model.vocab_size
  if longest < 1:
    raise UserError('--data.seq_len=1: a synthetic target and its end need at least 2')

  def side(count: int, first: int) -> pairs.PairRows:
    numbers = np.arange(first, first + count, dtype=np.uint64)
    lengths = longest - (_mix(numbers) % np.uint64(longest // 2 + 1)).astype(np.int64)
    total = int(lengths.sum())
    tokens = chain(total + total // (_LENGTH - 1) + 2, vocab, first)  # of which some are ends
    pieces = np.split(tokens[tokens > 0][:total], np.cumsum(lengths)[:-1])
    end = np.zeros(1, tokens.dtype)
    stream = np.concatenate([end, *(part for p in pieces for part in (p, end, p[::-1], end))])
    return pairs.PairRows(stream, np.cumsum([0, *np.repeat(lengths + 1, 2)]), None, config)

  train, held_out = side(rows, 0), side(held_out_rows, 2**32)
  digest = hashlib.sha256(train.tokens.tobytes() + held_out.tokens.tobytes()).hexdigest()
  info = dict(source=config.data.source, vocab_size=vocab)
  return pairs.batched(train, held_out, config, batches.numpy_order, info, digest)


def chain(tokens: int, vocab: int, first: int) -> np.ndarray:
  """A stream of `tokens` ids, from document number `first` on; 1..vocab-1, and 0 between."""
  documents = np.arange(first, first + -(-tokens // _LENGTH), dtype=np.uint64)
  out = np.zeros((len(documents), _LENGTH), batches.token_type(vocab))
  state = _mix(documents)
  for t in range(1, _LENGTH):
    chosen = _CHOICE[_mix(documents * np.uint64(_LENGTH) + np.uint64(t)) & np.uint64(127)]
    state = _mix(state * np.uint64(8) + chosen) % np.uint64(vocab - 1) + np.uint64(1)
    out[:, t] = state
  return out.reshape(-1)[:tokens]


def _mix(x: np.ndarray) -> np.ndarray:
  """splitmix64's finaliser (Steele et al. 2014), a bijection of uint64."""
  x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
  x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
  return x ^ (x >> np.uint64(31))
