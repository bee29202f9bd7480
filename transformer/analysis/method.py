"""How a report's numbers are made and under which protocol, in plain sentences."""

from __future__ import annotations

from transformer.analysis import budget, formats, inside, samples, stats
from transformer.analysis.measures import MASKED
from transformer.analysis.results import Results

_ABSORBED = {  # what experiment.json says gave way -> in words
  'd_ff': 'the hidden width d_ff takes up the difference',
  'd_model': 'd_model takes up the difference, and d_ff (without an FFN the heads) what even '
  'widths leave of it',
  'depth': 'the number of layers takes up the difference, and d_model, then d_ff, what whole '
  'layers leave of it',
}


def protocol(results: Results) -> list[str]:
  """What was held equal and what was not."""
  found = _budget(results)
  rows = {c.result.get('data') for c in results.done}
  texts = {c.text for c in results.done}
  if len(results.variants) > 1:
    found += [
      'Seeds are paired: the same seed has the same data order and, for what variants share, the '
      'same initial values.'
      if len(rows) <= 1
      else 'Seeds are paired: for what variants share, the same seed has the same initial values, '
      'though not the same order of the data where that is cut into rows in other ways.',
      *_differing(results),
    ]
  found.append(
    'The held-out text is the same for every cell and none of it is trained on.'
    if len(rows) <= 1 or (len(texts) == 1 and texts != {()})
    else 'No cell trains on its own held-out text.'
  )
  return found


def _budget(results: Results) -> list[str]:
  """What is equal and what gives way for it, or how far apart variants are."""
  if len(results.variants) < 2:
    return []
  if results.match not in budget.BUDGETS:
    return [budget.unmatched(results) or 'Variants have the same parameters and FLOPs.']
  absorbed = _ABSORBED.get(results.absorb)
  kept = {v.name for v in budget.held(results)}
  others = [f'`{results.label(v.name)}`' for v in results.variants if v.name not in kept]
  equal = f'Variants have equal {budget.BUDGETS[results.match][1]}'
  if others:
    equal += f', but for {formats.listing(others)}, matched in something else'
  return [f'{equal}: {absorbed}.' if absorbed else f'{equal}.']


def _differing(results: Results) -> list[str]:
  """What tells the variants apart, and what does not."""
  rates = len(results.settings('optim.learning_rate'))
  tuned = 'the learning rate is not tuned for each.'
  if not (results.regrouped or results.mixed or results.besides):
    alike = 'Nothing but the variable and what matching changes with it differs between variants'
    return [f'{alike}; {tuned}' if rates <= 1 else 'Learning rates differ between cells.']
  found = []
  if results.regrouped:
    names = formats.listing([f'`{name}`' for name in results.by])
    found.append(f'A variant is all cells with one value of {names}.')
  if any(len(v.cells) > len(v.seeds) for v in results.variants):
    found.append(
      'Where a variant has several cells of a seed their mean stands for that seed, and counts '
      'only once all of them are finished.'
    )
  if not (results.mixed or results.besides):
    found.append('Nothing else differs between variants but what matching changes with it.')
  return found


def numbers(results: Results) -> list[str]:
  """How each number is made."""
  found = [_loss(results), *_decoded(results)]
  void = ', or void where the lower loss is of one that looks ahead'
  void = void if any(v.looks_ahead for v in results.variants) else ''
  if len(results.variants) > 1:
    found += [
      '±: half the 95 % Student t interval of the mean over seeds; none below '
      f'{stats.MIN_SEEDS} seeds.',
      'Difference: variant minus baseline at the same seed, so negative is better; its interval '
      'and p come from the paired t test over those seeds.',
      'Verdict: better or worse where p is under .05 after Holm’s correction over all variants, '
      f'else a tie{void}. The exact sign-flip test is shown from 6 seeds on, where it can fall '
      'under .05; it is not corrected.',
      'Told apart from the best: paired t over all pairs of variants besides the baseline, '
      'Holm’s correction over all of them.',
      'Seeds to show a difference: paired t test at 95 % with 80 % power, taking the observed '
      f'mean and spread for the true ones, no correction; looked for up to {stats.CAP}. From few '
      'seeds this is a rough guide.',
      f'Cells far from their siblings: more than {results.measure.far:g} {results.measure.unit} '
      'and 6 median absolute deviations from '
      'their variant’s median. They stay in every number.',
    ]
  found.append(
    'FLOPs: matrix products only, a multiply-add is 2, backward twice forward. Tokens/s: as '
    'each cell measured it, beside whatever else ran on the machine.'
  )
  if max(results.settings('moe.experts') or (0,)):
    found.append(
      'Active: parameters that a token meets, of the experts those it goes to; where experts '
      'choose tokens, as many as a token has on average.'
    )
  if inside.statistics(results):
    found.append(
      'FFN statistics: on one batch of held-out tokens. Zeros: hidden values that are 0; dead '
      'units: 0 on every token; saturation: inputs where the slope is under .05; kurtosis: over '
      'units, 3 for a normal distribution; effective rank: participation ratio of the hidden '
      'covariance, for a matrix the exponential of the entropy of its singular values σ; update / '
      'stream: rms of what the FFN adds over rms of what it adds it to.'
    )
  if results.references:
    tokens = formats.count(results.references.get('tokens'))
    kind = 'tokens of targets' if results.pairs else 'tokens'
    found.append(
      f'Unigram and bigram counts: fitted on {tokens} {kind}, those that seed 0 trains on first '
      '(add-one; interpolated Kneser-Ney), scored on the same held-out tokens as the models.'
    )
  return found


def _loss(results: Results) -> str:
  """What the held-out loss is the mean of."""
  if results.measure is MASKED:
    rates = results.settings('loss.mask_rate')
    share = f'{100 * rates[0]:g} %' if len(rates) == 1 else 'some'
    return (
      f'Held-out loss: cross-entropy in nats over the hidden ones of the held-out tokens, {share} '
      'of them, which their row decides, so that they are the same for all models; summed and '
      'divided once, after the last step.'
    )
  which, text = ('every held-out token', 'that text')
  if results.pairs:
    which, text = 'every token of the held-out targets, their ends included', 'those targets'
  return (
    f'Held-out loss: cross-entropy in nats over {which}, summed and divided once, after the last '
    f'step. Bits per byte: the same sum in bits over the bytes of {text}.'
  )


def _decoded(results: Results) -> list[str]:
  """How texts were decoded and scored."""
  told = samples.facts(results)
  if not told:
    return []
  return [
    f'Exact match, BLEU and chrF: {formats.count(told["decoded"])} of the '
    f'{formats.count(told["held_out"])} held-out sources, evenly spread and the same for every '
    'cell, decoded greedily after the last step and held against their references; from 0 to 100, '
    f'more is better. Signatures of sacrebleu: BLEU {told["bleu"]}, chrF {told["chrf"]}. They take '
    'no part in the verdict.'
  ]
