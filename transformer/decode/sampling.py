"""Drawing the next token from softmax(logits / temperature), again and again."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from functools import partial

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from transformer.config import Config
from transformer.decode import kept as keeping
from transformer.decode.kept import Kept

_EVERY = 64  # tokens between two looks of the host


@dataclasses.dataclass(frozen=True)
class Sampling:
  """How a token is drawn from its logits.

  temperature: divides the logits; 0: the most likely token. Then of the tokens: top_k: the most
  likely so many (Fan et al. 2018); 0: all. top_p: of those the fewest, from the most likely on,
  that hold this much probability together (Holtzman et al. 2020).
  """

  temperature: float = 0.0
  top_k: int = 0
  top_p: float = 1.0

  def __post_init__(self) -> None:
    if not self.temperature >= 0 or self.top_k < 0 or not 0 < self.top_p <= 1:  # NaN is neither
      raise ValueError(f'{self}: temperature and top_k should be 0 or more, top_p above 0, up to 1')


@flax.struct.dataclass
class _State:
  """Between two tokens. token_B: drawn, not yet read. made: tokens drawn so far, this included."""

  kept: Kept
  token_B: jax.Array
  done_B: jax.Array
  made: jax.Array


def generate(
  config: Config,
  params: dict,
  prompts: Sequence[np.ndarray] | None,
  max_new_tokens: int,
  sampling: Sampling = Sampling(),
  seed: int = 0,
  sources: Sequence[np.ndarray] | None = None,
  end: int | None = 0,
) -> list[np.ndarray]:
  """The new ids of each prompt, up to max_new_tokens or, without it, its `end`.

  prompts: ids, ragged, beginning with 0; of an encoder_decoder by default [0] each. sources: ids of
  an encoder_decoder's sources. A row's draws depend on seed, row and place alone. Learned positions
  end with their table, and so does each sequence. Raises UserError for what the model cannot read.
  """
  found = stream(
    *(config, params, prompts, max_new_tokens, sampling, seed, sources, end), every=_EVERY
  )
  given = sources if prompts is None else prompts
  parts = list(found) or [np.zeros((len(given), 0), np.int32)]
  return [row[row >= 0] for row in np.concatenate(parts, axis=1)]


def stream(
  config: Config,
  params: dict,
  prompts: Sequence[np.ndarray] | None,
  max_new_tokens: int,
  sampling: Sampling = Sampling(),
  seed: int = 0,
  sources: Sequence[np.ndarray] | None = None,
  end: int | None = 0,
  every: int = 8,
) -> Iterator[np.ndarray]:
  """Yields int32 (B, n) new ids as they come, n up to `every`; −1 from a row's end on.

  Arguments as of `generate`.
  """
  prompt_BP, source_BS = keeping.checked(config, prompts, sources)
  weights = keeping.weights_for(config, params)
  left = min(max_new_tokens, keeping.room_after(config, prompt_BP))
  how = (sampling.temperature > 0, sampling.top_k, sampling.top_p, end)
  drawn = dict(key=jax.random.key(seed), temperature=np.float32(sampling.temperature))
  state, room = None, prompt_BP.shape[1]
  while left > 0 and (state is None or not np.all(state.done_B)):
    if state is None:
      size = keeping.room_for(room + min(left, _EVERY))
      state, tokens_BN = _begin(config, how, size, weights, prompt_BP, source_BS, **drawn)
    else:
      steps = min(every, left)
      if room + steps > state.kept.size:
        size = keeping.room_for(room + steps, room + left, state.kept.size)
        state = state.replace(kept=keeping.grown(state.kept, size))
      state, tokens_BN = _advance(config, how, every, weights, state, steps, **drawn)
      tokens_BN, room = np.asarray(tokens_BN)[:, :steps], room + steps
    left -= tokens_BN.shape[1]
    yield np.asarray(tokens_BN)


def next_tokens(
  config: Config,
  params: dict,
  prompt: np.ndarray,
  temperatures: Sequence[float],
  most: int = 10,
  source: np.ndarray | None = None,
) -> list[list[tuple[int, float]]]:
  """For each temperature the likeliest next tokens of a prompt: (id, probability), in order.

  At temperature 0 the likeliest has all of it.
  """
  sources = None if source is None else [source]
  prompt_BP, source_BS = keeping.checked(config, [prompt], sources)
  weights = keeping.weights_for(config, params)
  size = prompt_BP.shape[1]
  logits_V = np.asarray(_read(config, weights, prompt_BP, source_BS, size)[0][0], np.float64)
  order, found = np.argsort(-logits_V, kind='stable')[:most], []
  for temperature in temperatures:
    if temperature:
      scaled = np.exp((logits_V - logits_V.max()) / temperature)
      shares = scaled / scaled.sum()
    else:
      shares = np.arange(len(logits_V)) == order[0]
    found.append([(int(i), float(shares[i])) for i in order])
  return found


def restricted(logits_BV: jax.Array, top_k: int, top_p: float) -> jax.Array:
  """Logits with −∞ for the tokens that top_k and top_p leave out, the likeliest never."""
  if top_k:
    least_B1 = jax.lax.top_k(logits_BV, min(top_k, logits_BV.shape[-1]))[0][:, -1:]
    logits_BV = jnp.where(logits_BV < least_B1, -jnp.inf, logits_BV)
  if top_p < 1:
    sorted_BV = -jnp.sort(-logits_BV, axis=-1)
    share_BV = jax.nn.softmax(sorted_BV, axis=-1)
    before_BV = jnp.cumsum(share_BV, axis=-1) - share_BV
    least_B1 = jnp.min(jnp.where(before_BV < top_p, sorted_BV, jnp.inf), axis=-1, keepdims=True)
    logits_BV = jnp.where(logits_BV < least_B1, -jnp.inf, logits_BV)
  return logits_BV


_read = partial(jax.jit, static_argnums=(0, 4))(keeping.read)


@partial(jax.jit, static_argnums=(0, 1, 2))
def _begin(config, how, size, weights, prompt_BP, source_BS, key, temperature) -> tuple:
  """(state after the first token, (B, 1) that token)."""
  logits_BV, kept = keeping.read(config, weights, prompt_BP, source_BS, size)
  token_B, ends_B = _draw(how, logits_BV, key, jnp.int32(0), temperature)
  done_B = ends_B | keeping.full(config, kept, kept.slot + 1)
  return _State(kept, token_B, done_B, jnp.int32(1)), jnp.where(ends_B, -1, token_B)[:, None]


@partial(jax.jit, static_argnums=(0, 1, 2), donate_argnums=4)
def _advance(config, how, most, weights, state, steps, key, temperature) -> tuple:
  """(state, tokens (B, most)) after `steps` more tokens, or fewer where all rows end."""

  def going(carry: tuple) -> jax.Array:
    state, _, i = carry
    return (i < steps) & ~jnp.all(state.done_B)

  def one(carry: tuple) -> tuple:
    state, tokens_BN, i = carry
    logits_BV, kept = keeping.follow(config, weights, state.kept, state.token_B)
    token_B, ends_B = _draw(how, logits_BV, key, state.made, temperature)
    ended_B = state.done_B | ends_B
    done_B = ended_B | keeping.full(config, kept, kept.slot + 1)
    shown_B1 = jnp.where(ended_B, -1, token_B)[:, None]
    tokens_BN = jax.lax.dynamic_update_slice(tokens_BN, shown_B1, (0, i))
    return _State(kept, token_B, done_B, state.made + 1), tokens_BN, i + 1

  nothing_BN = jnp.full((len(state.token_B), most), -1, jnp.int32)
  state, tokens_BN, _ = jax.lax.while_loop(going, one, (state, nothing_BN, jnp.int32(0)))
  return state, tokens_BN


def _draw(how, logits_BV, key, made, temperature) -> tuple[jax.Array, jax.Array]:
  """(a token a row, whether it ends the row)."""
  draws, top_k, top_p, end = how
  if draws:
    logits_BV = restricted(logits_BV / temperature, top_k, top_p)
    rows_B = jnp.arange(len(logits_BV))
    now = jax.random.fold_in(key, made)
    key_B = jax.vmap(lambda row: jax.random.fold_in(now, row))(rows_B)
    token_B = jax.vmap(jax.random.categorical)(key_B, logits_BV)
  else:
    token_B = jnp.argmax(logits_BV, axis=-1)
  ends_B = jnp.zeros_like(token_B, bool) if end is None else token_B == end
  return token_B.astype(jnp.int32), ends_B
