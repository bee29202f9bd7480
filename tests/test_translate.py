"""Decoded held-out sources: which, what by, and what they score; how a run keeps the scores."""

from __future__ import annotations

import functools
import json
from pathlib import Path

import jax
import numpy as np
import pytest

from tests import battery
from tests.processes import rows
from transformer import data, model, train, translate
from transformer.config import Config

SCORES = ('eval/exact_match', 'eval/bleu', 'eval/chrf')


def config_of(folder: Path, **changes: object) -> Config:
  """A tiny encoder-decoder of bytes on a file of pairs: letters, and the same ones doubled."""
  path = folder / 'pairs.tsv'
  if not path.exists():
    rng = np.random.default_rng(0)
    words = [''.join(rng.choice(list('abc'), 1 + k % 5)) + f'{k:02}' for k in range(90)]
    path.write_text(''.join(f'{w}\t{w[0]}{w}\n' for w in words))
  told = {
    'model.architecture': 'encoder_decoder',
    'model.vocab_size': 0,
    'model.num_layers': 1,
    'data.source': f'pairs:{path}',
    'data.tokenizer': 'byte',
    'data.held_out': 0.3,
    'data.source_len': 12,
    'data.seq_len': 10,
    'train.steps': 4,
    'train.decoded': 11,
    'train.ffn_statistics': False,
  }
  return battery.tiny(**told | changes)


def test_the_chosen_are_evenly_spread_each_once() -> None:
  assert translate.spread(7, 3).tolist() == [0, 3, 6]
  assert translate.spread(7, 100).tolist() == list(range(7))
  assert translate.spread(1, 5).tolist() == [0]
  assert len(translate.spread(1000, 256)) == 256


def test_scores_by_hand() -> None:
  """BLEU: (4/5 · 3/4 · 2/3 · 1/2)^¼. chrF: orders 1 to 3 share 2/3, 1/2 and 0 of 'abc', 'abd'."""
  scores, signatures = translate.measured(['a b c d e'], ['a b c d f'])
  assert scores['bleu'] == pytest.approx(100 * (4 / 5 * 3 / 4 * 2 / 3 * 1 / 2) ** 0.25)
  scores, _ = translate.measured(['abc'], ['abd'])
  assert scores['chrf'] == pytest.approx(100 * (2 / 3 + 1 / 2 + 0) / 3)
  scores, _ = translate.measured(['a b c d e', 'x', 'y', ''], ['a b c d e', 'X', 'y.', 'z'])
  assert scores['exact_match'] == 25
  assert signatures['bleu'].startswith('nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp')
  assert signatures['chrf'].startswith('nrefs:1|case:mixed|eff:yes|nc:6|nw:0|space:no')


def test_bleu_is_of_the_whole_set_and_short_texts_pay() -> None:
  """Matches 4+2, 3+1, 2, 1 of 5+2, 4+1, 3, 2 n-grams; 7 words for 9: exp(1 − 9/7)."""
  hypotheses, references = ['a b c d e', 'f g'], ['a b c d x', 'f g h i']
  scores, _ = translate.measured(hypotheses, references)
  mean = (6 / 7 * 4 / 5 * 2 / 3 * 1 / 2) ** 0.25
  assert scores['bleu'] == pytest.approx(100 * np.exp(1 - 9 / 7) * mean)


@functools.partial(jax.jit, static_argnums=0)
def logits(config: Config, params: dict, *tokens: jax.Array) -> jax.Array:
  return model.build(config).apply({'params': params}, *tokens)[0]


def greedily(config: Config, params: dict, source: np.ndarray) -> list[int]:
  """Token by token from the whole forward pass, without padding or a batch."""
  target = np.zeros((1, config.data.seq_len), np.int32)  # what follows a token is never looked at
  for t in range(config.data.seq_len):
    best = int(np.argmax(logits(config, params, source[None], target)[0, t]))
    if best == 0 or t + 1 == config.data.seq_len:
      return [*target[0, 1 : t + 1], *([best] if best else [])]
    target[0, t + 1] = best


