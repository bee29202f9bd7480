"""Decoding with kept keys and values against the model asked anew for each token; beams; draws."""

from __future__ import annotations

import functools
import itertools
from pathlib import Path

import jax
import numpy as np
import pytest

from tests import battery
from transformer import decode, model
from transformer.config import Config
from transformer.decode import Sampling
from transformer.decode.sampling import restricted
from transformer.errors import UserError

CONFIG = battery.tiny(**{'model.vocab_size': 11, 'data.tokenizer': 'byte', 'data.seq_len': 12})
PARAMS = jax.tree.map(lambda x: 1.5 * x, battery.weights(CONFIG))
PROMPT = np.array([0, 3, 7])
PROMPTS = [PROMPT, np.array([0, 5, 6, 2, 9]), np.array([0])]  # ragged
SOURCES = [np.array([3, 4, 5]), np.array([1]), np.array([9, 8, 7, 6, 5])]
NEW = 6
KINDS = {
  'rotary': {},
  'learned, post': {'model.positions': 'learned', 'model.norm_placement': 'post'},
  'sinusoidal': {'model.positions': 'sinusoidal', 'model.tied': False, 'model.logits_bias': True},
  'alibi, window': {'model.positions': 'alibi', 'model.attention_window': 3},
  'relative, groups': {
    'model.positions': 'relative(buckets=5, max_distance=6)',
    'model.num_heads': 4,
    'model.num_kv_heads': 2,
    'model.v_head_dim': 6,
    'model.qk_norm': True,
    'model.attention_cap': 2.0,
    'ffn.ratios': '1,2',
    'ffn.d_ff': 0,
  },
  'source, shared FFN': {
    'model.architecture': 'encoder_decoder',
    'data.source_len': 7,
    'ffn.shared': True,
    'model.num_kv_heads': 1,
  },
  'source, experts that choose': {
    'model.architecture': 'encoder_decoder',
    'data.source_len': 7,
    'moe.experts': 3,
    'moe.router': 'expert_choice(factor=1.3)',
    'moe.layers': 'none',
    'moe.encoder_layers': 'all',
  },
  'source, relative': {
    'model.architecture': 'encoder_decoder',
    'data.source_len': 7,
    'model.positions': 'relative(buckets=8, max_distance=9)',
    'model.shared_source': False,
    'model.bias': True,
  },
  'source, experts': {
    'model.architecture': 'encoder_decoder',
    'data.source_len': 7,
    'moe.experts': 4,
    'moe.encoder_layers': '0',
    'moe.dispatch': 'capacity',
    'moe.capacity_factor': 4.0,
  },
}


def config_of(kind: str) -> Config:
  return battery.tiny(**{'data.seq_len': 12} | KINDS[kind])


def sources_of(config: Config) -> list[np.ndarray] | None:
  return SOURCES if config.model.architecture == 'encoder_decoder' else None


@functools.cache
def apply(config: Config):
  return jax.jit(lambda p, *x: model.build(config).apply({'params': p}, *x)[0])


def last_logits(config: Config, params: dict, tokens: list[int], source=None) -> np.ndarray:
  """Of one row without padding, from scratch: the oracle."""
  given = ()
  if source is not None:  # padded as in training, for where experts choose the places depend on it
    given = (np.full((1, config.data.source_len), -1, np.int32),)
    given[0][0, : len(source)] = source
  row = np.full((1, 12), -1, np.int32)  # padding behind is not looked at, and spares compiling
  row[0, : len(tokens)] = tokens
  return np.asarray(apply(config)(params, *given, row)[0, len(tokens) - 1])


def greedily(config: Config, params: dict, prompt, steps: int, source=None) -> list[int]:
  tokens = list(prompt)
  for _ in range(steps):
    token = int(np.argmax(last_logits(config, params, tokens, source)))
    if token == 0:
      break
    tokens.append(token)
  return tokens[len(prompt) :]


@pytest.mark.parametrize('kind', KINDS)
def test_kept_and_asked_anew_agree(kind):
  """Greedy over ragged prompts, all in one batch; a beam of one is greedy."""
  config = config_of(kind)
  params, sources = battery.weights(config), sources_of(config)
  asked = sources or [None] * len(PROMPTS)
  expected = [greedily(config, params, p, NEW, s) for p, s in zip(PROMPTS, asked, strict=True)]
  got = decode.generate(config, params, PROMPTS, NEW, sources=sources)
  assert [list(ids) for ids in got] == expected
  beams = decode.beam_search(config, params, PROMPTS, NEW, 1, sources=sources)
  assert [list(found[0].ids) for found in beams] == expected
  stirred = battery.jiggle(params, 0.5, seed=3)  # negative control: other weights, other words
  other = decode.generate(config, stirred, PROMPTS, NEW, sources=sources)
  assert [list(ids) for ids in other] != expected


