"""Decoding: the next token from softmax(W_O z) of the last position, again and again."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np

from transformer import data, model
from transformer.checkpoint import load_params
from transformer.config import Config
from transformer.errors import UserError

if TYPE_CHECKING:
  from transformer.data.tokenizers import Bpe, Byte


def open_cell(folder: Path) -> tuple[Config, dict, int]:
  """(config, parameters, step) of the newest checkpoint of a run.

  folder: a cell's, or that of an experiment with a single cell.
  Raises UserError naming the folder where there is none.
  """
  import json

  cells = sorted((folder / 'cells').glob('*/config.json'))
  if len(cells) > 1:
    names = ', '.join(path.parent.name for path in cells[:3])
    raise UserError(
      f'--checkpoint={folder}: holds {len(cells)} cells; name one, as in '
      f'{folder}/cells/{cells[0].parent.name} (there are {names}{", …" * (len(cells) > 3)})'
    )
  folder = cells[0].parent if cells else folder
  path = folder / 'config.json'
  if not path.exists():
    raise UserError(f'--checkpoint={folder}: no config.json in it; give the folder of a run')
  config = Config.from_json(json.loads(path.read_text(encoding='utf-8')), str(path))
  step, params = load_params(folder / 'checkpoints')
  return config, params, step


def generate(
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


def tokenizer_of(config: Config) -> Byte | Bpe:
  """The tokenizer a run was trained with. Raises UserError for data without text."""
  found = data.load(config).tokenizer
  if found is None:
    raise UserError(f'--data.source={config.data.source}: has no text, so no tokenizer')
  return found
