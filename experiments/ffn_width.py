"""How wide should the FFN be?

Ratios d_ff/d_model against each other: at equal parameters or FLOPs, where a wider FFN means a
narrower d_model or fewer layers, or at fixed d_model, where it means more of both. Ratio 0 is no
FFN: attention alone. A pattern gives each layer its own ratio.

  python -m experiments.ffn_width                      equal parameters: d_model gives way
  python -m experiments.ffn_width --absorb=depth       equal parameters: the number of layers does
  python -m experiments.ffn_width --match=flops        equal FLOPs per token
  python -m experiments.ffn_width --match=none         fixed d_model: what more width buys
  python -m experiments.ffn_width --vary=0,4 --absorb=depth --seeds=0..7
  python -m experiments.ffn_width --model.num_layers=4 --vary='4;2,4,8,4;ramp(2,6)'

Whole layers and even widths of heads meet no budget exactly, so d_model, then d_ff take up the
remainder: the plan and the report show the ratio that came of it.
"""

from __future__ import annotations

from experiments import lab, paired
from transformer import flags, matching
from transformer.config import Config, resolve
from transformer.errors import UserError

NAME = 'ffn_width'
QUESTION = 'Which FFN width ratio d_ff/d_model gives the lowest held-out loss?'

paired.define_flags(
  NAME,
  vary='0.25,1,2,4,8,16',
  baseline='4',
  match='params',
)
ABSORB = flags.script_flag(
  'str', 'absorb', 'd_model', 'what gives way to a wider FFN under --match: d_model | depth'
)


def config_of(asked: Config, value: str, budget: int) -> Config:
  """What is asked at another ratio or pattern; d_model or depth gives way to a budget."""
  asked = asked.replace(**_ratio(value))
  if not budget:
    return resolve(asked)
  if ABSORB.value == 'd_model':
    return matching.match_width(asked, budget, lab.FLAGS.match)
  if ',' in value and not value.startswith('ramp'):
    raise UserError(f'--vary={lab.FLAGS.vary}: {value} sets the depth, so --absorb=depth cannot')
  return matching.match_depth(asked, budget, lab.FLAGS.match)


def _ratio(value: str) -> dict[str, float | str]:
  """A value of --vary as the setting it is of."""
  try:
    return {'ffn.ratio': float(value)}
  except ValueError:
    return {'ffn.ratios': value}


def main() -> int:
  for name in ('ffn.d_ff', 'ffn.ratio', 'ffn.ratios'):
    if lab.FLAGS[name].present:
      raise UserError(f'--{name}: is what this experiment varies; use --vary with ratios')
  if ABSORB.value not in ('d_model', 'depth'):
    raise UserError(f'--absorb={ABSORB.value}: choose from d_model, depth')
  if lab.FLAGS.match == 'none' and lab.FLAGS['absorb'].present:
    raise UserError(f'--absorb={ABSORB.value}: --match=none sets no budget to give way to')
  if lab.FLAGS.match != 'none' and lab.FLAGS['model.head_dim'].present:
    raise UserError('--model.head_dim: follows d_model here; set it with --match=none')
  patterns = any('ffn.ratios' in _ratio(value) for value in paired.values('ffn.ratio'))
  variable = 'ffn.ratios' if patterns else 'ffn.ratio'
  return lab.run(paired.experiment(NAME, QUESTION, variable, config_of, ABSORB.value))


if __name__ == '__main__':
  flags.run(main)
