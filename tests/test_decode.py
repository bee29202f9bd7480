"""Decoding against the model asked token by token, and the law of its draws."""

from __future__ import annotations

from pathlib import Path

import jax
import numpy as np
import pytest

from tests import battery
from transformer import decode, model, params
from transformer.errors import UserError

CONFIG = battery.tiny(**{'model.vocab_size': 11, 'data.tokenizer': 'byte', 'data.seq_len': 6})
PARAMS = jax.tree.map(lambda x: 1.5 * x, params.initialize(CONFIG, jax.random.key(0)))
PROMPT = np.array([0, 3, 7])


@jax.jit
def logits_of(tokens: np.ndarray) -> jax.Array:
  return model.build(CONFIG).apply({'params': PARAMS}, tokens)[0]


def last_logits(tokens: list[int]) -> np.ndarray:
  return np.asarray(logits_of(np.array([tokens], np.int32))[0, -1])


def greedily(steps: int) -> list[int]:
  """The most likely continuation, each time from the last seq_len tokens and no padding."""
  tokens = list(PROMPT)
  for _ in range(steps):
    token = int(np.argmax(last_logits(tokens[-CONFIG.data.seq_len :])))
    if token == 0:
      break
    tokens.append(token)
  return tokens[len(PROMPT) :]


def test_greedy_is_the_argmax_of_the_last_position_also_past_the_context() -> None:
  expected = greedily(12)
  assert len(expected) > CONFIG.data.seq_len - len(PROMPT)  # else the window never slid
  assert list(decode.generate(CONFIG, PARAMS, PROMPT, 12)) == expected


def test_a_temperature_near_zero_is_greedy() -> None:
  assert list(decode.generate(CONFIG, PARAMS, PROMPT, 8, temperature=1e-4, seed=3)) == greedily(8)


@pytest.mark.parametrize('temperature', [0.7, 2.0])
def test_draws_follow_the_softmax_at_a_temperature(temperature: float) -> None:
  logits = last_logits(list(PROMPT)).astype(np.float64) / temperature
  expected = np.exp(logits - logits.max())
  expected /= expected.sum()
  draws = 400
  counts = np.zeros(len(expected))
  for seed in range(draws):  # no token at all means that the end of the document was drawn
    first = list(decode.generate(CONFIG, PARAMS, PROMPT, 1, temperature, seed))
    counts[first[0] if first else 0] += 1
  deviation = np.sqrt(expected * (1 - expected) / draws)
  assert np.all(np.abs(counts / draws - expected) < 4 * deviation + 1e-9)


def test_it_ends_with_the_document() -> None:
  # Every row of the table is 0 but that of the end, so its logit is the only one above 0.
  width = CONFIG.model.d_model
  table_VD = np.zeros((CONFIG.model.vocab_size, width), np.float32)
  table_VD[0] = 1.0
  ended = {**PARAMS, 'embed': {'table': table_VD}}
  ended['layers'] = jax.tree.map(np.zeros_like, PARAMS['layers'])
  assert list(decode.generate(CONFIG, ended, np.array([0]), 5)) == []
  ended['embed'] = {'table': np.roll(table_VD, 1, axis=0)}  # now token 1 is the likely one
  assert list(decode.generate(CONFIG, ended, np.array([1]), 5)) == [1] * 5


def test_a_folder_without_a_run_is_refused(tmp_path: Path) -> None:
  with pytest.raises(UserError) as e:
    decode.open_cell(tmp_path)
  assert str(e.value) == (
    f'--checkpoint={tmp_path}: no config.json in it; give the folder of a run'
  )
