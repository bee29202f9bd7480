"""How a report's numbers are made and under which protocol, in plain sentences."""

from __future__ import annotations

from transformer.analysis import formats, stats
from transformer.analysis.results import Results


def protocol(results: Results) -> list[str]:
  """What was held equal and what was not."""
  match = {
    'params': 'Variants have equal parameters: the hidden width d_ff takes up the difference.',
    'flops': 'Variants have equal training FLOPs per token: d_ff takes up the difference.',
  }.get(results.match)
  found = [match] if match else []
  if len(results.variants) > 1:
    found += [
      'Seeds are paired: the same seed has the same data order and, for what variants share, the '
      'same initial values.',
      'Nothing but the variable and what matching changes with it differs between variants; '
      'the learning rate is not tuned for each.'
      if len(results.settings('optim.learning_rate')) <= 1
      else 'Learning rates differ between cells.',
    ]
  found.append('The held-out text is the same for every cell and none of it is trained on.')
  return found


def numbers(results: Results) -> list[str]:
  """How each number is made."""
  found = [
    'Held-out loss: cross-entropy in nats over every held-out token, summed and divided once, '
    'after the last step. Bits per byte: the same sum in bits over the bytes of that text.',
  ]
  if len(results.variants) > 1:
    found += [
      '±: half the 95 % Student t interval of the mean over seeds; none below '
      f'{stats.MIN_SEEDS} seeds.',
      'Difference: variant minus baseline at the same seed, so negative is better; its interval '
      'and p come from the paired t test over those seeds.',
      'Verdict: better or worse where p is under .05 after Holm’s correction over all variants, '
      'else a tie. The exact sign-flip test is shown from 6 seeds on, where it can fall under '
      '.05; it is not corrected.',
      'Told apart from the best: paired t over all pairs of variants besides the baseline, '
      'Holm’s correction over all of them.',
      'Seeds to show a difference: paired t test at 95 % with 80 % power, taking the observed '
      f'mean and spread for the true ones, no correction; looked for up to {stats.CAP}. From few '
      'seeds this is a rough guide.',
      'Cells far from their siblings: more than .03 nats and 6 median absolute deviations from '
      'their variant’s median. They stay in every number.',
    ]
  found.append(
    'FLOPs: matrix products only, a multiply-add is 2, backward twice forward. Tokens/s: as '
    'each cell measured it, beside whatever else ran on the machine.'
  )
  if results.references:
    tokens = formats.count(results.references.get('tokens'))
    found.append(
      f'Unigram and bigram counts: fitted on {tokens} tokens, those that seed 0 trains on first '
      '(add-one; interpolated Kneser-Ney), scored on the same held-out tokens as the models.'
    )
  return found
