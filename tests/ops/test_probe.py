"""Whatever fails when it is tried is not used, and a line says so."""

from __future__ import annotations

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
  assert not cudnn.is_right(
    jnp.zeros((1, 8, 2, 4), 'bfloat16'), jnp.zeros((1, 8, 2, 4), 'bfloat16')
  )