@pytest.mark.parametrize('kind', ['rotary', 'source, relative'])
def test_probabilities_of_the_next_token(kind):
  """At several temperatures, against the softmax of the logits asked anew."""
  config = config_of(kind)
  params, sources = battery.weights(config), sources_of(config)
  source = None if sources is None else sources[0]
  logits = last_logits(config, params, list(PROMPT), source).astype(np.float64)
  found = decode.next_tokens(config, params, PROMPT, [0, 0.5, 1e9], most=5, source=source)
  order = list(np.argsort(-logits)[:5])
  half = np.exp((logits - logits.max()) / 0.5)
  assert [[i for i, _ in column] for column in found] == [order] * 3
  assert [p for _, p in found[0]] == [1, 0, 0, 0, 0]  # to 0: argmax
  np.testing.assert_allclose([p for _, p in found[1]], half[order] / half.sum(), rtol=1e-4)
  np.testing.assert_allclose([p for _, p in found[2]], 1 / len(logits), rtol=1e-6)  # uniform


def test_a_row_does_not_depend_on_its_batch():
  alone = decode.generate(CONFIG, PARAMS, PROMPTS[:1], NEW, Sampling(1.0), seed=5)
  together = decode.generate(CONFIG, PARAMS, PROMPTS, NEW, Sampling(1.0), seed=5)
  assert list(alone[0]) == list(together[0])


def test_streamed_in_pieces_it_is_the_same():
  whole = decode.generate(CONFIG, PARAMS, PROMPTS, 7, Sampling(1.5), seed=1)
  parts = list(decode.stream(CONFIG, PARAMS, PROMPTS, 7, Sampling(1.5), seed=1, every=2))
  assert len(parts) > 2
  streamed = [row[row >= 0] for row in np.concatenate(parts, axis=1)]
  assert [list(row) for row in streamed] == [list(row) for row in whole]


def test_a_temperature_near_zero_is_greedy():
  expected = greedily(CONFIG, PARAMS, PROMPT, NEW)
  got = decode.generate(CONFIG, PARAMS, [PROMPT], NEW, Sampling(1e-4), seed=3)
  assert list(got[0]) == expected


@pytest.mark.parametrize(
  'sampling', [Sampling(0.7), Sampling(2.0), Sampling(1.0, top_k=3), Sampling(2.0, top_p=0.8)]
)
def test_draws_follow_the_softmax(sampling):
  logits = last_logits(CONFIG, PARAMS, list(PROMPT)).astype(np.float64) / sampling.temperature
  expected = np.exp(logits - logits.max())
  expected /= expected.sum()
  order = np.argsort(-expected)
  if sampling.top_k:
    expected[order[sampling.top_k :]] = 0
  if sampling.top_p < 1:
    enough = int(np.argmax(np.cumsum(expected[order]) >= sampling.top_p)) + 1
    assert 1 < enough < len(expected)
    expected[order[enough:]] = 0
  expected /= expected.sum()
  draws = 2000
  got = decode.generate(CONFIG, PARAMS, [PROMPT] * draws, 1, sampling, seed=0)
  counts = np.bincount([ids[0] if len(ids) else 0 for ids in got], minlength=len(expected))
  deviation = np.sqrt(expected * (1 - expected) / draws)
  assert np.all(np.abs(counts / draws - expected) < 4 * deviation + 1e-9)
  assert np.any(np.abs(counts / draws - 1 / len(expected)) > 8 * deviation)  # not uniform


def test_what_top_k_and_top_p_leave():
  """Shares .5, .25, .125, .125: 2 by k; .75 is reached by 2, .76 by 3 and its equal."""
  logits = np.log([[0.125, 0.5, 0.125, 0.25]])
  kept = lambda k, p: np.isfinite(restricted(logits, k, p))[0].tolist()  # noqa: E731
  assert kept(2, 1.0) == [False, True, False, True]
  assert kept(0, 0.74) == [False, True, False, True]
  assert kept(0, 0.76) == [True, True, True, True]
  assert kept(0, 1e-6) == [False, True, False, False]
  assert kept(9, 1.0) == [True] * 4


