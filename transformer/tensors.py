"""The tensors of a forward pass by name and shape, and which of them backward reads again.

Plain arithmetic on a resolved config. What is kept is the least that each operation's gradient
needs: a product keeps both factors, a norm and an activation their inputs, softmax its result,
dropout its mask, the loss the logits. Parameters are not counted here, nor numbers of which there
are as many as tokens, nor the rows by which dropless dispatch fills experts up to whole blocks. JAX
differentiates finer steps than these and keeps up to about twice as much (tests/test_tensors.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from transformer import count, spec
from transformer.config import Config, routing


@dataclass(frozen=True)
class Tensor:
  """One tensor. name: its own and its letters. made: from what. bytes: of all of it."""

  name: str
  shape: tuple[int, ...]
  made: str
  bytes: int
  kept: bool


@dataclass(frozen=True)
class Part:
  """A part of the forward pass, as in 'decoder layer, cross-attention', and how often it comes."""

  name: str
  times: int
  tensors: list[Tensor]


def forward(config: Config) -> list[Part]:
  """The parts of the forward pass of a micro-batch, in order.

  T is the length of a part's own sequence, S that of the one its attention looks at.
  """
  parts = []
  for stack in count.stacks(config):
    parts.append(_embedding(config, stack))
    for group in count.groups(config):
      if group.stack == stack:
        parts += _layer(config, group)
    if stack == 'encoder_layers':
      parts.append(_memory(config))
  return [*parts, _logits(config)]


def kept_bytes(config: Config) -> int:
  """Bytes of activations that a micro-batch keeps for its backward pass, over all devices."""
  return sum(p.times * t.bytes for p in forward(config) for t in p.tensors if t.kept)


class _Table:
  """Collects the tensors of a part; letters have the sizes of its stack."""

  def __init__(self, config: Config, stack: str, d_ff: int = 0):
    self.config, self.size, self.rows = config, count.sizes(config), []
    self.source_len = self.size['S']
    length = self.size['S' if stack == 'encoder_layers' else 'T']
    rows = self.size['B'] // config.train.accumulate
    self.size |= dict(B=rows, T=length, S=length, F=d_ff, M=d_ff)
    self.norm = spec.parse('model.norm', config.model.norm).variant
    self.placement = config.model.norm_placement if self.norm != 'none' else ''

  def add(self, name: str, made: str, kept: bool = True, item: int = 0, **own: int) -> str:
    """item: bytes of an entry; 0: of the compute type. own: sizes of letters that differ."""
    shape = tuple((self.size | own)[c] for c in name.rpartition('_')[2])
    item = item or {'float32': 4, 'bfloat16': 2}[self.config.model.dtype]
    self.rows.append(Tensor(name, shape, made, prod(shape) * item, kept))
    return name

  def normed(self, x: str) -> str:
    """The norm of a tensor; itself where there is none."""
    return x if self.norm == 'none' else self.add('normed_BTD', f'{self.norm}({x})')

  def dropped(self, letters: str, rate: float, **own: int) -> None:
    """The mask of a dropout, a byte an entry, as JAX stores booleans."""
    if rate:
      self.add(f'drop_{letters}', f'true where kept: {1 - rate:g} of all', item=1, **own)


def _embedding(config: Config, stack: str) -> Part:
  m, t = config.model, _Table(config, stack)
  source = stack == 'encoder_layers'
  name = 'source_BS' if source else 'target_BT' if _both(config) else 'tokens_BT'
  t.add(name, 'ids', item=4)
  if m.num_heads:
    causal = not source and m.architecture != 'encoder'
    t.add('mask_BTS', f'true where a query may look{" back" * causal}', item=1)
  table = 'source_embed_VD' if source and not m.shared_source else 'embed_VD'
  scale = '√D · ' if m.embedding_scale == 'sqrt_d_model' else ''
  added = {'learned': f' + {scale}positions_TD', 'sinusoidal': ' + sinusoid_TD'}
  made = f'{scale}{table}[{name}]'
  made += added.get(spec.parse('model.positions', m.positions).variant, '')
  t.add('x_BTD', made + f' + {scale}types_AD' * bool(m.token_types))
  if m.embedding_norm:
    t.add('x_BTD', f'{t.norm}(x_BTD)')
  t.dropped('BTD', m.dropout)
  return Part(f'{"source " * source}embedding', 1, t.rows)


def _layer(config: Config, group: count.Group) -> list[Part]:
  """The stages of a layer of a group: each branch, or all at once where they are parallel."""
  encoder = group.stack == 'encoder_layers' or config.model.architecture == 'encoder'
  first, last = group.first + 1, group.first + group.size
  numbers = f' {last}' if first == last else f's {first} to {last}'
  which = '' if group.name == group.stack else numbers  # all are equal
  members = count.branch_names(config, group)
  stages = [members] if config.model.parallel_branches else [(name,) for name in members]
  ffn = 'mixture of experts' if group.experts else 'FFN'
  spoken = {'attention': 'self-attention', 'cross_attention': 'cross-attention', 'ffn': ffn}
  owner = f'{"encoder" if encoder else "decoder"} layer{which}'
  return [
    Part(f'{owner}, {" and ".join(map(spoken.get, s))}', group.size, _stage(config, group, s))
    for s in stages
  ]


def _stage(config: Config, group: count.Group, branches: tuple[str, ...]) -> list[Tensor]:
  """Branches that read the same input, their sum with the stream, and its norm."""
  t = _Table(config, group.stack, group.d_ff)
  reads, total = 'x_BTD' if t.placement == 'post' else t.normed('x_BTD'), 'x_BTD'
  for branch in branches:
    if branch == 'ffn':
      name = (_mixture if group.experts else _ffn)(t, group, reads)
    else:
      name = _attention(t, branch, reads)
    if t.placement == 'sandwich':
      name = t.add('normed_BTD', f'{t.norm}({name})', kept=False)
    t.dropped('BTD', config.model.dropout)
    total += f' + {name}'
  if t.placement == 'post':
    total = f'{t.norm}({t.add("sum_BTD", total)})'
  t.add('x_BTD', total)
  return t.rows


def _attention(t: _Table, branch: str, reads: str) -> str:
  m, cross = t.config.model, branch == 'cross_attention'
  positions = spec.parse('model.positions', m.positions)
  own = dict(S=t.source_len) if cross else {}
  from_ = 'memory_BSD' if cross else reads
  bias = ' + bias' * (m.bias or m.qkv_bias)
  turned = ', rotated' * (positions.variant == 'rotary' and not cross)
  query = t.add('query_BTNH', f'{reads} · query_DNH{bias}{turned * (not m.qk_norm)}')
  key = t.add('key_BSKH', f'{from_} · key_DKH{bias}{turned * (not m.qk_norm)}', **own)
  if m.qk_norm:
    query = t.add('query_BTNH', f'rmsnorm(query_BTNH){turned}')
    key = t.add('key_BSKH', f'rmsnorm(key_BSKH){turned}', **own)
  t.add('value_BSKW', f'{from_} · value_DKW{bias}', **own)
  standard = t.config.optim.parametrization == 'standard'
  scores = f'{query} · {key} {"/ √H" if standard else "· scale"}'
  scores += ' + bias_NTS' * (positions.acts_on == 'scores' and not cross)
  capped = bool(m.attention_cap)
  t.add('scores_BNTS', scores + ', capped' * capped, kept=capped, item=4, **own)
  t.add('weights_BNTS', 'softmax over S of scores_BNTS', **own)
  t.add('mixed_BTNW', 'Σ_S weights_BNTS · value_BSKW')
  made = f'mixed_BTNW · out_NWD{" + bias" * m.bias}'
  return t.add('out_BTD', made, kept=t.placement == 'sandwich')


def _ffn(t: _Table, group: count.Group, reads: str) -> str:
  return _network(t, group, reads, '', kept=t.placement == 'sandwich')


def _network(t: _Table, group: count.Group, reads: str, owner: str, kept: bool, **own: int) -> str:
  """A feed-forward network of what it reads. owner: of its parameters, as in 'experts/'.

  kept: whether something reads its result in backward. own: sizes of letters that differ.
  """
  ffn, activation = t.config.ffn, count.activation(t.config, group.stack)
  inputs, bias = spec.parse('ffn.activation', activation).inputs, ' + bias' * ffn.bias
  hidden, rows = reads, reads.rpartition('_')[2][:-1]
  many = 'E' * (owner == 'experts/')
  for stage, letters in [('', 'DF'), ('middle_', 'FM')][: ffn.hidden_layers]:
    out = f'{rows}{letters[1]}'
    names = [
      t.add(f'{stage}{name}_{out}', f'{hidden} · {owner}{stage}{name}_{many}{letters}{bias}', **own)
      for name in inputs
    ]
    hidden = t.add(f'{stage}h_{out}', f'{activation}({", ".join(names)})', **own)
  t.dropped(hidden.rpartition('_')[2], ffn.dropout, **own)
  return t.add(f'down_{rows}D', f'{hidden} · {owner}down_{many}FD{bias}', kept, **own)


def _mixture(t: _Table, group: count.Group, reads: str) -> str:
  """Scores, who goes where, the rows of experts and what they add up to; shared experts beside.

  Where scores have a say in weights, the gradient of those reads what experts made of each row.
  """
  c, router, mover = t.config, routing.router(t.config), routing.dispatch(t.config)
  T = routing.group_length(c, t.size['T'])
  own = dict(G=t.size['B'] * t.size['T'] // T, T=T, E=group.experts)
  if router.decision != 'token' or mover.drops:
    own['C'] = routing.capacity(c, T, training=True)
  scored = any(router.weights.get(name) for name in ('router', 'router_slots'))
  if router.decision == 'soft':
    rows, back = _soft(t, reads, own)
  else:
    scores = _scores(t, reads, own) if 'router' in router.weights else 'the ids of tokens'
    rows, back = (_chosen if router.decision == 'expert' else _choices)(t, reads, scores, own)
  made = back.format(_network(t, group, rows, 'experts/', scored, **own))
  if shared := c.moe.shared_experts:
    wide = shared * group.d_ff
    made += f' + {_network(t, group, reads, "shared/", kept=False, F=wide, M=wide)}'
  return t.add('moe_BTD', made, kept=t.placement == 'sandwich')


def _scores(t: _Table, reads: str, own: dict[str, int]) -> str:
  """A number for each token and expert; the gradient of a softmax or a sigmoid reads its result."""
  router = routing.router(t.config)
  logits = t.add('logits_GTE', f'{reads} · router_DE', kept=False, item=4, **own)
  function = 'sigmoid' if getattr(router, 'score', '') == 'sigmoid' else 'softmax over E'
  trained = router.weights['router']
  return t.add('probs_GTE', f'{function} of {logits}', kept=trained, item=4, **own)


def _choices(t: _Table, reads: str, scores: str, own: dict[str, int]) -> tuple[str, str]:
  mover, own['R'] = routing.dispatch(t.config), routing.choices(t.config)
  t.add('experts_GTR', f'which R each token takes, by {scores}', item=4, **own)
  t.add('weights_GTR', 'of those R', item=4, **own)
  if mover.variant == 'dense':
    return t.add(
      'rows_EGTD', f'{reads}, for each expert', kept=False, **own
    ), 'Σ_R weights_GTR · {}'
  if mover.drops:
    made = f'{reads} of the tokens that find a place'
    return t.add('rows_EGCD', made, **own), 'Σ_R weights_GTR · {}, 0 without a place'
  return t.add('rows_GTRD', f'{reads} of each choice, by expert', **own), 'Σ_R weights_GTR · {}'


def _chosen(t: _Table, reads: str, scores: str, own: dict[str, int]) -> tuple[str, str]:
  t.add('tokens_GEC', f'which C each expert takes, by {scores}', item=4, **own)
  t.add('weights_GEC', 'of those C', item=4, **own)
  if routing.dispatch(t.config).variant == 'dense':
    return t.add(
      'rows_EGTD', f'{reads}, for each expert', kept=False, **own
    ), 'Σ_E weights_GEC · {}'
  return t.add('rows_EGCD', f'{reads} of those tokens', **own), 'Σ_E weights_GEC · {}'


def _soft(t: _Table, reads: str, own: dict[str, int]) -> tuple[str, str]:
  logits = t.add('logits_GTEC', f'{reads} · router_slots_DEC', kept=False, item=4, **own)
  send = t.add('send_GTEC', f'softmax over T of {logits}', item=4, **own)
  back = t.add('back_GTEC', f'softmax over E, C of {logits}', item=4, **own)
  return t.add('rows_EGCD', f'Σ_T {send} · {reads}', **own), f'Σ_EC {back} · {{}}'


def _memory(config: Config) -> Part:
  """What cross-attention of every layer looks at, kept once."""
  t = _Table(config, 'encoder_layers')
  normed = t.placement in ('pre', 'sandwich')
  t.add('memory_BSD', f'{t.norm}(x_BTD)' if normed else 'x_BTD', kept=normed)
  return Part('encoder output', 1, t.rows)


def _logits(config: Config) -> Part:
  m, t = config.model, _Table(config, 'layers')
  reads = 'x_BTD' if t.placement == 'post' else t.normed('x_BTD')
  if m.head == 'transform':
    made = t.add('head_BTO', f'{reads} · transform_DO + bias')
    reads = t.add('h_BTO', f'{config.ffn.activation}({made})')
    if t.norm != 'none':
      reads = t.add('normed_BTO', f'{t.norm}({reads})')
  table = 'embed_VD' if m.tied else 'unembed_VD'
  made = f'{reads} · {table}{" + bias" * m.logits_bias}{", capped" * bool(m.logit_cap)}'
  t.add('logits_BTV', made, item=4)
  t.add('nats_BT', '−log softmax(logits_BTV)[target]', kept=False, item=4)
  return Part('logits', 1, t.rows)


def _both(config: Config) -> bool:
  return config.model.architecture == 'encoder_decoder'
