"""Keys and values of the tokens a decoder has read, and how it reads on.

Prompts of different lengths are padded in front, so that all rows write the same slot at a step.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from transformer import count, model, parametrization, spec, stacks
from transformer.attention import TURNED
from transformer.config import Config, routing
from transformer.errors import UserError
from transformer.ops.attention import in_reach
from transformer.params import path_of

_SLOTS = 32  # a buffer's are a multiple of this
_NO_END = 2**31 - 1  # of a sequence
_PROMPTS = 16  # prompts are padded to a multiple of this, so that few programs serve all


@flax.struct.dataclass
class Kept:
  """What has been read.

  cache: a layer's keys and values by its name (see Attention), over slots. pad_B: slots of padding
  before each prompt. source_BS: of an encoder_decoder, else None. slot: int32, the next to write.
  """

  cache: dict
  pad_B: jax.Array
  source_BS: jax.Array | None
  slot: jax.Array

  @property
  def size(self) -> int:
    """Slots there is room for."""
    cache = next(iter(self.cache.values()))
    return cache['attention']['value'].shape[1]


@partial(jax.jit, static_argnums=0)
def weights_for(config: Config, params: dict) -> dict:
  """Parameters as the loop reads them: a tree a layer, matrices in the compute type.

  All else in the loop is float32 (`in_float32`).
  """

  def cast(path: tuple, x: jax.Array) -> jax.Array:
    name = path_of(path)
    matrix = name == stacks.TABLE_DV or parametrization.hidden(name)
    return x.astype(config.model.dtype) if matrix else x

  return jax.tree_util.tree_map_with_path(cast, model.by_layer(config, params))


def pad(rows: Sequence[np.ndarray], multiple: int, front: bool) -> np.ndarray:
  """Rows of ids as one int32 array, −1 before or behind them."""
  longest = max(map(len, rows))
  out = np.full((len(rows), -(-longest // multiple) * multiple), -1, np.int32)
  for line, ids in zip(out, rows, strict=True):
    if len(ids):
      line[slice(-len(ids), None) if front else slice(len(ids))] = ids
  return out


def checked(
  config: Config, prompts: Sequence[np.ndarray] | None, sources: Sequence[np.ndarray] | None
) -> tuple[np.ndarray, np.ndarray | None]:
  """(prompts (B, P) padded in front, sources (B, S) padded behind or None).

  Raises UserError if this model cannot read them.
  """
  kind, vocabulary = config.model.architecture, config.model.vocab_size
  if kind == 'encoder':
    raise UserError('--model.architecture=encoder: fills gaps and writes no text; take a decoder')
  if (kind == 'encoder_decoder') != (sources is not None):
    wants = 'needs a source' if sources is None else 'takes no source'
    raise UserError(f'--model.architecture={kind}: {wants}')
  if prompts is None:
    prompts = [np.zeros(1, np.int32)] * len(() if sources is None else sources)
  if not len(prompts):
    raise UserError('--prompt: there is none; give one at least')
  length, source_len = config.data.seq_len, config.data.source_len
  for rows, most, what in ((prompts, length, 'prompt'), (sources, source_len, 'source')):
    for ids in () if rows is None else rows:
      ids = np.asarray(ids)
      if what == 'prompt' and not len(ids):
        raise UserError('--prompt: has no token; begin with 0, as each document does')
      if len(ids) > most:
        raise UserError(f'--{what}: has {_size(ids)}; the context of the model is {most}')
      if len(ids) and not 0 <= ids.min() <= ids.max() < vocabulary:
        wrong = ids.min() if ids.min() < 0 else ids.max()
        raise UserError(f'--{what}: id {wrong} is not in the vocabulary of {vocabulary}')
  if count.looks_ahead(config):
    flag, variant = next(iter(routing.noncausal(config).items()))
    raise UserError(
      f'--{flag}={spec.canonical(variant)}: routes by tokens that are not written yet, so nothing '
      'can be written with it'
    )
  # Where experts choose, or slots mix, how many places there are depends on the padded length.
  as_trained = config.moe.experts and routing.router(config).decision != 'token'
  fill = source_len if as_trained else _PROMPTS
  source_BS = None if sources is None else pad(sources, fill, front=False)
  return pad(prompts, _PROMPTS, front=True), source_BS


def _size(ids: np.ndarray) -> str:
  return f'{len(ids)} tokens' + ', with the 0 that begins it' * bool(ids[0] == 0)


def most_tokens(config: Config) -> int:
  """How many tokens a sequence may have: positions that were learned end with their table."""
  learned = spec.parse('model.positions', config.model.positions).variant == 'learned'
  return config.data.seq_len if learned else _NO_END


def room_after(config: Config, prompt_BP: np.ndarray) -> int:
  """How many new tokens the shortest prompt leaves room for.

  Raises UserError if one of them leaves none.
  """
  most, rows = most_tokens(config), [row[row >= 0] for row in prompt_BP]
  longest, shortest = max(rows, key=len), min(rows, key=len)
  if len(longest) >= most:
    raise UserError(f'--prompt: has {_size(longest)}; they fill the context of the model')
  return most - len(shortest)


def full(config: Config, kept: Kept, steps: jax.Array) -> jax.Array:
  """full_B: whether sequences may not go on after so many steps, padding before them included."""
  return steps - kept.pad_B >= most_tokens(config)


def read(
  config: Config,
  weights: dict,
  prompt_BP: jax.Array,
  source_BS: jax.Array | None,
  size: int,
  turned: bool = False,
) -> tuple[jax.Array, Kept]:
  """Reads prompts into `size` slots: (float32 logits_BV after the last token, what is kept).

  turned: for several tokens a row and step, as beams are.
  """
  rows, length = prompt_BP.shape
  pad_B = jnp.sum(prompt_BP < 0, axis=1)
  memory_BSD = None
  if source_BS is not None:
    source = model.SourceEncoder(in_float32(config), by_layer=True)
    memory_BSD = source.apply({'params': weights}, source_BS)
  kept = Kept(_empty(config, rows, size, turned), pad_B, source_BS, jnp.int32(0))
  slots = _in_line(config, kept, length)
  logits_BTV, kept = logits_of(config, weights, kept, prompt_BP, slots, memory_BSD)
  return logits_BTV[:, -1], kept


def follow(config: Config, weights: dict, kept: Kept, token_B: jax.Array) -> tuple[jax.Array, Kept]:
  """Reads one more token a row: (float32 logits_BV after it, what is kept)."""
  logits_BTV, kept = logits_of(config, weights, kept, token_B[:, None], _in_line(config, kept, 1))
  return logits_BTV[:, -1], kept


def _in_line(config: Config, kept: Kept, tokens: int) -> stacks.Slots:
  """The next so many slots, each a step after the one before."""
  step_T, step_S = kept.slot + jnp.arange(tokens), jnp.arange(kept.size)
  present_B1S = (step_S[None] >= kept.pad_B[:, None])[:, None]
  return stacks.Slots(
    slot=kept.slot,
    mask_BTS=visible(config, step_T, step_S) & present_B1S,
    positions_BT=positions_of(config, kept, step_T),
    step_T=step_T,
    step_S=step_S,
  )


def positions_of(config: Config, kept: Kept, step_T: jax.Array) -> jax.Array:
  """positions_BT of tokens in their sequences; of padding and of what is past the end, any."""
  positions_BT = step_T[None] - kept.pad_B[:, None]
  return jnp.clip(positions_BT, 0, most_tokens(config) - 1)


def visible(config: Config, step_T: jax.Array, step_S: jax.Array) -> jax.Array:
  """mask_TS: keys before a token, no further back than a row is long: training saw none there."""
  window = min(config.model.attention_window or config.data.seq_len, config.data.seq_len)
  return in_reach(step_T[:, None] - step_S[None], causal=True, window=window)


def logits_of(
  config: Config,
  weights: dict,
  kept: Kept,
  tokens_BT: jax.Array,
  slots: stacks.Slots,
  memory_BSD: jax.Array | None = None,
) -> tuple[jax.Array, Kept]:
  """Logits of tokens that stand where `slots` says, and what is kept then."""
  read = model.build(in_float32(config), by_layer=True)
  variables = {'params': weights, 'cache': kept.cache}
  if kept.source_BS is None:
    inputs, more = (tokens_BT,), {}
  else:
    inputs, more = (kept.source_BS, tokens_BT), dict(memory_BSD=memory_BSD)
  (logits_BTV, _), changed = read.apply(variables, *inputs, slots=slots, **more, mutable=['cache'])
  return logits_BTV, kept.replace(cache=changed['cache'], slot=kept.slot + tokens_BT.shape[1])


def room_for(needed: int, most: int = 0, before: int = 0) -> int:
  """Slots of a buffer that must hold `needed` and will never hold more than `most`.

  Attention reads a buffer to its end, and each size is a program to compile: half as large again.
  """
  wanted = max(needed, min(before * 3 // 2, most))
  return -(-wanted // _SLOTS) * _SLOTS


@partial(jax.jit, static_argnums=1)
def grown(kept: Kept, size: int) -> Kept:
  """The same with room for more slots."""

  def widen(path: tuple, x: jax.Array) -> jax.Array:
    if 'cross_attention' in jax.tree_util.keystr(path):
      return x
    more, slots = [(0, 0)] * 3, 2 if path[-1].key == TURNED else 1
    more[slots] = (0, size - x.shape[slots])
    return jnp.pad(x, more)

  return kept.replace(cache=jax.tree_util.tree_map_with_path(widen, kept.cache))


def in_float32(config: Config) -> Config:
  """The config of the loop: what is no matrix is cheap, and slower in bfloat16 on CPU.

  Tokens that come one by one compete for no place: experts drop none.
  """
  found = config.replace(**{'model.dtype': 'float32'})
  chosen = config.moe.experts and routing.router(config).decision == 'token'
  return found.replace(**{'moe.dispatch': 'dropless'}) if chosen else found


def _empty(config: Config, rows: int, size: int, turned: bool) -> dict:
  n = count.sizes(config)
  keys = {TURNED: (n['H'], size)} if turned else {'key': (size, n['H'])}
  shapes = keys | {'value': (size, n['W'])}

  def layer() -> dict:
    return {'attention': {k: jnp.zeros((rows * n['K'], *shape)) for k, shape in shapes.items()}}

  return {stacks.layer_name('layers', i): layer() for i in range(count.depth(config, 'layers'))}