def every_continuation(steps: int, penalty: float) -> list[tuple[float, tuple]]:
  """(score, ids) of all there are: ended by 0, or cut at `steps`; best first."""
  found = []

  def go(ids: tuple, log_p: float) -> None:
    logits = last_logits(CONFIG, PARAMS, [*PROMPT, *ids]).astype(np.float64)
    step = logits - logits.max() - np.log(np.sum(np.exp(logits - logits.max())))
    for token, more in enumerate(step):
      total, length = log_p + more, len(ids) + 1
      if token == 0 or length == steps:
        told = ids if token == 0 else (*ids, token)
        found.append((total / ((5 + length) / 6) ** penalty, told))
      else:
        go((*ids, token), total)

  go((), 0.0)
  return sorted(found, reverse=True)


@pytest.mark.parametrize('penalty', [0.0, 2.0])
def test_a_beam_as_wide_as_the_space_searches_it_all(penalty):
  expected = every_continuation(2, penalty)
  assert len(expected) == 1 + 10 * 11
  found = decode.beam_search(CONFIG, PARAMS, [PROMPT], 2, 120, penalty)[0]
  assert len(found) == len(expected)
  np.testing.assert_allclose([f.score for f in found], [s for s, _ in expected], atol=2e-5)
  assert {tuple(f.ids) for f in found} == {ids for _, ids in expected}
  assert tuple(found[0].ids) == expected[0][1]
  assert sum(f.ended for f in found) == 1 + 10
  other = every_continuation(2, 1.0)  # negative control: another penalty, other scores
  assert np.max(np.abs(np.subtract([f.score for f in found], [s for s, _ in other]))) > 0.01


def test_beams_against_a_search_that_keeps_nothing():
  """Three beams over five tokens: log P by the model itself, and no better among what it saw."""
  found = decode.beam_search(CONFIG, PARAMS, PROMPTS, 5, 3, 0.0)
  for prompt, best in zip(PROMPTS, found, strict=True):
    assert [f.score for f in best] == sorted((f.score for f in best), reverse=True)
    assert len({tuple(f.ids) for f in best}) == len(best) == 3
    for one in best:
      total, tokens = 0.0, list(prompt)
      for token in [*one.ids, *([0] if one.ended else [])]:
        logits = last_logits(CONFIG, PARAMS, tokens).astype(np.float64)
        total += logits[token] - logits.max() - np.log(np.sum(np.exp(logits - logits.max())))
        tokens.append(int(token))
      assert one.score == pytest.approx(total, abs=1e-4)
    greedy = decode.beam_search(CONFIG, PARAMS, [prompt], 5, 1, 0.0)[0][0]
    assert best[0].score >= greedy.score - 1e-5


def test_long_texts_go_on_past_the_context():
  """Positions that are computed have no end; keys further back than a row are not looked at."""
  got = decode.generate(CONFIG, PARAMS, [PROMPT], 90, end=None)[0]
  assert len(got) == 90
  assert list(got[:9]) == greedily(CONFIG, PARAMS, PROMPT, 9)


@pytest.mark.exhaustive
def test_learned_positions_end_with_their_table_for_each_row_by_itself():
  config = config_of('learned, post')
  params = battery.weights(config)
  got = decode.generate(config, params, PROMPTS, 90, end=None)
  assert [len(ids) for ids in got] == [12 - 3, 12 - 5, 12 - 1]
  assert list(decode.generate(config, params, [PROMPT], 90, end=None)[0]) == list(got[0])
  [alone] = decode.beam_search(config, params, [PROMPT], 90, 3, end=None)
  among = decode.beam_search(config, params, PROMPTS, 90, 3, end=None)
  assert [len(found[0].ids) for found in among] == [12 - 3, 12 - 5, 12 - 1]
  assert [list(a.ids) for a in alone] == [list(b.ids) for b in among[0]]
  np.testing.assert_allclose([a.score for a in alone], [b.score for b in among[0]], atol=1e-5)
  assert not any(one.ended for found in among for one in found)


def test_it_ends_with_the_document():
  # Every row of the table is 0 but that of the end, so its logit is the only one above 0.
  table_VD = np.zeros((CONFIG.model.vocab_size, CONFIG.model.d_model), np.float32)
  table_VD[0] = 1.0
  still = jax.tree.map(np.zeros_like, PARAMS['layers'])
  ended = {**PARAMS, 'embed': {'table': table_VD}, 'layers': still}
  assert list(decode.generate(CONFIG, ended, [np.array([0])], 5)[0]) == []
  ended['embed'] = {'table': np.roll(table_VD, 1, axis=0)}  # now token 1 is the likely one
  assert list(decode.generate(CONFIG, ended, [np.array([1])], 5)[0]) == [1] * 5