def telling(params: dict) -> dict:
  """The same, but that it says letters of what it was given, and is not sure to end."""
  likely = np.isin(np.arange(257), [0, *(ord(c) + 1 for c in 'abcdefgh')])
  table_VD = np.float32(np.where(likely[:, None], params['unembed']['table'], 0))
  params = {**params, 'unembed': {'table': table_VD}}
  params['layers'] = jax.tree.map(lambda x: 3 * x, params['layers'])
  return jax.device_put(params)


def test_hypotheses_are_those_of_each_source_alone(tmp_path: Path) -> None:
  """Whatever it was batched with: 11 ragged sources, 8 a batch."""
  config = config_of(tmp_path, **{'model.tied': False})
  loaded, params = data.load(config), telling(battery.weights(config))
  scores = translate.score(config, params, loaded, tmp_path, lambda: None)
  told = json.loads((tmp_path / translate.FILE).read_text())
  pairs = loaded.held_out_texts()
  chosen = translate.spread(len(pairs), 11)
  assert (told['decoded'], told['held_out'], len(told['samples'])) == (11, len(pairs), 11)
  assert [(s['source'], s['reference']) for s in told['samples']] == [pairs[k] for k in chosen]

  def expected(params: dict) -> list[str]:
    sources = (np.frombuffer(pairs[k][0].encode(), np.uint8) + np.int32(1) for k in chosen)
    return [loaded.tokenizer.decode(greedily(config, params, ids)) for ids in sources]

  found = [s['hypothesis'] for s in told['samples']]
  assert found == expected(params) and len(set(found)) > 5
  other = {**params, 'embed': {'table': params['embed']['table'][:, ::-1]}}
  assert found != expected(other)  # negative control
  again, _ = translate.measured(found, [pairs[k][1] for k in chosen])
  assert scores == {f'eval/{name}': value for name, value in again.items()}


@pytest.mark.exhaustive
@pytest.mark.parametrize('mode', [pytest.param('pmap', marks=pytest.mark.exhaustive), 'mesh'])
def test_scores_are_part_of_the_last_row_whatever_lays_out_the_run(
  tmp_path: Path, mode: str
) -> None:
  mesh = {'pmap': '', 'mesh': 'data:2,fsdp:2'}[mode]
  config = config_of(
    tmp_path, **{'parallel.mode': mode, 'parallel.mesh': mesh, 'train.eval_every': 2}
  )
  folder = tmp_path / 'run'
  folder.mkdir()
  done = train.run(config, folder)
  first, last = [row for row in rows(folder) if 'eval/loss' in row]
  assert set(first) == {'step', 'eval/loss', 'eval/bits_per_byte'}
  assert set(last) == {*first, *SCORES}
  assert {name: done[name] for name in SCORES} == {name: last[name] for name in SCORES}
  text = (folder / translate.FILE).read_text()

  # Resumed after its last step, it takes them from its rows.
  (folder / translate.FILE).write_text('kept')
  assert train.run(config, folder)['eval/chrf'] == done['eval/chrf']
  assert (folder / translate.FILE).read_text() == 'kept'

  # A run that was stopped halfway ends as one that was not.
  class Stop(train.Control):
    stop = True

  other = tmp_path / 'stopped'
  other.mkdir()
  with pytest.raises(train.Stopped):
    train.run(config, other, Stop())
  again = train.run(config, other)
  assert {k: again[k] for k in last if k != 'step'} == {k: last[k] for k in last if k != 'step'}
  assert (other / translate.FILE).read_text() == text


def test_nothing_is_decoded_unless_there_are_texts_and_they_are_wanted(tmp_path: Path) -> None:
  config = config_of(tmp_path)
  assert translate.wanted(config, data.load(config))
  off = config_of(tmp_path, **{'train.decoded': 0})
  assert not translate.wanted(off, data.load(off))
  ahead = config.replace(
    **{'moe.experts': 2, 'moe.router': 'expert_choice', 'moe.allow_noncausal': True}
  )
  assert not translate.wanted(ahead, data.load(ahead))
  numbers = config_of(tmp_path, **{'data.source': 'synthetic', 'model.vocab_size': 32})
  assert not translate.wanted(numbers, data.load(numbers))
  text = battery.tiny(**{'train.decoded': 11})
  assert not translate.wanted(text, data.load(text)) and text.train.decoded == 256
