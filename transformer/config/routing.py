"""What --moe.* ask for, checked and spelt out: which layers have experts, and how many places."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

from transformer import axes, spec
from transformer.config.settings import Config
from transformer.errors import UserError


def router(config: Config) -> Any:
  """The parsed variant of moe.router."""
  return spec.parse('moe.router', config.moe.router)


def dispatch(config: Config) -> Any:
  """The parsed variant of moe.dispatch; `auto` is what it comes to."""
  found = spec.parse('moe.dispatch', config.moe.dispatch)
  if found.variant != 'auto':
    return found
  name = 'dropless' if router(config).decision == 'token' else 'capacity'
  return spec.parse('moe.dispatch', name)


def noncausal(config: Config) -> dict[str, Any]:
  """Setting -> variant, of router and dispatch those that look at tokens behind one."""
  both = {'moe.router': router(config), 'moe.dispatch': dispatch(config)}
  return {flag: variant for flag, variant in both.items() if not variant.causal}


def experts(config: Config) -> int:
  """Number of experts E of a layer that has any, after granularity has split them."""
  return config.moe.experts * config.moe.granularity


def choices(config: Config) -> int:
  """Experts a token chooses, R, where tokens choose."""
  return router(config).choices(experts(config), config.moe.granularity)


def width_step(config: Config) -> int:
  """What d_ff is rounded to a multiple of."""
  return math.lcm(config.ffn.multiple_of, config.moe.granularity if config.moe.experts else 1)


def group_length(config: Config, length: int) -> int:
  """Tokens T of a routing group in sequences of `length`: what divides them of moe.group_size."""
  return math.gcd(config.moe.group_size, length)


def capacity(config: Config, length: int, training: bool) -> int:
  """Places C of each expert for a group of `length` tokens: ⌊factor · k · T / E⌋.

  Fedus et al. 2022, eq. 3. Of expert choice and of soft routing the router's own. A factor counts
  as it is written: as binary numbers 1.15 · 100 is less than 115.
  """
  variant, moe = router(config), config.moe
  if variant.decision == 'soft':
    return variant.slots or max(1, length // experts(config))
  if variant.decision == 'expert':
    share = Fraction(str(variant.factor)) * moe.granularity
  else:
    factor = moe.capacity_factor if training else moe.eval_capacity_factor
    share = Fraction(str(factor)) * choices(config)
  return min(length, int(share * length / experts(config)))


def moe_layers(config: Config, encoder: bool = False) -> list[bool]:
  """Which layers of a stack ask for experts. encoder: of an encoder_decoder's encoder."""
  own = encoder and config.moe.encoder_layers
  flag = 'moe.encoder_layers' if own else 'moe.layers'
  depth = (encoder and config.model.num_encoder_layers) or config.model.num_layers
  if not config.moe.experts:
    return [False] * depth
  text = config.get(flag).replace(' ', '')
  if text in ('all', 'none'):
    return [text == 'all'] * depth
  if call := re.fullmatch(r'(every|last)\((\d+)\)', text):
    n = int(call[2])
    if not 1 <= n <= depth:
      raise UserError(f'--{flag}={text}: should be 1 to {depth}, the number of layers')
    return [(i + 1) % n == 0 if call[1] == 'every' else i >= depth - n for i in range(depth)]
  if not re.fullmatch(r'\d+(,\d+)*', text):
    raise UserError(
      f"--{flag}={text}: expected all, none, every(2), last(4), or numbers from 0 on, as in '3,5'"
    )
  named = [int(part) for part in text.split(',')]
  if max(named) >= depth:
    raise UserError(f'--{flag}={text}: there is no layer {max(named)}; they are 0 to {depth - 1}')
  return [i in named for i in range(depth)]


def idle(config: Config) -> list[str]:
  """Settings of moe that act on nothing in a config as asked."""
  if not config.moe.experts:
    return [f'moe.{f.name}' for f in dataclasses.fields(config.moe) if f.name != 'experts']
  found, variant, mover = [], router(config), dispatch(config)
  if config.model.architecture != 'encoder_decoder':
    found.append('moe.encoder_layers')
  if variant.decision != 'token' or not mover.drops:
    found += ['moe.capacity_factor', 'moe.eval_capacity_factor']
  if 'balance' not in variant.losses:
    found.append('moe.balance_loss')
    if variant.decision == 'token' and not mover.drops:
      found.append('moe.group_size')
  if 'z' not in variant.losses:
    found.append('moe.z_loss')
  return found


