"""The fast product is the plain one, in value and in both gradients."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import battery
from transformer.ops import product as ops
from transformer.ops.product import across, product, reference

RNG = np.random.default_rng(0)
SIZES = dict(b=2, t=5, d=6, f=520, n=2, h=3, v=7, e=3, g=2, c=4, k=3)
FAST = ('btd,df->btf', 'btd,dnh->btnh', 'btnh,nhd->btd', 'btd,vd->btv', 'egcd,edf->egcf')
PLAIN = ('bnts,bsnh->btnh', 'btd,de->etb')


@pytest.fixture(autouse=True)
def tiny_too(monkeypatch: pytest.MonkeyPatch) -> None:
  monkeypatch.setattr(ops, '_LEAST', 0)


def arrays(spec: str, dtype: str) -> list[jax.Array]:
  sizes = SIZES | {'s': 4}
  x, w = spec.partition('->')[0].split(',')
  out = spec.partition('->')[2]
  types = dtype, 'float32', 'float32'
  return [
    jnp.asarray(RNG.normal(size=[sizes[c] for c in letters]), kind)
    for letters, kind in zip((x, w, out), types, strict=True)
  ]


def both(function, spec: str, x, w, g, out) -> tuple:
  y, back = jax.vjp(lambda x, w: function(spec, x, w, out=out), x, w)
  return y, *back(g.astype(y.dtype))


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
@pytest.mark.parametrize('out', [None, 'float32'])
@pytest.mark.parametrize('spec', FAST)
def test_value_and_gradients(spec, out, dtype):
  assert ops._form(spec)
  x, w, g = arrays(spec, dtype)
  got = jax.jit(lambda *a: both(product, spec, *a, out))(x, w, g)
  exact = both(reference, spec, x.astype('float32'), w, g, out)
  for ours, right, like in zip(got, exact, (None, x, w), strict=True):
    scale = float(jnp.max(jnp.abs(right)))
    close = dict(rtol=0, atol=scale * (1e-5 if dtype == 'float32' else 0.02))
    np.testing.assert_allclose(np.float32(ours), np.float32(right), **close)
    assert like is None or ours.dtype == like.dtype
  assert got[0].dtype == (out or dtype)
  off = both(product, spec, x, w.at[(0,) * w.ndim].add(1.0), g, out)  # negative control
  assert np.max(np.abs(np.float32(off[0]) - np.float32(exact[0]))) > 0.1


@pytest.mark.parametrize('spec', PLAIN)
def test_what_is_no_map_of_rows_is_left_to_xla(spec):
  assert ops._form(spec) is None
  x, w, g = arrays(spec, 'float32')
  for ours, right in zip(
    both(product, spec, x, w, g, None), both(reference, spec, x, w, g, None), strict=True
  ):
    np.testing.assert_array_equal(ours, right)


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
@pytest.mark.parametrize(('K', 'N'), [(4, 6), (4, 600), (600, 4), (513, 512)])
def test_sums_over_leading_dimensions(K, N, dtype):
  a, b = (jnp.asarray(RNG.normal(size=(10, n)), dtype) for n in (K, N))
  right = np.float32(a).T @ np.float32(b)
  np.testing.assert_allclose(jax.jit(across)(a, b), right, atol=1e-4)


def test_on_a_mesh_the_compiler_has_its_way():
  mesh = jax.make_mesh((2,), ('data',), axis_types=(jax.sharding.AxisType.Auto,))
  x, w, _ = arrays('btd,df->btf', 'float32')
  plain = str(jax.make_jaxpr(lambda x, w: reference('btd,df->btf', x, w))(x, w))

  def text() -> str:
    return str(jax.make_jaxpr(lambda x, w: product('btd,df->btf', x, w))(x, w))

  assert 'custom_vjp' in text()
  with jax.set_mesh(mesh):
    assert 'custom_vjp' not in text()
    assert text() == plain


def test_gradients_of_a_wider_result_are_computed_in_the_operands_type():
  """Elsewhere than on a lone CPU; autodiff of the einsum itself would multiply mixed types."""
  mesh = jax.make_mesh((2,), ('data',), axis_types=(jax.sharding.AxisType.Auto,))
  q, k = (jnp.asarray(RNG.normal(size=(2, 5, 3, 4)), 'bfloat16') for _ in 'qk')

  def operands(jaxpr) -> set[tuple[str, ...]]:
    found = set()
    for eqn in jaxpr.eqns:
      inside = (battery._jaxprs(value) for value in eqn.params.values())
      found = found.union(*(operands(getattr(j, 'jaxpr', j)) for js in inside for j in js))
      if eqn.primitive.name == 'dot_general':
        found.add(tuple(str(x.aval.dtype) for x in eqn.invars))
    return found

  def types(multiply) -> set[tuple[str, ...]]:
    def total(q, k):
      return jnp.sum(jnp.sin(multiply('btnh,bsnh->bnts', q, k, 'float32')))

    with jax.set_mesh(mesh):
      return operands(jax.make_jaxpr(jax.grad(total, (0, 1)))(q, k).jaxpr)

  assert types(product) == {('bfloat16', 'bfloat16')}
  assert ('float32', 'bfloat16') in types(reference)  # so that it is seen
  found = jax.grad(lambda q: jnp.sum(jnp.sin(product('btnh,bsnh->bnts', q, k, 'float32'))))(q)
  exact = jax.grad(
    lambda q: jnp.sum(jnp.sin(reference('btnh,bsnh->bnts', q, k.astype('float32'))))
  )(q.astype('float32'))
  np.testing.assert_allclose(np.float32(found), exact, atol=0.03 * np.max(np.abs(exact)))
