"""What a report says of experts and of a budget that not all variants keep."""

from __future__ import annotations

from transformer import matching
from transformer.analysis import budget, method, table, verdict
from transformer.analysis.load import load
from transformer.analysis.results import Results

DENSE = {'experts': 0, 'experts_per_token': 0, 'active_params': 320_000, 'params': 320_000}
MIXTURES = dict(
  variants={'dense:active': (0, 0), 'dense:total': (-0.1, 0.005), 'topk': (-0.05, 0.005)},
  baseline='dense:active',
  name='moe_routing',
  variable='ffn',
  match='active',
  absorb='d_ff',
)


def mixtures(run_folder, used: float = 2, active: int = 321_000, **told: object) -> Results:
  wide = {'active_params': 763_000, 'params': 763_000, 'matched': False}
  topk = {'experts': 8, 'experts_per_token': used, 'active_params': active, 'params': 770_000}
  shapes = {'dense:active': DENSE, 'dense:total': DENSE | wide, 'topk': topk}
  return load(run_folder(**MIXTURES | told, shapes=shapes))


def test_every_budget_has_words() -> None:
  assert budget.BUDGETS.keys() == matching.BUDGETS.keys()


def test_the_answer_says_experts_and_both_counts(run_folder) -> None:
  found = mixtures(run_folder)
  assert verdict.conditions(found) == (
    'd_model 96, 2 layers, context 64, 8 experts, 2 a token, 0.41 M tokens of stdlib text, active '
    'parameters equal within 0.31 % (320,000 to 321,000) but for dense:total, mixtures of 770,000 '
    'in all, 4 paired seeds, fixed learning rate 0.008'
  )
  assert method.protocol(found)[0] == (
    'Variants have equal active parameters, but for `dense:total`, matched in something else: the '
    'hidden width d_ff takes up the difference.'
  )


def test_who_misses_the_budget_is_named_and_a_control_of_another_is_not(run_folder) -> None:
  told = '`topk` is over 0.5 % off the matched budget.'
  assert told not in verdict.sentences(mixtures(run_folder))
  off = mixtures(run_folder, active=322_000)
  assert told in verdict.sentences(off)
  assert [v.name for v in budget.missed(off)] == ['topk']
  shown = {c.heading: [c.show(v) for v in off.variants] for c in table.columns(off)}
  assert shown['off target'] == ['+0.00 %', '+138.44 %', '+0.63 %']
  assert shown['active'] == ['320,000', '763,000', '322,000']
  assert shown['experts'] == ['–', '–', '2 of 8']
  (record,) = (r for r in table.records(off) if r['variant'] == 'topk')
  assert (record['active_params'], record['experts'], record['experts_per_token']) == (
    322_000,
    8,
    2,
  )


def test_without_experts_nothing_is_said_of_them(run_folder) -> None:
  found = load(run_folder())
  assert budget.experts(found) == '' and 'active' not in budget.sentence(found)
  assert not {'active', 'experts'} & {c.heading for c in table.columns(found)}


def test_one_run_says_both_counts(run_folder) -> None:
  found = load(run_folder(variants={'gelu': (0, 0)}, seeds=1, baseline='', variable='', match='',
                          shapes={'gelu': {'experts': 8, 'experts_per_token': 1.5,
                                           'active_params': 200_000}}))  # fmt: skip
  assert '8 experts, 1.5 a token' in verdict.conditions(found)
  assert budget.sentence(found) == '319,968 parameters, 200,000 active'