def settle(config: Config, stacks: dict[str, Sequence[int]]) -> dict[str, Any]:
  """What the moe settings of an otherwise resolved config come to.

  stacks: d_ff of the layers of the decoder or only stack, 'layers', and 'encoder_layers' beside it.
  Raises UserError where they cannot run.
  """
  moe, mesh = config.moe, axes.parse_mesh(config.parallel.mesh)
  if not moe.experts:
    if mesh.get('expert', 1) > 1:
      raise UserError(f'--parallel.mesh={config.parallel.mesh}: axis expert, and no --moe.experts')
    return {}
  has = {
    stack: [
      wanted and d_ff > 0
      for wanted, d_ff in zip(moe_layers(config, stack != 'layers'), found, strict=True)
    ]
    for stack, found in stacks.items()
  }
  if not any(map(any, has.values())):
    raise UserError(
      f'--moe.experts={moe.experts}: no layer has them; see --moe.layers, --ffn.ratio'
    )
  if config.ffn.shared:
    raise UserError(
      '--ffn.shared: is one dense FFN for all layers; leave it out with --moe.experts'
    )
  _check_router(config)
  _check_dispatch(config, mesh)
  _check_causal(config, has)
  out = {'moe.dispatch': spec.canonical(dispatch(config))}
  out['moe.layers'] = _shown(moe.layers, moe_layers(config))
  if moe.encoder_layers:
    out['moe.encoder_layers'] = _shown(moe.encoder_layers, moe_layers(config, encoder=True))
  if moe.encoder_layers and has['encoder_layers'] == has['layers']:
    out['moe.encoder_layers'] = ''
  out['moe.eval_capacity_factor'] = moe.eval_capacity_factor or moe.capacity_factor
  config = config.replace(**out)
  _check_capacity(config, has)
  return out


def _shown(pattern: str, wanted: list[bool]) -> str:
  """A pattern of layers as it is kept: all, and numbers in order, whichever way they were given."""
  if all(wanted):
    return 'all'
  numbers = ','.join(str(i) for i, has in enumerate(wanted) if has)
  return numbers if pattern[:1].isdecimal() else pattern.replace(' ', '')


def _check_router(config: Config) -> None:
  moe, variant = config.moe, router(config)
  if variant.decision == 'token' and choices(config) > experts(config):
    raise UserError(
      f'--moe.router={moe.router}: k={variant.k} is above --moe.experts={moe.experts}; lower it'
    )
  always_1 = getattr(variant, 'renormalise', False) or getattr(variant, 'score', '') == 'after'
  if variant.weights.get('router') and always_1 and choices(config) == 1:
    raise UserError(
      f'--moe.router={moe.router}: the one weight is always 1, so the router learns nothing; take '
      f'switch, or {variant.variant}(k=1, renormalise=False)'
    )
  if variant.decision == 'soft' and config.ffn.dropout:
    raise UserError(
      '--ffn.dropout: is of tokens, and slots of --moe.router=soft are none; use --model.dropout'
    )


def _check_dispatch(config: Config, mesh: dict[str, int]) -> None:
  variant, mover, number = router(config), dispatch(config), experts(config)
  if variant.decision not in mover.accepts:
    fits = ', '.join(
      name
      for name, other in spec.variants('moe.dispatch').items()
      if variant.decision in other.accepts
    )
    what = {'token': 'tokens choose', 'expert': 'experts choose', 'soft': 'all slots are mixtures'}
    raise UserError(
      f'--moe.dispatch={config.moe.dispatch}: cannot move what --moe.router={variant.variant} '
      f'decides ({what[variant.decision]}); take one of {fits}'
    )
  size = mesh.get('expert', 1)
  if mover.variant == 'expert_parallel':
    if 'expert' not in mesh:
      raise UserError(
        f'--moe.dispatch={config.moe.dispatch}: needs a mesh with an axis expert, as in '
        '--parallel.mesh=expert:4'
      )
    if number % size:
      raise UserError(
        f'--parallel.mesh={config.parallel.mesh}: axis expert:{size} does not divide the {number} '
        f'experts of --moe.experts={config.moe.experts}'
        f'{f" x --moe.granularity={config.moe.granularity}" * (config.moe.granularity > 1)}'
      )


def _check_causal(config: Config, has: dict[str, list[bool]]) -> None:
  if config.model.architecture == 'encoder' or not any(has['layers']) or config.moe.allow_noncausal:
    return
  for flag, variant in noncausal(config).items():
    raise UserError(
      f'--{flag}={spec.canonical(variant)}: looks at tokens ahead, which a decoder must '
      f'not; take {"topk" if flag == "moe.router" else "priority=order"}, or '
      '--moe.allow_noncausal to measure it all the same'
    )


def _check_capacity(config: Config, has: dict[str, list[bool]]) -> None:
  lengths = {'layers': config.data.seq_len, 'encoder_layers': config.data.source_len}
  size, variant = config.moe.group_size, router(config)
  for stack, found in has.items():
    length = lengths[stack]
    if not any(found):
      continue
    if size and length % size:
      raise UserError(f'--moe.group_size={size}: does not divide sequences of {length} tokens')
    if variant.decision == 'token' and not dispatch(config).drops:
      continue
    length = group_length(config, length)
    for training in (True, False):
      if capacity(config, length, training) < 1:
        flag = 'moe.router' if variant.decision == 'expert' else 'moe.capacity_factor'
        flag = flag if training else 'moe.eval_capacity_factor'
        raise UserError(
          f'--{flag}={config.get(flag)}: leaves no place in {experts(config)} experts for the '
          f'{length} tokens of a routing group; raise it, or --moe.group_size or --data.seq_len'
        )
