"""Parameters and FLOPs of a resolved config as plain arithmetic, and widths for an equal budget.

One multiply-add is 2 FLOPs; only matrix products count (element-wise work, softmax and the
embedding look-up do not). Attention counts all T × T scores, as the dense reference computes them.
A training step costs three times its forward pass: each product has two more in backward.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from math import prod

from transformer import axes, spec
from transformer.config import Config, ratios, resolve, widths
from transformer.errors import UserError


@dataclass(frozen=True)
class Group:
  """Neighbouring layers of equal shape, whose parameters are stacked.

  name: that of its stack, or '<stack>_<first>' where not all layers of it are equal. first: number
  of its first layer in the stack. size: how many. d_ff: their hidden width, 0 where they have no
  FFN. stack: 'layers', or 'encoder_layers' for the encoder of an encoder_decoder. before: layers of
  the stacks before its own.
  """

  name: str
  first: int
  size: int
  d_ff: int
  stack: str = 'layers'
  before: int = 0


def stacks(config: Config) -> list[str]:
  """The stacks of layers of a resolved config, in the order of the forward pass."""
  both = config.model.architecture == 'encoder_decoder'
  return ['encoder_layers', 'layers'] if both else ['layers']


def depth(config: Config, stack: str) -> int:
  """Number of layers of a stack."""
  own = config.model.num_encoder_layers if stack == 'encoder_layers' else 0
  return own or config.model.num_layers


def branches(config: Config, stack: str) -> int:
  """Number of branches of a stack that write into its residual stream."""
  return depth(config, stack) * (3 if stack in stacks(config)[1:] else 2)


def activation(config: Config, stack: str) -> str:
  """The activation of a stack's feed-forward networks."""
  own = config.ffn.encoder_activation if stack == 'encoder_layers' else ''
  return own or config.ffn.activation


def groups(config: Config) -> list[Group]:
  """The layers of a resolved config, in the order of the forward pass."""
  found, before = [], 0
  for stack in stacks(config):
    runs, first = [], 0
    for d_ff, members in itertools.groupby(widths(config, encoder=stack == 'encoder_layers')):
      runs.append((first, len(list(members)), d_ff))
      first += runs[-1][1]
    for run in runs:
      name = stack if len(runs) == 1 else f'{stack}_{run[0]}'
      found.append(Group(name, *run, stack, before))
    before += first
  return found


def sizes(config: Config) -> dict[str, int]:
  """Letter -> size for a resolved config; F and L are those of a group where groups differ."""
  m, positions = config.model, spec.parse('model.positions', config.model.positions)
  return {
    'B': config.data.batch_size,
    'T': config.data.seq_len,
    'S': config.data.source_len or config.data.seq_len,
    'D': m.d_model,
    'F': config.ffn.d_ff,
    'M': config.ffn.d_ff,
    'N': m.num_heads,
    'K': m.num_kv_heads or m.num_heads,
    'H': m.head_dim,
    'V': m.vocab_size,
    'L': m.num_layers,
    'U': getattr(positions, 'buckets', 0),
    'W': m.v_head_dim or m.head_dim,
    'A': m.token_types,
    'O': m.d_model,
  }


def shapes(config: Config) -> dict[str, tuple[int, ...]]:
  """Path -> shape of every parameter of the model a resolved config describes."""
  m = config.model
  norm = spec.parse('model.norm', m.norm).leaves
  size, found = sizes(config), {}

  def add(paths: list[str], **own: int) -> None:
    found.update({p: tuple((size | own)[c] for c in axes.letters(p)) for p in paths})

  positions = spec.parse('model.positions', m.positions).leaves
  encoder = 'encoder_layers' in stacks(config)
  add(['embed/table'] + ['source_embed/table'] * (encoder and not m.shared_source))
  add(['types/table'] * bool(m.token_types))
  for side in ['source_', ''] if encoder else ['']:
    add([f'{side}positions/{leaf}' for leaf in positions])
    add([f'{side}embed_norm/{leaf}' for leaf in norm if m.embedding_norm])
  for group in groups(config):
    width = dict(F=group.d_ff, M=group.d_ff, L=group.size)
    add([f'{group.name}/{path}' for path in _block(config, group, norm)], **width)
  if config.ffn.shared:
    add([f'ffn/{leaf}' for leaf in ffn_leaves(config)])
  if m.norm_placement != 'post':
    finals = ['encoder_norm', 'final_norm'] if encoder else ['final_norm']
    add([f'{name}/{leaf}' for name in finals for leaf in norm])
  if m.head == 'transform':
    add(['head/transform', 'head/transform_bias', *(f'head_norm/{leaf}' for leaf in norm)])
  unembed = ['table'] * (not m.tied) + ['bias'] * m.logits_bias
  add([f'unembed/{leaf}' for leaf in unembed])
  return found


def _block(config: Config, group: Group, norm: tuple[str, ...]) -> list[str]:
  """Paths of the parameters of one block of a group."""
  m, paths = config.model, []
  members = branch_names(config, group)
  for branch in members:
    if branch == 'ffn':
      own = not config.ffn.shared
      paths += [f'ffn/{leaf}' for leaf in ffn_leaves(config, group.stack) if own]
      continue
    biased = ('query', 'key', 'value', 'out')[: 4 if m.bias else 3 if m.qkv_bias else 0]
    paths += [f'{branch}/{leaf}' for leaf in ('query', 'key', 'value', 'out')]
    paths += [f'{branch}/{leaf}_bias' for leaf in biased]
    paths += [f'{branch}/{leaf}_norm/scale' for leaf in ('query', 'key') if m.qk_norm]
  norms = ['block'] if m.parallel_branches else list(members)
  norms += [f'{branch}_out' for branch in members if m.norm_placement == 'sandwich']
  return paths + [f'{name}_norm/{leaf}' for name in norms for leaf in norm]


