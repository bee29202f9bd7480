"""Eight CPU devices, a cache of prepared data of the tests' own, and a tiny config."""

from __future__ import annotations

import os

# Before jax is imported. Level 0 halves the time to compile; tests run each program a few times.
_FLAGS = '--xla_force_host_platform_device_count=8', '--xla_backend_optimization_level=0'
_GIVEN = os.environ.get('XLA_FLAGS', '')
os.environ['XLA_FLAGS'] = ' '.join(
  [_GIVEN, *(f for f in _FLAGS if f.partition('=')[0] not in _GIVEN)]
).strip()
os.environ.setdefault('JAX_PLATFORMS', 'cpu')
os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '2')  # the partitioner's remarks on tiny meshes

import pytest  # noqa: E402

from tests import battery  # noqa: E402
from transformer.config import Config  # noqa: E402


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
  """The whole product of variants runs only when asked for by -m exhaustive."""
  if 'exhaustive' in config.option.markexpr:
    return
  left_out = [item for item in items if item.get_closest_marker('exhaustive')]
  config.hook.pytest_deselected(items=left_out)
  items[:] = [item for item in items if not item.get_closest_marker('exhaustive')]


@pytest.fixture(scope='session', autouse=True)
def data_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
  """Points $ISOFFN_CACHE into pytest's own folder, one for all of its parallel workers."""
  base = tmp_path_factory.getbasetemp()
  shared = base.parent if 'PYTEST_XDIST_WORKER' in os.environ else base
  with pytest.MonkeyPatch.context() as patch:
    patch.setenv('ISOFFN_CACHE', str(shared / 'isoffn-cache'))
    yield


@pytest.fixture
def tiny_config() -> Config:
  """The resolved config of battery.tiny, on one device."""
  return battery.tiny()
