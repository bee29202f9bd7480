"""From an original's ids to those of a run, where 0 ends a document, and back."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from transformer import axes, spec
from transformer.config import Config, tokenizer_file


def end_of(config: Config, home: Path | None) -> int | None:
  """The original's id that ends a document, None where it has none.

  home: the folder of tokenizer.json. Without one --data.source tells, which for files of ids has
  the end that was exchanged with 0; other ids are the original's own.
  """
  if home and (home / 'tokenizer.json').exists():
    return tokenizer_file.read(home / 'tokenizer.json', str(home / 'tokenizer.json')).end
  source = spec.parse('data.source', config.data.source)
  if source.variant != 'tokens':
    return 0
  return None if source.eos < 0 else source.eos


def into_run(config: Config, params: dict, end: int | None) -> tuple[Config, dict]:
  """A resolved config and parameters with rows rearranged for the ids of a run.

  end: the original's id that ends a document; it and 0 change places. Without one all ids go up by
  one, and the new row is the mean of the others: as a logit it is never the largest.
  """
  vocab = config.model.vocab_size
  ours = np.array(tokenizer_file.rearranged(vocab, end))

  def rows(x: np.ndarray) -> np.ndarray:
    out = np.empty((vocab + (end is None), *x.shape[1:]), x.dtype)
    out[0] = x.mean(axis=0, dtype=np.float64)
    out[ours] = x
    return out

  changes = {'model.vocab_size': vocab + (end is None)}
  if config.data.mask_token >= 0:
    changes['data.mask_token'] = int(ours[config.data.mask_token])
  return config.replace(**changes), _map_rows(params, rows)


def out_of_run(config: Config, params: dict, end: int | None) -> tuple[Config, dict]:
  """Inverse of `into_run`."""
  vocab = config.model.vocab_size - (end is None)
  ours = np.array(tokenizer_file.rearranged(vocab, end))
  changes = {'model.vocab_size': vocab}
  if config.data.mask_token >= 0:
    changes['data.mask_token'] = int(np.flatnonzero(ours == config.data.mask_token)[0])
  return config.replace(**changes), _map_rows(params, lambda x: np.asarray(x)[ours])


def _map_rows(tree: dict, function: Callable[[np.ndarray], np.ndarray], prefix: str = '') -> dict:
  """A copy of a parameter tree, with a function of each leaf that has a row a vocabulary entry."""
  out = {}
  for name, value in tree.items():
    path = f'{prefix}{name}'
    if isinstance(value, dict):
      out[name] = _map_rows(value, function, f'{path}/')
    else:
      out[name] = function(value) if axes.letters(path)[0] == 'V' else value
  return out