def branch_names(config: Config, group: Group) -> list[str]:
  """The branches of a block of a group, in order."""
  attention = ['attention'] * bool(config.model.num_heads)
  cross = ['cross_attention'] * (group.stack in stacks(config)[1:])
  return [*attention, *cross, *(['ffn'] * bool(group.d_ff))]


def encoder_d_ff(config: Config) -> int | None:
  """Mean hidden width of an encoder_decoder's encoder, rounded; None where there is no such one."""
  if config.model.architecture != 'encoder_decoder':
    return None
  found = widths(config, encoder=True)
  return round(sum(found) / len(found))


def ffn_leaves(config: Config, stack: str = 'layers') -> list[str]:
  """Names of the parameters of one feed-forward network of a stack."""
  ffn = config.ffn
  own_kind = spec.parse('ffn.activation', activation(config, stack))
  stages = ['', 'middle_'][: ffn.hidden_layers]
  inner = [f'{stage}{name}' for stage in stages for name in own_kind.inputs]
  bias = [f'{name}_bias' for name in [*inner, 'down']] if ffn.bias else []
  own = [f'{stage}{leaf}' for stage in stages for leaf in own_kind.leaves]
  return [*inner, 'down', *bias, *own]


def params(config: Config) -> int:
  """Number of parameters; what is shared (a tied embedding, one FFN for all) counts once."""
  return sum(prod(shape) for shape in shapes(config).values())


def params_by_part(config: Config) -> dict[str, int]:
  """Parameters of 'embedding', 'attention', 'ffn' and 'norms'; logits belong to the embedding.

  'cross-attention' where there is a source.
  """
  cross = {'cross-attention': 0} if stacks(config)[1:] else {}
  parts = {'embedding': 0, 'attention': 0, **cross, 'ffn': 0, 'norms': 0}
  for path, shape in shapes(config).items():
    owner = path.split('/')[-2].replace('_attention', '-attention')
    part = 'norms' if owner.endswith('norm') else owner if owner in parts else 'embedding'
    parts[part] += prod(shape)
  return parts


def flops_by_part(config: Config) -> dict[str, int]:
  """FLOPs per token of a forward pass, by part; with a source, all of it per target token."""
  n, per_row = sizes(config), Counter()
  widths_HW = n['H'] + n['W']
  for stack in stacks(config):
    length = n['S'] if stack == 'encoder_layers' else n['T']
    layers = depth(config, stack)
    projections = 2 * n['D'] * (n['N'] + n['K']) * widths_HW
    per_row['attention projections'] += layers * length * projections
    per_row['attention scores'] += layers * length * 2 * length * n['N'] * widths_HW
    if stack in stacks(config)[1:]:
      queries, keys = 2 * n['D'] * n['N'] * widths_HW, 2 * n['D'] * n['K'] * widths_HW
      per_row['cross-attention projections'] += layers * (n['T'] * queries + n['S'] * keys)
      per_row['cross-attention scores'] += layers * n['T'] * 2 * n['S'] * n['N'] * widths_HW
    per_row['ffn'] += length * _ffn_flops(config, stack)
  if config.model.head == 'transform':
    per_row['head'] += n['T'] * 2 * n['D'] * n['O']
  per_row['logits'] += n['T'] * 2 * n['D'] * n['V']
  return {part: _ratio(flops, n['T']) for part, flops in per_row.items()}


def _ffn_flops(config: Config, stack: str) -> int:
  """Of all feed-forward networks of a stack, per token of that stack."""
  inputs = len(spec.parse('ffn.activation', activation(config, stack)).inputs)
  between = inputs * (config.ffn.hidden_layers - 1)
  found = widths(config, encoder=stack == 'encoder_layers')
  return 2 * sum(((inputs + 1) * config.model.d_model + between * d_ff) * d_ff for d_ff in found)


def _ratio(a: int, b: int) -> int | float:
  """a / b, exact where b divides a."""
  return a // b if a % b == 0 else a / b


def flops_per_token(config: Config) -> int:
  """Training FLOPs per token: forward and backward."""
  return 3 * sum(flops_by_part(config).values())


def train_rows(config: Config) -> int:
  """Rows a run trains on: of an encoder_decoder, pairs of a source and a target."""
  return config.train.steps * config.data.batch_size


def train_tokens(config: Config) -> int:
  """Tokens a run trains on, padding included."""
  return train_rows(config) * config.data.seq_len


def train_flops(config: Config) -> float:
  """Training FLOPs of a whole run."""
  return float(flops_per_token(config)) * train_tokens(config)


BUDGETS = {'params': params, 'flops': flops_per_token}


def match_d_ff(config: Config, target: int, budget: str) -> Config:
  """Returns `config` with the d_ff whose `budget` ('params' or 'flops') is nearest to `target`.

  d_ff stays a multiple of ffn.multiple_of. With --ffn.ratios all layers scale together.
  """
  step = config.ffn.multiple_of

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
    width, step = c.ffn.d_ff, c.ffn.multiple_of
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
