"""Parameters and FLOPs of a resolved config as plain arithmetic, and widths for an equal budget.

One multiply-add is 2 FLOPs; only matrix products count (element-wise work, softmax and the
embedding look-up do not). Attention counts all T × T scores, as the dense reference computes them.
A training step costs three times its forward pass: each product has two more in backward.

Of experts those count that compute a token by its router's choice. To move tokens there and back
is no product. What a dispatcher computes besides does not count: places and blocks that stay
empty, experts that `dense` computes and nobody chose; and choices that are dropped do.
"""

from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import dataclass
from math import prod

from transformer import axes, spec
from transformer.config import Config, routing, widths


@dataclass(frozen=True)
class Group:
  """Neighbouring layers of equal shape, whose parameters are stacked.

  name: that of its stack, or '<stack>_<first>' where not all layers of it are equal. first: number
  of its first layer in the stack. size: how many. d_ff: their hidden width, 0 where they have no
  FFN. stack: 'layers', or 'encoder_layers' for the encoder of an encoder_decoder. before: layers of
  the stacks before its own. experts: how many their FFN is made of, each d_ff wide; 0: it is dense.
  """

  name: str
  first: int
  size: int
  d_ff: int
  stack: str = 'layers'
  before: int = 0
  experts: int = 0


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
    encoder, runs, first = stack == 'encoder_layers', [], 0
    shapes = zip(widths(config, encoder), routing.moe_layers(config, encoder), strict=True)
    for (d_ff, wanted), members in itertools.groupby(shapes):
      split = (routing.experts(config), d_ff // config.moe.granularity) if wanted and d_ff else ()
      runs.append((first, len(list(members)), *(split or (0, d_ff))))
      first += runs[-1][1]
    for first_of, size, experts, d_ff in runs:
      name = stack if len(runs) == 1 else f'{stack}_{first_of}'
      found.append(Group(name, first_of, size, d_ff, stack, before, experts))
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
    'E': routing.experts(config),
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
    own = dict(F=group.d_ff, M=group.d_ff, L=group.size)
    add([f'{group.name}/{path}' for path in _block(config, group, norm)], **own)
    if group.experts:
      add(
        [f'{group.name}/{path}' for path in _experts(config, group)], **own, C=_slots(config, group)
      )
      joint = config.moe.shared_experts * group.d_ff
      leaves = ffn_leaves(config, group.stack) if joint else []
      add([f'{group.name}/ffn/shared/{leaf}' for leaf in leaves], **own | dict(F=joint, M=joint))
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
      own = not config.ffn.shared and not group.experts
      paths += [f'ffn/{leaf}' for leaf in ffn_leaves(config, group.stack) if own]
      continue
    biased = ('query', 'key', 'value', 'out')[: 4 if m.bias else 3 if m.qkv_bias else 0]
    paths += [f'{branch}/{leaf}' for leaf in ('query', 'key', 'value', 'out')]
    paths += [f'{branch}/{leaf}_bias' for leaf in biased]
    paths += [f'{branch}/{leaf}_norm/scale' for leaf in ('query', 'key') if m.qk_norm]
  norms = ['block'] if m.parallel_branches else list(members)
  norms += [f'{branch}_out' for branch in members if m.norm_placement == 'sandwich']
  return paths + [f'{name}_norm/{leaf}' for name in norms for leaf in norm]


def _experts(config: Config, group: Group) -> list[str]:
  """Paths of the parameters of the router and the experts of a block of a group."""
  trained = [name for name, trained in routing.router(config).weights.items() if trained]
  leaves = ffn_leaves(config, group.stack)
  return [f'ffn/{name}' for name in trained] + [f'ffn/experts/{leaf}' for leaf in leaves]


def kept(config: Config) -> dict[str, tuple[int, ...]]:
  """Path -> shape of what routers keep between steps, which no gradient changes."""
  names = [n for n, trained in routing.router(config).weights.items() if not trained]
  size = sizes(config)
  return {
    path: tuple((size | dict(L=group.size))[c] for c in axes.letters(path))
    for group in groups(config)
    for path in (f'{group.name}/ffn/{name}' for name in names)
    if group.experts
  }


def length(config: Config, group: Group) -> int:
  """Tokens of the sequences of a group's stack."""
  return sizes(config)['S' if group.stack == 'encoder_layers' else 'T']


def _slots(config: Config, group: Group) -> int:
  """Slots of each expert under soft routing."""
  tokens = routing.group_length(config, length(config, group))
  return routing.capacity(config, tokens, training=True)


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

  'cross-attention' where there is a source, 'router', 'experts', 'shared experts' where there are.
  """
  cross = {'cross-attention': 0} if stacks(config)[1:] else {}
  parts = {'embedding': 0, 'attention': 0, **cross, 'ffn': 0, 'norms': 0}
  if any(group.experts for group in groups(config)):
    parts |= {'router': 0, 'experts': 0}
    parts |= {'shared experts': 0} if config.moe.shared_experts else {}
  names = {'shared': 'shared experts', 'cross_attention': 'cross-attention'}
  for path, shape in shapes(config).items():
    owner, leaf = path.split('/')[-2:]
    part = 'router' if leaf.startswith('router') else names.get(owner, owner)
    part = 'norms' if owner.endswith('norm') else part if part in parts else 'embedding'
    parts[part] += prod(shape)
  return parts


def active_params(config: Config) -> int:
  """Parameters that one token meets: of the experts those it is routed to, else all.

  Where experts choose tokens, as many as a token has on average; under soft routing as many as
  there are slots a token, at most all.
  """
  idle = 0.0
  for group in groups(config):
    if group.experts:
      each = sum(
        prod(shape)
        for path, shape in shapes(config).items()
        if path.startswith(f'{group.name}/ffn/experts/')
      )
      idle += each * (1 - min(1.0, active(config, group) / group.experts))
  return round(params(config) - idle)


def looks_ahead(config: Config) -> bool:
  """Whether a decoder's routing depends on tokens that it is yet to predict."""
  if config.model.architecture == 'encoder' or not routing.noncausal(config):
    return False
  return any(group.experts for group in groups(config) if group.stack == 'layers')


def active(config: Config, group: Group) -> float:
  """Experts that compute a token of a group of layers, on average."""
  variant = routing.router(config)
  if variant.decision == 'token':
    return routing.choices(config)
  tokens = routing.group_length(config, length(config, group))
  return group.experts * routing.capacity(config, tokens, training=True) / tokens


def experts(config: Config) -> tuple[int, float]:
  """Experts of a layer that has them, and how many compute a token on average; 0, 0: all dense."""
  for group in groups(config):
    if group.experts:
      return group.experts, active(config, group)
  return 0, 0.0


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
    own = [group for group in groups(config) if group.stack == stack]
    per_row['ffn'] += length * sum(_ffn_flops(config, group) for group in own)
  if config.model.head == 'transform':
    per_row['head'] += n['T'] * 2 * n['D'] * n['O']
  per_row['logits'] += n['T'] * 2 * n['D'] * n['V']
  return {part: _ratio(flops, n['T']) for part, flops in per_row.items()}


def _ffn_flops(config: Config, group: Group) -> float:
  """Of the feed-forward networks of a group of layers, per token of their stack."""
  inputs = len(spec.parse('ffn.activation', activation(config, group.stack)).inputs)
  between = inputs * (config.ffn.hidden_layers - 1)

  def network(width: int) -> int:
    return 2 * ((inputs + 1) * config.model.d_model + between * width) * width

  if not group.experts:
    return group.size * network(group.d_ff)
  many, wide = active(config, group), network(config.moe.shared_experts * group.d_ff)
  return group.size * (many * network(group.d_ff) + wide + _router_flops(config, group))


def _router_flops(config: Config, group: Group) -> float:
  """Of scores; under soft routing also of the mixtures that fill slots and make up tokens."""
  D = config.model.d_model
  if routing.router(config).decision == 'soft':
    return 3 * 2 * D * group.experts * _slots(config, group)
  return 2 * D * group.experts * ('router' in routing.router(config).weights)


def _ratio(a: float, b: int) -> int | float:
  """a / b, whole where b divides a."""
  return int(a // b) if a % b == 0 else a / b


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
