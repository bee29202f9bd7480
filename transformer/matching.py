"""Widths and depths for an equal budget: parameters, those a token meets, or FLOPs."""

from __future__ import annotations

from collections.abc import Callable

from transformer import count
from transformer.config import Config, ratios, resolve, routing
from transformer.errors import UserError

BUDGETS = {
  'params': count.params,
  'active': count.active_params,
  'flops': count.flops_per_token,
}


def match_d_ff(config: Config, target: int, budget: str) -> Config:
  """Returns `config` with the d_ff whose `budget` (of BUDGETS) is nearest to `target`.

  d_ff stays a multiple of ffn.multiple_of. With --ffn.ratios all layers scale together.
  """
  step = routing.width_step(config)

  def at(units: int) -> Config:
    return resolve(config.replace(**{'ffn.d_ff': units * step}))

  found = nearest(at, target, budget)
  if found is None:
    raise UserError(
      f'--match={budget}: {config.ffn.activation} at d_model={config.model.d_model} is over the '
      f'budget of {target:,} even with d_ff={step}; choose another --baseline or --match=none'
    )
  return found


def nearest(at: Callable[[int], Config], target: int, budget: str) -> Config | None:
  """at(n) of the n from 1 on whose cost is nearest to `target`; None if at(1) is well over it.

  Cost must grow with n.
  """
  cost, low, high = BUDGETS[budget], 1, 2
  if cost(at(1)) > target + (cost(at(2)) - cost(at(1))) / 2:
    return None
  while cost(at(high)) <= target:
    low, high = high, 2 * high
  while high - low > 1:
    middle = (low + high) // 2
    low, high = (middle, high) if cost(at(middle)) <= target else (low, middle)
  return min((at(low), at(high)), key=lambda c: abs(cost(c) - target))


def match_width(config: Config, target: int, budget: str, head_dim: int = 0) -> Config:
  """Returns `config` with the d_model whose `budget` is nearest to `target`, its width ratio kept.

  config: as asked: ffn.ratio or ffn.ratios tell the ratio, and d_ff is solved for. head_dim: 0
  keeps the number of heads, and their width follows d_model; else their number follows d_model, so
  that they stay about this wide.
  d_model and head widths are even, which is too coarse to meet a budget, so d_ff takes up the
  remainder: as little as may be, though up to 2 % of it for heads that fill d_model.
  """
  pattern = ratios(config)
  ratio, cost = sum(pattern) / len(pattern), BUDGETS[budget]

  def at(d_model: int, wider: int = 0) -> Config:
    d_ff = max(1, round(ratio * d_model)) if ratio else 0
    shape = _heads(config, d_model, head_dim, wider) | {'model.d_model': d_model}
    return resolve(config.replace(**shape, **{'ffn.d_ff': d_ff}))

  def miss(c: Config) -> tuple[float, int, float]:
    uneven = abs(c.model.num_heads * c.model.head_dim - c.model.d_model) if c.model.num_heads else 0
    off = abs(cost(c) - target)
    if not ratio:
      return max(off / target, 0.004), uneven, off / target
    width, step = c.ffn.d_ff, routing.width_step(c)
    slope = (cost(resolve(c.replace(**{'ffn.d_ff': width + step}))) - cost(c)) / step
    return max(off / slope / width, 0.02), uneven, off / slope / width

  near = nearest(lambda units: at(2 * units), target, budget)
  if near is None or cost(at(2)) > target:
    raise UserError(f'--match={budget}: ratio {ratio:g} is over the budget of {target:,}')
  middle, reach = near.model.d_model, 2 * max(config.model.num_heads, 1)
  widths_near = range(max(2, middle - reach), middle + reach + 1, 2)
  by = (2 if ratio else 4) if config.model.num_heads else 0  # without d_ff all is up to the heads
  best = min((at(d, w) for d in widths_near for w in range(-by, by + 1, 2)), key=miss)
  return match_d_ff(best, target, budget) if ratio else best


def _heads(config: Config, d_model: int, head_dim: int, wider: int) -> dict[str, int]:
  """Heads for another d_model, as many or as wide as before, groups of queries as they are."""
  heads = config.model.num_heads
  if not heads:
    return {}
  group = heads // (config.model.num_kv_heads or heads)
  if head_dim:
    heads = group * max(1, round(d_model / head_dim / group))
  return {
    'model.num_heads': heads,
    'model.num_kv_heads': heads // group,
    'model.head_dim': max(2, 2 * round(d_model / heads / 2) + wider),
  }


def match_depth(config: Config, target: int, budget: str) -> Config:
  """Returns `config` with the depth whose `budget` is nearest to `target`, its ratio kept.

  config: as asked. Depth moves in whole layers, with --ffn.ratios by as many as it names, and
  absorbs most; d_model takes up the remainder (match_width).
  """
  text, cost = config.ffn.ratios, BUDGETS[budget]
  step = 1 if text.startswith('ramp') else len(text.split(','))

  def at(units: int) -> Config:
    return resolve(config.replace(**{'model.num_layers': units * step, 'ffn.d_ff': 0}))

  if cost(at(1)) == cost(at(2)):
    raise UserError(f'--match={budget}: more layers cost nothing where all share their parameters')
  near = nearest(at, target, budget)
  if near is None:
    least = 'one layer is' if step == 1 else f'{step} layers are'
    raise UserError(f'--match={budget}: {least} over the budget of {target:,}')
  layers = near.model.num_layers
  return match_width(config.replace(**{'model.num_layers': layers}), target, budget)
