"""Oracles of the encoder and of the encoder with a decoder, out of the parts in reference.py.

Rows come without padding: what is not there is not looked at.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np

from tests.reference import attention, combine, embed, float64, head, project, stack
from tests.reference_ffn import Note, silent
from transformer.config import Config


def encoder(
  config: Config,
  weights: dict,
  tokens_T: np.ndarray,
  segments_T: np.ndarray,
  types_T: np.ndarray | None = None,
  note: Note = silent,
) -> np.ndarray:
  """logits_TV of one row; every token sees all of its document."""
  weights = float64(weights)
  x_TD = embed(config, weights, tokens_T, segments_T, types_T, note=note)
  x_TD = stack(config, weights, 'layers', x_TD, segments_T, causal=False, note=note)
  return head(config, weights, x_TD, note)


def encoder_decoder(
  config: Config,
  weights: dict,
  source_S: np.ndarray,
  target_T: np.ndarray,
  note: Note = silent,
) -> np.ndarray:
  """logits_TV of one target: each token sees the whole source, itself and the target before."""
  weights = float64(weights)
  one_S, one_T = np.zeros(len(source_S), int), np.zeros(len(target_T), int)
  x_SD = embed(config, weights, source_S, one_S, side='source_', note=note)
  memory_SD = stack(config, weights, 'encoder_layers', x_SD, one_S, causal=False, note=note)

  def cross(layer: dict, note: Note) -> dict[str, Callable]:
    own = layer['cross_attention']
    note = functools.partial(_note_below, note)
    largest = config.model.attention_cap
    return {'cross_attention': lambda x_TD: cross_attention(own, x_TD, memory_SD, largest, note)}

  x_TD = embed(config, weights, target_T, one_T, note=note)
  x_TD = stack(config, weights, 'layers', x_TD, one_T, more=cross, note=note)
  return head(config, weights, x_TD, note)


def cross_attention(
  weights: dict, x_TD: np.ndarray, memory_SD: np.ndarray, largest: float = 0.0, note: Note = silent
) -> np.ndarray:
  """Queries from x, keys and values from the memory, all of which is seen; no positions."""
  query_TNH = project(weights, 'query', x_TD, note)
  key_SKH, value_SKW = (project(weights, name, memory_SD, note) for name in ('key', 'value'))
  all_TS = np.ones((len(x_TD), len(memory_SD)), bool)
  mixed = attention(query_TNH, key_SKH, value_SKW, all_TS, largest=largest, note=note)
  return combine(weights, mixed, note)


def _note_below(note: Note, name: str, x: np.ndarray) -> None:
  note(f'cross_attention/{name}', x)
