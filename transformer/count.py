"""Parameters and FLOPs of a resolved config as plain arithmetic, and widths for an equal budget.

One multiply-add is 2 FLOPs; only matrix products count (element-wise work, softmax and the
embedding look-up do not). Attention counts all T × T scores, as the dense reference computes them.
A training step costs three times its forward pass: each product has two more in backward.
"""

from __future__ import annotations

from math import prod

from transformer import axes, spec
from transformer.config import Config, resolve
from transformer.errors import UserError


def sizes(config: Config) -> dict[str, int]:
  """Letter -> size for a resolved config."""
  m = config.model
  return {
    'B': config.data.batch_size,
    'T': config.data.seq_len,
    'S': config.data.seq_len,
    'D': m.d_model,
    'F': config.ffn.d_ff,
    'N': m.num_heads,
    'H': m.head_dim,
    'V': m.vocab_size,
    'L': m.num_layers,
  }


def shapes(config: Config) -> dict[str, tuple[int, ...]]:
  """Path -> shape of every parameter of the model a resolved config describes."""
  m = config.model
  norm = ['scale', 'bias'] if spec.parse('model.norm', m.norm).bias else ['scale']
  attention = ['query', 'key', 'value', 'out']
  activation = spec.parse('ffn.activation', config.ffn.activation)
  ffn = ['up', 'gate', 'down'] if activation.gated else ['up', 'down']
  paths = ['embed/table']
  if spec.parse('model.positions', m.positions).table:
    paths.append('positions/table')
  paths += [f'layers/attention_norm/{n}' for n in norm]
  paths += [f'layers/attention/{n}' for n in _with_bias(attention, m.bias)]
  paths += [f'layers/ffn_norm/{n}' for n in norm]
  paths += [f'layers/ffn/{n}' for n in _with_bias(ffn, config.ffn.bias)]
  paths += [f'final_norm/{n}' for n in norm]
  size = sizes(config)
  return {path: tuple(size[c] for c in axes.letters(path)) for path in paths}


def _with_bias(names: list[str], bias: bool) -> list[str]:
  return names + [f'{n}_bias' for n in names] if bias else names


def params(config: Config) -> int:
  """Number of parameters; the tied embedding counts once."""
  return sum(prod(shape) for shape in shapes(config).values())


def params_by_part(config: Config) -> dict[str, int]:
  """Parameters of 'embedding', 'attention', 'ffn' and 'norms'."""
  parts = {'embedding': 0, 'attention': 0, 'ffn': 0, 'norms': 0}
  for path, shape in shapes(config).items():
    owner = path.split('/')[-2]
    part = 'norms' if owner.endswith('norm') else owner if owner in parts else 'embedding'
    parts[part] += prod(shape)
  return parts


def flops_by_part(config: Config) -> dict[str, int]:
  """FLOPs per token of a forward pass, by part."""
  n = sizes(config)
  products = 3 if spec.parse('ffn.activation', config.ffn.activation).gated else 2
  return {
    'attention projections': n['L'] * 4 * 2 * n['D'] * n['N'] * n['H'],
    'attention scores': n['L'] * 2 * 2 * n['S'] * n['N'] * n['H'],
    'ffn': n['L'] * products * 2 * n['D'] * n['F'],
    'logits': 2 * n['D'] * n['V'],
  }


def flops_per_token(config: Config) -> int:
  """Training FLOPs per token: forward and backward."""
  return 3 * sum(flops_by_part(config).values())


def train_tokens(config: Config) -> int:
  """Tokens a run trains on."""
  return config.train.steps * config.data.batch_size * config.data.seq_len


def train_flops(config: Config) -> float:
  """Training FLOPs of a whole run."""
  return float(flops_per_token(config)) * train_tokens(config)


BUDGETS = {'params': params, 'flops': flops_per_token}


def match_d_ff(config: Config, target: int, budget: str) -> Config:
  """Returns `config` with the d_ff whose `budget` ('params' or 'flops') is nearest to `target`.

  d_ff stays a multiple of ffn.multiple_of. Cost is linear in d_ff, so two points solve it.
  """
  cost, step = BUDGETS[budget], config.ffn.multiple_of

  def at(d_ff: int) -> Config:
    return resolve(config.replace(**{'ffn.d_ff': d_ff}))

  one, two = cost(at(step)), cost(at(2 * step))
  units = round((target - one) / (two - one)) + 1
  if units < 1:
    raise UserError(
      f'--match={budget}: {config.ffn.activation} at d_model={config.model.d_model} is over the '
      f'budget of {target:,} even with d_ff={step}'
    )
  return at(units * step)


def match_width(config: Config, ratio: float, target: int, budget: str) -> Config:
  """Returns `config` at d_ff/d_model near `ratio` and at `budget` nearest to `target`.

  d_model moves in steps that keep the number of heads and an even head width; d_ff then takes up
  the remainder, so that the budget is met closely and the ratio approximately.
  """
  cost, step = BUDGETS[budget], 2 * config.model.num_heads

  def at(units: int) -> Config:
    width = {'model.d_model': units * step, 'model.head_dim': 0}
    d_ff = max(1, round(ratio * units * step))
    return resolve(config.replace(**width, **{'ffn.d_ff': d_ff}))

  low, high = 1, 2
  if cost(at(low)) > target:
    raise UserError(f'--match={budget}: ratio {ratio} is over the budget of {target:,}')
  while cost(at(high)) <= target:
    low, high = high, 2 * high
  while high - low > 1:
    middle = (low + high) // 2
    low, high = (middle, high) if cost(at(middle)) <= target else (low, middle)
  near = min((at(low), at(high)), key=lambda c: abs(cost(c) - target))
  return match_d_ff(near, target, budget)
