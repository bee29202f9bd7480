"""Which routing of a mixture of experts is best, and is it worth more than a dense FFN?

Routers and dispatchers against each other and against two dense controls: dense:active has as many
parameters as one token meets in the mixture, dense:total as many as the mixture has in all.

  python -m experiments.moe_routing                    32 runs, minutes on two cores
  python -m experiments.moe_routing --vary='topk/dropless;topk/capacity' --baseline=topk/dropless

A value is ROUTER, ROUTER/DISPATCH or either with settings of --moe behind it, parted by '/', as in
'topk(k=2)/capacity/capacity_factor=0.5'; what it does not name is as the flags have it.

At --match=active (the default) all mixtures have equal active parameters: where k or a router
differs, d_ff, the width of an expert, gives way. At --match=params they have equal parameters in
all. Each control keeps to what it is named for, and is off the other budget; the plan and the
report show by how much. The mixture whose budgets all keep is the baseline, or if that is a control
the first of --vary; --moe.experts and --ffn.ratio, the width of one of its experts, say how large.
Other questions, each with a --workdir of its own:

  is a mixture worth more than its active parameters, as much as all of them?
    --moe.experts=4 --vary='topk;dense:active;dense:total' --baseline=topk --seeds=0..4
  does routing collapse without a balance loss?
    --ffn.ratio=4 --vary='switch;switch/balance_loss=0' --baseline=switch --seeds=0..4
  does a bias balance as well as a loss?
    --moe.experts=16 --vary='topk(score=sigmoid);bias' --baseline='topk(score=sigmoid)'
    --seeds=0..7
  what do dropped tokens cost?
    --vary='topk;topk/capacity/capacity_factor=1;topk/capacity/capacity_factor=2' --baseline=topk
  is learning to route worth it?
    --ffn.ratio=4 --vary='dense:active;hash;switch;random(k=1)' --seeds=0..7

A router that looks ahead is refused in a decoder; --moe.allow_noncausal measures it all the same.
"""

from __future__ import annotations

import re

from experiments import lab, paired
from transformer import axes, count, flags, matching
from transformer.config import SETTINGS, Config, resolve
from transformer.errors import UserError, nearest

NAME = 'moe_routing'
QUESTION = 'Which routing gives the lowest held-out loss?'
CONTROLS = {
  'dense:active': ('active', count.active_params),
  'dense:total': ('params', count.params),
}

paired.define_flags(
  NAME,
  vary='dense:active;dense:total;topk;switch;bias;hash(k=2);random;topk/capacity',
  baseline='dense:active',
  match='active',
  **{'moe.experts': 8, 'ffn.ratio': 2.0},
)


def mixture(asked: Config, value: str) -> Config:
  """What is asked with the router, dispatch and settings of a value."""
  router, *parts = (part.strip() for part in value.split('/'))
  told = {'moe.router': router}
  for part in parts:
    pair = re.fullmatch(r'(\w+)\s*=\s*(.*)', part)
    name = f'moe.{pair[1]}' if pair else 'moe.dispatch'
    if name not in SETTINGS:
      options = [path.partition('.')[2] for path in SETTINGS if path.startswith('moe.')]
      raise UserError(
        f'--vary={lab.FLAGS.vary}: no setting {pair[1]!r} of moe{nearest(pair[1], options)}'
      )
    if name in told:
      raise UserError(f'--vary={lab.FLAGS.vary}: {value!r} names two of the same')
    told[name] = paired.parsed(name, pair[2]) if pair else part
  mixed = asked.replace(**told)
  if not mixed.moe.experts:
    raise UserError(
      f'--vary={lab.FLAGS.vary}: {value!r} has no experts; take one of {", ".join(CONTROLS)}'
    )
  return mixed


def reference() -> str:
  """The value whose budgets all keep."""
  values = paired.values('moe')
  baseline = lab.FLAGS.baseline or values[0]
  for value in (baseline, *values):
    if value not in CONTROLS:
      return value
  raise UserError(f'--vary={lab.FLAGS.vary}: names no mixture; add one, as in topk')


def config_of(asked: Config, value: str, budget: int) -> Config:
  """What is asked with the FFN of a value, as wide as a budget lets it be."""
  if value not in CONTROLS:
    return paired.fitted(mixture(asked, value), budget)
  _, counted = CONTROLS[value]
  target = counted(resolve(mixture(asked, reference())))
  dense = {'moe.experts': 0, 'parallel.mesh': _dense_mesh(asked.parallel.mesh)}
  return matching.match_d_ff(asked.replace(**dense), target, 'params')


def _dense_mesh(mesh: str) -> str:
  """A mesh with its axis expert, which shares batches as data does, merged into data."""
  sizes = axes.parse_mesh(mesh)
  if 'expert' in sizes:
    sizes = {'data': sizes.pop('expert') * sizes.pop('data', 1)} | sizes
  return ','.join(f'{axis}:{size}' for axis, size in sizes.items())


def main() -> int:
  asked = flags.asked()
  if lab.FLAGS['moe.router'].present:
    raise UserError('--moe.router: is what this experiment varies; use --vary')
  if not asked.moe.experts:
    raise UserError('--moe.experts=0: leaves no mixture to compare; give it 2 or more')
  apart = [v for v, (kind, _) in CONTROLS.items() if kind != lab.FLAGS.match]
  return lab.run(paired.experiment(NAME, QUESTION, 'moe', config_of, held=reference(), apart=apart))


if __name__ == '__main__':
  flags.run(main)
