"""Where choices stand among rows: each told by the other, and moves whose gradients gather."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import battery
from transformer.ops.places import by_blocks, by_capacity, expert_of_rows, take


def test_take_is_indexing_and_its_gradient_gathers():
  """Four rows go to six places, of which one stays empty; the last row goes nowhere."""
  x = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)
  c = np.random.default_rng(1).normal(size=(6, 3)).astype(np.float32)
  index_M = np.array([2, 0, 4, 1, 0, 2])  # 4: there is no such row
  inverse_NR = np.array([[1, 4], [3, 6], [5, 0], [6, 6]])

  def plain(x):
    return jnp.concatenate([x, jnp.zeros((1, 3))])[index_M]

  (y, back), (expected, plainly) = (
    jax.vjp(f, x) for f in (lambda x: take(x, index_M, inverse_NR), plain)
  )
  assert np.array_equal(y, expected)
  np.testing.assert_allclose(back(c)[0], plainly(c)[0], rtol=1e-6)
  assert not np.any(back(c)[0][3]) and np.all(back(c)[0][:3])
  missing = jax.vjp(lambda x: take(x, index_M, np.full_like(inverse_NR, 6)), x)[1]
  assert not np.any(missing(c)[0])  # negative control: it goes by the inverse alone


def test_no_gradient_scatters():
  names = set()

  def walk(jaxpr) -> None:
    for eqn in jaxpr.eqns:
      names.add(eqn.primitive.name)
      for value in eqn.params.values():
        for inner in battery._jaxprs(value):
          walk(getattr(inner, 'jaxpr', inner))

  index, inverse = jnp.arange(3), jnp.arange(3)[:, None]
  walk(jax.make_jaxpr(jax.grad(lambda x: take(x, index, inverse).sum()))(jnp.ones((3, 2))).jaxpr)
  assert 'gather' in names and not any('scatter' in name for name in names)


def patterns(E: int, G: int, T: int, R: int) -> list[np.ndarray]:
  """Choices (G, T, R): at random, all of one expert, none at all, and some of none."""
  rng = np.random.default_rng(0)
  drawn = rng.integers(0, E, (G, T, R))
  holes = np.where(rng.random((G, T, 1)) < 0.3, E, drawn)
  return [drawn, np.full_like(drawn, E - 1), np.full_like(drawn, E), holes]


@pytest.mark.parametrize(('E', 'T', 'R', 'block'), [(3, 10, 2, 8), (9, 2, 1, 8), (2, 40, 3, 16)])
def test_blocks_hold_every_choice_once(E, T, R, block):
  place = jax.jit(lambda e: by_blocks(e, E, block))
  for experts_GTR in patterns(E, 1, T, R):
    expert_A = experts_GTR.reshape(-1)
    row_A, choice_M, groups = jax.device_get(place(expert_A))
    rows, has = len(choice_M), expert_A < E
    assert rows % block == 0 and np.all(row_A[~has] == rows)
    assert np.array_equal(choice_M[row_A[has]], np.flatnonzero(has))  # each is told by the other
    assert np.sum(choice_M < len(expert_A)) == np.sum(has)
    owner_M = np.asarray(expert_of_rows(groups, rows, block))
    assert np.array_equal(owner_M[row_A[has]], expert_A[has])
    assert groups.blocks_E.tolist() == [-(-np.sum(expert_A == e) // block) for e in range(E)]
    for e in range(E):
      begin, end = groups.begin_E[e], groups.begin_E[e] + block * groups.blocks_E[e]
      assert np.all(owner_M[begin:end] == e)
    assert np.all(owner_M[block * np.sum(groups.blocks_E) :] == E)


@pytest.mark.parametrize('priority', ['order', 'choice', 'score'])
def test_capacity_holds_the_first(priority):
  """Row by row, against a loop: by expert, group and place."""
  G, E, T, R, C = 2, 3, 6, 2, 3
  place = jax.jit(lambda e, w: by_capacity(e, w, E, C, priority))
  weights_GTR = np.random.default_rng(1).choice(np.linspace(0.1, 0.9, 5), (G, T, R))  # with ties
  dropped = 0
  for experts_GTR in patterns(E, G, T, R):
    row_A, choice_M, _ = jax.device_get(place(experts_GTR, np.float32(weights_GTR)))
    rows = np.full(G * T * R, E * G * C)
    choices = np.full(E * G * C, G * T * R)
    for g in range(G):
      for e in range(E):
        own = [(t, r) for t in range(T) for r in range(R) if experts_GTR[g, t, r] == e]
        if priority == 'choice':
          own.sort(key=lambda at: at[1])
        if priority == 'score':
          own.sort(key=lambda at: -weights_GTR[(g, *at)])
        for place_of, (t, r) in enumerate(own[:C]):
          row, choice = (e * G + g) * C + place_of, (g * T + t) * R + r
          rows[choice], choices[row] = row, choice
        dropped += len(own[C:])
    assert np.array_equal(row_A, rows) and np.array_equal(choice_M, choices)
  assert dropped > 0
