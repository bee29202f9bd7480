"""What experts like, against counting by hand and against what routers decide."""

from __future__ import annotations

import dataclasses
import functools
import json

import jax
import numpy as np
import pytest

from tests.battery import jiggle, rows, tiny, weights
from transformer import count, data, liking, metrics, objective, step, train
from transformer.config import Config
from transformer.data.tokenizers import Byte

EXPERTS = {'moe.experts': 4, 'moe.layers': '1'}
_FAST = {'xla_backend_optimization_level': 0}  # to compile


@functools.cache
def _chosen(config: Config) -> tuple[dict, dict]:
  """(what `choices` tells of the layer with experts, what that layer keeps of its decision)."""
  params = jiggle(weights(config), 1.0)
  batch = {'tokens': rows(config, padding=True)}

  def both(params: dict, batch: dict) -> tuple:
    asked = objective.example(config, batch['tokens'])
    _, seen = step.forward(config, params, asked, watch=('diagnostics',))
    return liking.choices(config, params, batch), seen['diagnostics']['layers_1']

  found, kept = jax.device_get(jax.jit(both, compiler_options=_FAST)(params, batch))
  (only,) = found.values()
  return only, kept['ffn']['routing']


def _pairs(found: dict) -> list[tuple[int, int]]:
  pairs = zip(found['ids'][0].tolist(), found['experts'][0].tolist(), strict=True)
  return sorted(pair for pair in pairs if pair[0] >= 0)


def test_choices_of_tokens_are_those_of_the_router_without_padding():
  config = tiny(**EXPERTS, **{'moe.router': 'topk(k=3)'})
  found, kept = _chosen(config)
  ids_GT = rows(config, padding=True)[:, :-1]
  assert np.array_equal(found['tokens'], ids_GT.reshape(-1)) and (ids_GT < 0).any()
  expected = [
    (int(ids_GT[g, t]), int(e))
    for g, t in np.ndindex(ids_GT.shape)
    for e in kept.experts_GTR[0, g, t]
    if ids_GT[g, t] >= 0
  ]
  assert _pairs(found) == sorted(expected) and max(e for _, e in expected) == 3


def test_choices_of_experts_are_theirs_and_no_padding():
  config = tiny(**EXPERTS, **{'moe.router': 'expert_choice', 'moe.allow_noncausal': True})
  found, kept = _chosen(config)
  ids_GT = rows(config, padding=True)[:, :-1]
  places = np.ndindex(kept.tokens_GEC.shape[1:])
  expected = [
    (int(ids_GT[g, kept.tokens_GEC[0, g, e, c]]), e)
    for g, e, c in places
    if kept.weights_GEC[0, g, e, c] > 0
  ]
  assert _pairs(found) == sorted(expected) and len(expected) < kept.tokens_GEC.size


def test_lift_by_hand():
  """20 tokens 5, 10 tokens 6, 10 tokens 7, 9 tokens 8: the last too rare to say anything of.

  Expert 0 gets all 5 and half of 6, expert 1 the other half of 6 and all 7 and 8. P(5) = 20/49,
  P(5 | 0) = 20/25: lift 1.96; P(6 | 0) / P(6) = (5/25) / (10/49) = .98, below 1.
  """
  tokens = np.array([5] * 20 + [6] * 10 + [7] * 10 + [8] * 9 + [-1] * 7)
  experts = np.array([0] * 20 + [0, 1] * 5 + [1] * 10 + [1] * 9 + [3] * 7)
  first, second, third = liking.likes(tokens, tokens, experts, 3)
  assert first == {'share': 25 / 49, 'likes': [{'id': 5, 'count': 20, 'lift': pytest.approx(1.96)}]}
  assert [x['id'] for x in second['likes']] == [7, 6]
  assert [x['lift'] for x in second['likes']] == pytest.approx([49 / 24, 5 / 24 / (10 / 49)])
  assert third == {'share': 0.0, 'likes': []}


def test_of_equal_lift_the_more_frequent_come_first_and_eight_at_most():
  tokens = np.repeat(np.arange(1, 13), np.arange(20, 8, -1))
  (found, _) = liking.likes(
    np.append(tokens, [0] * 50),
    np.append(tokens, [0] * 50),
    np.repeat([0, 1], [len(tokens), 50]),
    2,
  )
  assert [x['id'] for x in found['likes']] == list(range(1, 9))
  assert len({x['lift'] for x in found['likes']}) == 1


def test_the_file_numbers_layers_and_says_text(tmp_path):
  config = tiny(**EXPERTS, **{'moe.router': 'hash'})
  opened = dataclasses.replace(data.load(config), tokenizer=Byte())
  seen = []

  def decide(batch: dict) -> dict:
    ids_N = batch['tokens'][:, :-1].reshape(-1)
    seen.append(len(ids_N))
    return {'layers_1': {'tokens': ids_N, 'ids': ids_N[None], 'experts': ids_N[None] % 4}}

  liking.write(config, decide, opened, tmp_path)
  told = json.loads((tmp_path / liking.FILE).read_text())
  assert [layer['layer'] for layer in told['layers']] == [1] and told['least'] == 10
  assert sum(seen) <= 16_384
  for e, expert in enumerate(told['layers'][0]['experts']):
    assert {x['id'] % 4 for x in expert['likes']} == {e}
    assert all(x['text'] == (chr(x['id'] - 1) if x['id'] else '') for x in expert['likes'])
  assert sum(x['share'] for x in told['layers'][0]['experts']) == pytest.approx(1.0)


def test_what_is_asked_for_and_what_looks_ahead():
  assert not liking.wanted(tiny()) and liking.wanted(tiny(**EXPERTS))
  free = EXPERTS | {'moe.allow_noncausal': True}
  assert not liking.wanted(tiny(**free, **{'moe.router': 'soft'}))
  assert not liking.wanted(tiny(**EXPERTS | {'moe.router': 'dense'}))
  late = {'moe.dispatch': "capacity(priority='score')"}
  cases = {
    ('decoder', 'topk'): False,
    ('decoder', 'expert_choice'): True,
    ('decoder', 'soft'): True,
    ('encoder', 'expert_choice'): False,
  }
  for (architecture, router), ahead in cases.items():
    own = {'model.architecture': architecture, 'moe.router': router, 'data.tokenizer': 'byte'}
    assert count.looks_ahead(tiny(**free, **own)) == ahead, (architecture, router)
  pairs = free | {'model.architecture': 'encoder_decoder', 'moe.router': 'expert_choice'}
  for where in ('layers', 'encoder_layers'):
    own = {'moe.layers': 'none', 'moe.encoder_layers': 'none', f'moe.{where}': 'all'}
    assert count.looks_ahead(tiny(**pairs | own)) == (where == 'layers')
  assert count.looks_ahead(tiny(**free, **late)) and not count.looks_ahead(tiny())


@pytest.mark.exhaustive
def test_a_run_writes_it_after_its_last_step(tmp_path):
  config = tiny(**{'moe.experts': 4, 'model.num_layers': 1, 'train.steps': 1})
  train.run(config.replace(**{'train.ffn_statistics': False}), tmp_path)
  (layer,) = json.loads((tmp_path / liking.FILE).read_text())['layers']
  assert sum(expert['share'] for expert in layer['experts']) == pytest.approx(1.0)
  row = next(r for r in metrics.read(tmp_path / metrics.FILE) if 'eval_router/entropy/0' in r)
  assert row['step'] == 1 and row['eval_router/load/0/3'] >= 0
