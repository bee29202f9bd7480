"""Beam search."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from transformer import stacks
from transformer.config import Config
from transformer.decode import kept as keeping
from transformer.decode.kept import Kept

_STAGE = 64  # tokens between two growths of the buffers
_NONE = -2  # an end that no token is


class Hypothesis(NamedTuple):
  """ids: new ones, without the end. score: log P / length penalty. ended: not cut at the limit."""

  ids: np.ndarray
  score: float
  ended: bool


def beam_search(
  config: Config,
  params: dict,
  prompts: Sequence[np.ndarray] | None,
  max_new_tokens: int,
  beams: int,
  length_penalty: float = 0.6,
  sources: Sequence[np.ndarray] | None = None,
  end: int | None = 0,
) -> list[list[Hypothesis]]:
  """The best continuations of each prompt, best first, `beams` of them at most.

  Each step goes on with the `beams` likeliest unfinished continuations; one that ends among the
  likeliest `beams` is a result. The search of a prompt is over when it has `beams` results and no
  unfinished continuation scores above the worst of them, or where it may have no more tokens;
  then those cut short compete as well. A score is log P(Y) / ((5 + |Y|) / 6)^length_penalty, |Y|
  with its end (Wu et al. 2016, §7). One beam is greedy.
  Arguments as of `generate`.
  """
  prompt_BP, source_BS = keeping.checked(config, prompts, sources)
  weights = keeping.weights_for(config, params)
  steps = min(max_new_tokens, keeping.room_after(config, prompt_BP))
  if steps < 1:
    return [[Hypothesis(np.zeros(0, np.int32), 0.0, False)] for _ in prompt_BP]
  rules = _Rules(beams, prompt_BP.shape[1], steps, _NONE if end is None else end)
  state = _begin(config, rules, weights, prompt_BP, source_BS, length_penalty)
  for made in range(1, steps, _STAGE):
    if np.all(state.over_B):
      break
    until = min(made + _STAGE, steps)
    state = _with_room(rules, state, until)
    state = _advance(config, rules, weights, state, until, length_penalty)
  return _results(rules, state)


class _Rules(NamedTuple):
  """What a search compiles for. length: of the padded prompts. steps: new tokens at most."""

  beams: int
  length: int
  steps: int
  end: int


@flax.struct.dataclass
class _State:
  """R live beams and up to R results a prompt.

  The beams of a prompt are the queries of one step, and write neighbouring slots; which slots are
  a beam's past is told by past_BRS, so that a beam's change of parent moves no key and no value.
  log_p_BR: of live beams. ids_BRN: their new tokens, the last one not yet read, then −1. scores_BR,
  found_BRN: of results, −∞ where there is none. made: tokens of a live beam.
  """

  kept: Kept
  past_BRS: jax.Array
  log_p_BR: jax.Array
  ids_BRN: jax.Array
  scores_BR: jax.Array
  found_BRN: jax.Array
  over_B: jax.Array
  made: jax.Array


@partial(jax.jit, static_argnums=(0, 1))
def _begin(config, rules, weights, prompt_BP, source_BS, penalty) -> _State:
  """The state after the first token."""
  rows, beams = len(prompt_BP), rules.beams
  logits_BV, kept = keeping.read(config, weights, prompt_BP, source_BS, rules.length, True)
  nothing_BR = jnp.full((rows, beams), -jnp.inf)
  ids_BRN = jnp.full((rows, beams, 1), -1, jnp.int32)
  state = _State(
    kept=kept,
    past_BRS=jnp.broadcast_to(prompt_BP[:, None] >= 0, (rows, beams, rules.length)),
    log_p_BR=nothing_BR.at[:, 0].set(0.0),  # one beam, until tokens tell them apart
    ids_BRN=ids_BRN,
    scores_BR=nothing_BR,
    found_BRN=ids_BRN,
    over_B=jnp.zeros(rows, bool),
    made=jnp.int32(0),
  )
  logits_BRV = jnp.broadcast_to(logits_BV[:, None], (rows, beams, logits_BV.shape[-1]))
  return _choose(config, rules, state, logits_BRV, penalty)


@partial(jax.jit, static_argnums=(0, 1), donate_argnums=3)
def _advance(config, rules, weights, state, until, penalty) -> _State:
  """The state once live beams have `until` tokens, or all searches are over."""

  def going(state: _State) -> jax.Array:
    return (state.made < until) & ~jnp.all(state.over_B)

  def one(state: _State) -> _State:
    logits_BRV, kept, past_BRS = _read(config, rules, weights, state)
    state = state.replace(kept=kept, past_BRS=past_BRS)
    return _choose(config, rules, state, logits_BRV, penalty)

  return jax.lax.while_loop(going, one, state)


def _read(config, rules, weights, state) -> tuple[jax.Array, Kept, jax.Array]:
  """Reads the last token of each live beam: (logits_BRV, what is kept, past_BRS with its slots)."""
  kept, beams, length = state.kept, rules.beams, rules.length
  slot_S, beam_R = jnp.arange(kept.size), jnp.arange(beams)
  step_S = jnp.where(slot_S < length, slot_S, length + (slot_S - length) // beams)
  step_T = jnp.full(beams, length + state.made - 1)
  own_RS = slot_S[None] == kept.slot + beam_R[:, None]
  past_BRS = state.past_BRS | own_RS
  slots = stacks.Slots(
    slot=kept.slot,
    mask_BTS=past_BRS & keeping.visible(config, step_T, step_S),
    positions_BT=keeping.positions_of(config, kept, step_T),
    step_T=step_T,
    step_S=step_S,
  )
  last_BR = jax.lax.dynamic_index_in_dim(state.ids_BRN, state.made - 1, axis=2, keepdims=False)
  logits_BRV, kept = keeping.logits_of(config, weights, kept, jnp.maximum(last_BR, 0), slots)
  return logits_BRV, kept, past_BRS


def _choose(config, rules, state, logits_BRV, penalty) -> _State:
  """One more token for each live beam; those that end, or may not go on, become results."""
  rows, beams, vocabulary = logits_BRV.shape
  made = state.made + 1
  divisor = ((5.0 + made) / 6.0) ** penalty
  log_p_BRV = state.log_p_BR[:, :, None] + jax.nn.log_softmax(logits_BRV)
  # Each beam ends in one way, so among twice as many there are as many that go on.
  best_BC, index_BC = jax.lax.top_k(log_p_BRV.reshape(rows, -1), 2 * beams)
  parent_BC, token_BC = index_BC // vocabulary, index_BC % vocabulary
  ends_BC = token_BC == rules.end
  ids_BCN = jnp.take_along_axis(state.ids_BRN, parent_BC[:, :, None], axis=1)
  ids_BCN = jax.lax.dynamic_update_slice(ids_BCN, token_BC[:, :, None], (0, 0, made - 1))

  going_BC = jnp.where(ends_BC, -jnp.inf, best_BC)
  log_p_BR, chosen_BR = jax.lax.top_k(going_BC, beams)
  parent_BR = jnp.take_along_axis(parent_BC, chosen_BR, axis=1)
  ids_BRN = jnp.take_along_axis(ids_BCN, chosen_BR[:, :, None], axis=1)

  full_B = keeping.full(config, state.kept, rules.length + made) | (made >= rules.steps)
  ended_BR = jnp.where(ends_BC, best_BC, -jnp.inf)[:, :beams]
  cut_BR = jnp.where(full_B[:, None], log_p_BR, -jnp.inf)
  scores_BR, found_BRN = _better(
    [state.scores_BR, ended_BR / divisor, cut_BR / divisor],
    [state.found_BRN, ids_BCN[:, :beams], ids_BRN],
  )
  # −∞ as long as there are fewer results than beams
  over_B = full_B | (jnp.min(scores_BR, axis=1) >= jnp.max(log_p_BR, axis=1) / divisor)
  open_B1 = ~state.over_B[:, None]
  return state.replace(
    past_BRS=jnp.take_along_axis(state.past_BRS, parent_BR[:, :, None], axis=1),
    log_p_BR=log_p_BR,
    ids_BRN=ids_BRN,
    scores_BR=jnp.where(open_B1, scores_BR, state.scores_BR),
    found_BRN=jnp.where(open_B1[:, :, None], found_BRN, state.found_BRN),
    over_B=state.over_B | over_B,
    made=made,
  )


def _better(scores: list[jax.Array], ids: list[jax.Array]) -> tuple[jax.Array, jax.Array]:
  """The best R of several times R (scores_BR, ids_BRN)."""
  best_BR, chosen_BR = jax.lax.top_k(jnp.concatenate(scores, axis=1), scores[0].shape[1])
  ids_BCN = jnp.concatenate(ids, axis=1)
  return best_BR, jnp.take_along_axis(ids_BCN, chosen_BR[:, :, None], axis=1)


def _with_room(rules: _Rules, state: _State, tokens: int) -> _State:
  """Buffers for live beams of so many tokens."""
  slots = rules.length + rules.beams * tokens

  def wider(x: jax.Array, size: int, filled: int) -> jax.Array:
    return jnp.pad(x, [(0, 0), (0, 0), (0, size - x.shape[-1])], constant_values=filled)

  return state.replace(
    kept=keeping.grown(state.kept, slots),
    past_BRS=wider(state.past_BRS, slots, False),
    ids_BRN=wider(state.ids_BRN, tokens, -1),
    found_BRN=wider(state.found_BRN, tokens, -1),
  )


def _results(rules: _Rules, state: _State) -> list[list[Hypothesis]]:
  found = jax.device_get((state.scores_BR, state.found_BRN))
  return [
    [
      Hypothesis(ids[(ids >= 0) & (ids != rules.end)], float(score), rules.end in ids)
      for score, ids in zip(*row, strict=True)
      if score > -np.inf
    ]
    for row in zip(*found, strict=True)
  ]
