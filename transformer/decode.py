"""Decoding: the next token from softmax(W_O z) of the last position, again and again."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np

from transformer import metrics, model
from transformer.checkpoint import load_params
from transformer.config import Config
from transformer.errors import UserError
from transformer.runs import cell_folder, read_config, saved_steps

if TYPE_CHECKING:
  from transformer.data.tokenizers import Byte, Subword


def open_cell(folder: Path, which: str = 'newest') -> tuple[Config, dict, int]:
  """(config, parameters, step) of a checkpoint of a run.

  which: 'newest', 'best' (lowest eval/loss) or a step. Raises UserError naming the flag or folder.
  """
  folder = cell_folder(folder)
  config = read_config(folder)
  step, params = load_params(folder / 'checkpoints', _step(folder, which))
  return config, params, step


def _step(folder: Path, which: str) -> int | None:
  if which == 'newest':
    return None
  if which.isdecimal():
    return int(which)
  if which != 'best':
    raise UserError(f'--step={which}: choose newest, best or a step')
  saved = saved_steps(folder / 'checkpoints')
  rows = [r for r in metrics.read(folder / metrics.FILE) if r['step'] in saved]
  rows = [row for row in rows if row.get('eval/loss') is not None]
  return min(rows, key=lambda row: row['eval/loss'])['step'] if rows else None


def generate(config, params, prompt, new_tokens, temperature=0.0, seed=0, sources=None):
  """Stands in until there is a cache: `_stream`, or greedily from sources."""
  if sources is None:
    return _stream(config, params, prompt, new_tokens, temperature, seed)
  source_BS = np.full((config.data.batch_size, config.data.source_len), -1, np.int32)
  for row, ids in zip(source_BS, sources, strict=False):
    row[: len(ids)] = ids
  target_BT = np.full((config.data.batch_size, new_tokens + 1), -1, np.int32)
  target_BT[:, 0] = 0
  params = jax.device_put(params)
  for i in range(new_tokens):
    target_BT[:, i + 1] = _next_of_pairs(config, params, source_BS, target_BT[:, :-1], np.int32(i))
    if np.all(np.any(target_BT[:, 1:] == 0, axis=1)[: len(sources)]):
      break
  ended = ((row, np.flatnonzero(row[1:] <= 0)) for row in target_BT[: len(sources)])
  return [row[1:][: end[0] if len(end) else None] for row, end in ended]


@functools.partial(jax.jit, static_argnums=0)
def _next_of_pairs(config, params, source_BS, target_BT, last):
  logits_BTV, _ = model.build(config).apply({'params': params}, source_BS, target_BT)
  return jnp.argmax(logits_BTV[:, last], axis=-1)


def _stream(
  config: Config,
  params: dict,
  prompt: np.ndarray,
  new_tokens: int,
  temperature: float = 0.0,
  seed: int = 0,
) -> Iterator[int]:
  """Yields up to `new_tokens` token ids that continue `prompt`; stops before end-of-document.

  prompt: int ids (n,). Each token is drawn from softmax(logits / temperature) of the last position;
  temperature 0 takes the most likely. Only the last data.seq_len tokens are looked at.
  """
  window = config.data.seq_len
  params, key = jax.device_put(params), jax.random.key(seed)
  tokens = [int(t) for t in prompt]
  for i in range(new_tokens):
    seen = tokens[-window:]
    padded = np.zeros((1, window), np.int32)  # what follows the last token is never looked at
    padded[0, : len(seen)] = seen
    last, own = np.int32(len(seen) - 1), jax.random.fold_in(key, i)
    token = int(_draw(config, params, padded, last, own, np.float32(temperature)))
    if token == 0:
      return
    tokens.append(token)
    yield token


@functools.partial(jax.jit, static_argnums=0)
def _draw(
  config: Config,
  params: dict,
  tokens_1T: jax.Array,
  last: jax.Array,
  key: jax.Array,
  temperature: jax.Array,
) -> jax.Array:
  """A token after position `last`."""
  logits_BTV, _ = model.build(config).apply({'params': params}, tokens_1T)
  logits_V = logits_BTV[0, last]
  drawn = jax.random.categorical(key, logits_V / jnp.maximum(temperature, 1e-6))
  return jnp.where(temperature > 0.0, drawn, jnp.argmax(logits_V))


def open_tokenizer(folder: Path) -> Byte | Subword:
  """The tokenizer a run was trained with. Raises UserError if its data were no text."""
  from transformer.data import tokenizers

  path = cell_folder(folder) / 'tokenizer.json'
  if not path.exists():
    raise UserError(f'--checkpoint={folder}: has no tokenizer.json; it was not trained on text')
  return tokenizers.load(path)
