"""Whatever fails when it is tried is not used, and a line says so."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest

from transformer.ops import backend, cudnn, probe


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch) -> None:
  monkeypatch.setattr(backend, '_plain', False)
  probe.settle.cache_clear()
  yield
  probe.settle.cache_clear()


def test_what_runs_here_is_kept(fresh, capsys: pytest.CaptureFixture) -> None:
  probe.settle('bfloat16')
  assert backend.lone_cpu()
  assert capsys.readouterr().err == ''


def test_one_that_is_wrong_makes_all_plain(
  fresh, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
  monkeypatch.setattr(probe, 'blocked', lambda q, *_: jnp.zeros_like(q))
  probe.settle('float32')
  assert backend.lone_cpu()  # that type has nothing to lack
  probe.settle('bfloat16')
  assert not backend.lone_cpu()
  assert not backend.alone()
  told = capsys.readouterr().err
  assert told.startswith('attention in bfloat16: the plain way is taken: its value is off by ')


def test_cudnn_is_for_gpus() -> None:
  shape = cudnn.Shape(8, 2, 4, 8, 2, 'bfloat16')
  assert cudnn.settle(shape) == 'reference'
  same = jnp.zeros((1, 8, 2, 4), 'bfloat16')
  assert not cudnn.is_right(same, same, same)


def test_cudnn_is_for_values_as_wide_as_keys_and_is_given_whole_masks(
  monkeypatch: pytest.MonkeyPatch,
) -> None:
  same, wider = jnp.zeros((3, 8, 2, 4), 'bfloat16'), jnp.zeros((3, 8, 2, 6), 'bfloat16')
  monkeypatch.setitem(cudnn._RIGHT, cudnn.Shape(8, 2, 4, 8, 2, 'bfloat16'), True)
  assert cudnn.is_right(same, same, same)
  assert not cudnn.is_right(same, same, wider)
  given = {}
  monkeypatch.setattr(jax.nn, 'dot_product_attention', lambda *x, **more: given.update(more))
  cudnn.attention(same, same, same, jnp.ones((1, 1, 8), bool), 0.5)  # as of a source
  assert given['mask'].shape == (3, 1, 8, 8)