REFUSED = {
  'long': (
    *([np.ones(13, int)], None),
    '--prompt: has 13 tokens; the context of the model is 12',
  ),
  'long, with its beginning': (
    *([np.zeros(13, int)], None),
    '--prompt: has 13 tokens, with the 0 that begins it; the context of the model is 12',
  ),
  'none': ([], None, '--prompt: there is none; give one at least'),
  'nothing': (None, None, '--prompt: there is none; give one at least'),
  'id': ([np.array([0, 11])], None, '--prompt: id 11 is not in the vocabulary of 11'),
  'negative': ([np.array([0, -1])], None, '--prompt: id -1 is not in the vocabulary of 11'),
  'empty': ([[]], None, '--prompt: has no token; begin with 0, as each document does'),
  'source': ([PROMPT], SOURCES[:1], '--model.architecture=decoder: takes no source'),
}


@pytest.mark.parametrize('name', REFUSED)
def test_what_cannot_be_read_is_refused(name):
  prompts, sources, message = REFUSED[name]
  for way in (
    lambda: decode.generate(CONFIG, PARAMS, prompts, 1, sources=sources),
    lambda: decode.beam_search(CONFIG, PARAMS, prompts, 1, 2, sources=sources),
  ):
    with pytest.raises(UserError) as e:
      way()
    assert str(e.value) == message


def test_a_context_without_room_is_refused():
  config = config_of('learned, post')
  for way in (decode.generate, functools.partial(decode.beam_search, beams=2)):
    with pytest.raises(UserError) as e:
      way(config, battery.weights(config), [PROMPT, np.arange(12) % 11], 1)
    assert str(e.value) == (
      '--prompt: has 12 tokens, with the 0 that begins it; they fill the context of the model'
    )
  assert len(decode.next_tokens(config, battery.weights(config), np.arange(12) % 11, [1.0])[0])


def test_prompts_may_be_one_array():
  config = config_of('source, relative')
  params, pairs = battery.weights(config), np.array([[0, 3], [0, 5]])
  rows = dict(prompts=list(pairs), sources=list(pairs + 1))
  array = dict(prompts=pairs, sources=pairs + 1)
  one, other = (decode.generate(config, params, max_new_tokens=4, **x) for x in (rows, array))
  assert [list(ids) for ids in one] == [list(ids) for ids in other]
  assert [list(ids) for ids in decode.generate(config, params, pairs, 0, sources=pairs)] == [[], []]


@pytest.mark.parametrize('kind', ['encoder', 'encoder_decoder'])
def test_models_that_write_nothing_without_more(kind):
  config = battery.tiny(**{'model.architecture': kind})
  with pytest.raises(UserError) as e:
    decode.generate(config, {}, [PROMPT], 1)
  assert (
    str(e.value)
    == {
      'encoder': '--model.architecture=encoder: fills gaps and writes no text; take a decoder',
      'encoder_decoder': '--model.architecture=encoder_decoder: needs a source',
    }[kind]
  )


@pytest.mark.parametrize(
  'wrong',
  [
    *(dict(temperature=t) for t in (-1.0, float('nan'))),
    *(dict(top_k=-1), *(dict(top_p=p) for p in (0.0, 1.1))),
  ],
)
def test_sampling_out_of_range(wrong):
  with pytest.raises(ValueError, match='temperature and top_k should be 0 or more'):
    Sampling(**wrong)


def test_bfloat16_says_nearly_the_same():
  """Probabilities of the next token, bfloat16 against float32."""
  low = battery.tiny(**{'model.vocab_size': 11, 'data.seq_len': 12, 'model.dtype': 'bfloat16'})
  shares = [
    dict(decode.next_tokens(config, PARAMS, PROMPT, [1.0], 11)[0]) for config in (CONFIG, low)
  ]
  off = [abs(shares[0][token] - shares[1][token]) for token in range(11)]
  assert 0 < max(off) < 0.03
  assert len(decode.generate(low, PARAMS, PROMPTS, 4, end=None)) == 3


def test_a_folder_without_a_run_is_refused(tmp_path: Path) -> None:
  with pytest.raises(UserError) as e:
    decode.open_cell(tmp_path)
  assert str(e.value) == (
    f'--checkpoint={tmp_path}: no config.json in it; give the folder of a run'
  )


def test_no_program_is_compiled_twice():
  """Other prompts of the same padded length, another temperature: the same programs."""
  list(decode.stream(CONFIG, PARAMS, PROMPTS, 6, Sampling(0.8)))
  with battery.compilations() as seconds:
    list(decode.stream(CONFIG, PARAMS, [p[:1] for p in PROMPTS], 5, Sampling(1.3), seed=2))
  assert seconds == []
  assert len(list(itertools.islice(decode.stream(CONFIG, PARAMS, PROMPTS, 6), 2))) == 2
