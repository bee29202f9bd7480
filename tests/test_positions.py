"""Positions: rotation as complex numbers, sinusoids by the formula, and a new start a document."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from tests import reference
from transformer import spec
from transformer.errors import UserError
from transformer.positions import (
  alibi,
  positions_in_documents,
  relative_buckets,
  rotate,
  sinusoid,
  turn,
)

RNG = np.random.default_rng(0)


@pytest.mark.parametrize(
  ('segments', 'expected'),
  [
    ([0, 0, 0, 0], [0, 1, 2, 3]),
    ([0, 0, 1, 1], [0, 1, 0, 1]),  # a row that begins inside a document
    ([1, 1, 1, 2], [0, 1, 2, 0]),
    ([1, 2, 3, 3], [0, 0, 0, 1]),
    ([5], [0]),
  ],
)
def test_positions_start_again_at_each_document(segments, expected):
  assert positions_in_documents(jnp.array([segments])).tolist() == [expected]
  assert reference.positions(np.array(segments)).tolist() == expected


@pytest.mark.parametrize('width', [2, 6, 16])
@pytest.mark.parametrize('base', [10000.0, 50.0])
def test_rotation_is_a_complex_multiplication(width, base):
  x = RNG.normal(size=(2, 5, 3, width)).astype(np.float32)
  where = RNG.integers(0, 100, (2, 5))
  got = rotate(jnp.asarray(x), turn(jnp.asarray(where), width, base))
  expected = [
    [[reference.rotate(head, p, base) for head in token] for token, p in zip(*row, strict=True)]
    for row in zip(np.float64(x), where, strict=True)
  ]
  np.testing.assert_allclose(got, expected, atol=2e-5)
  off = np.asarray(rotate(jnp.asarray(x), turn(jnp.asarray(where + 1), width, base))) - expected
  assert np.max(np.abs(off)) > 0.1  # negative control


def test_rotation_keeps_lengths_and_leaves_position_0_alone():
  x = jnp.asarray(RNG.normal(size=(1, 4, 1, 8)).astype(np.float32))
  turned = rotate(x, turn(jnp.array([[0, 1, 7, 1000]]), 8, 1e4))
  np.testing.assert_allclose(jnp.linalg.norm(turned, axis=-1), jnp.linalg.norm(x, axis=-1), 1e-6)
  assert np.array_equal(turned[:, 0], x[:, 0])


def test_scores_after_rotation_depend_on_distance_only():
  query, key = (jnp.asarray(RNG.normal(size=(1, 1, 1, 8)).astype(np.float32)) for _ in range(2))

  def score(at: int, other: int) -> float:
    turns = (turn(jnp.array([[position]]), 8, 1e4) for position in (at, other))
    return float(jnp.sum(rotate(query, next(turns)) * rotate(key, next(turns))))

  assert score(7, 3) == pytest.approx(score(104, 100), abs=1e-4)
  assert abs(score(7, 3) - score(7, 4)) > 1e-2


def test_rotation_is_computed_in_float32_and_returned_in_its_own_type():
  x = jnp.ones((1, 1, 1, 4), jnp.bfloat16)
  got = rotate(x, turn(jnp.array([[1000]]), 4, 1e4))
  expected = reference.rotate(np.ones(4), 1000, 1e4)
  assert got.dtype == jnp.bfloat16
  np.testing.assert_allclose(np.float64(np.ravel(got)), expected, atol=6e-3)


@pytest.mark.parametrize('d_model', [2, 10, 16])
def test_sinusoid_is_the_formula_of_the_paper(d_model):
  where = np.array([[0, 1, 2, 3], [0, 5, 250, 1000]])
  got = sinusoid(jnp.asarray(where), d_model)
  expected = [[reference.sinusoid(p, d_model) for p in row] for row in where]
  assert got.dtype == jnp.float32
  np.testing.assert_allclose(got, expected, atol=1e-4)  # sin(1000) from an angle in float32


def test_sinusoid_by_hand():
  """Position 1, d_model 4: rates 1 and 10000^(−1/2) = 0.01; sines come first."""
  expected = [np.sin(1), np.sin(0.01), np.cos(1), np.cos(0.01)]
  np.testing.assert_allclose(np.ravel(sinusoid(jnp.array([[1]]), 4)), expected, rtol=1e-5)
  assert sinusoid(jnp.array([[0]]), 4).tolist() == [[[0, 0, 1, 1]]]


def back(length: int) -> np.ndarray:
  """Distances t − s."""
  return np.subtract.outer(np.arange(length), np.arange(length))


def test_relative_buckets_by_hand():
  """6 buckets up to distance 12: 0, 1, 2 alone; 3 + ⌊3 log(t/3)/log 4⌋ from there, 5 at most.

  log(t/3)/log 4 reaches 1/3 at 3 · 4^(1/3) = 4.76 and 2/3 at 3 · 4^(2/3) = 7.56.
  """
  bucket_TS = np.asarray(relative_buckets(back(15), 6, 12))
  expected = [0, 1, 2, 3, 3, 4, 4, 4, 5, 5, 5, 5, 5, 5, 5]
  assert bucket_TS[:, 0].tolist() == expected
  for t in range(15):  # of the distance alone; what lies ahead, which no query sees, is 0
    assert bucket_TS[t].tolist() == expected[: t + 1][::-1] + [0] * (14 - t)


def test_relative_buckets_both_ways_by_hand():
  """12 buckets: 6 for keys behind, as above, and 6 to 11 for keys ahead at the same distance."""
  bucket_TS = np.asarray(relative_buckets(back(15), 12, 12, causal=False))
  one_way = np.asarray(relative_buckets(back(15), 6, 12))
  assert np.array_equal(np.tril(bucket_TS), np.tril(one_way))
  assert np.array_equal(np.triu(bucket_TS, 1), np.triu(one_way.T + 6, 1))


@pytest.mark.parametrize(
  ('buckets', 'max_distance'), [(32, 128), (2, 2), (5, 6), (7, 100), (64, 33), (8, 16), (16, 500)]
)
def test_relative_buckets_against_the_formula(buckets, max_distance):
  """Also in that all buckets are in use by max_distance, in order, and none besides."""
  length = 2 * max_distance + 5
  got = np.asarray(relative_buckets(back(length), buckets, max_distance))[:, 0]
  expected = [reference.bucket(distance, buckets, max_distance) for distance in range(length)]
  assert np.all(np.diff(got) >= 0) and got[0] == 0
  assert got[max_distance:].tolist() == [buckets - 1] * (length - max_distance)
  assert got.tolist() == expected
  other = [reference.bucket(distance, buckets + 1, max_distance) for distance in range(length)]
  assert got.tolist() != other  # negative control


@pytest.mark.parametrize(
  ('text', 'message'),
  [
    ('relative(32, 16)', 'max_distance=16 should be above buckets/2=16'),
    ('relative(300)', 'max_distance=128 should be above buckets/2=150'),
  ],
)
def test_relative_wants_room_for_its_buckets(text, message):
  with pytest.raises(UserError) as e:
    spec.parse('model.positions', text)
  assert str(e.value) == f'--model.positions=relative: {message}'
  assert spec.parse('model.positions', 'relative(32, 17)').max_distance == 17


def test_alibi_by_hand():
  """Eight heads: slopes 1/2, 1/4, …, 1/256 (Press et al. 2022, §3)."""
  bias_NTS = np.asarray(alibi(back(5), 8))
  for n in range(8):
    for t in range(5):
      assert bias_NTS[n, t, : t + 1].tolist() == [
        -(2.0 ** -(n + 1)) * (t - s) for s in range(t + 1)
      ]
  assert np.asarray(alibi(back(3), 2))[:, 2, 0].tolist() == [-2 / 16, -2 / 256]
