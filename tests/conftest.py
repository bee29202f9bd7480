"""Eight CPU devices, a cache of prepared data of the tests' own, and a tiny config."""

from __future__ import annotations

import gc
import os
from pathlib import Path

gc.set_threshold(100_000, 20, 100)  # tracing makes and drops objects by the million
# Before jax is imported. Level 0 and the older emitters take a quarter of the time to compile, and
# tests run each program a few times.
_FLAGS = (
  '--xla_force_host_platform_device_count=8',
  '--xla_backend_optimization_level=0',
  '--xla_cpu_use_fusion_emitters=false',
)
_GIVEN = os.environ.get('XLA_FLAGS', '')
os.environ['XLA_FLAGS'] = ' '.join(
  [_GIVEN, *(f for f in _FLAGS if f.partition('=')[0] not in _GIVEN)]
).strip()
os.environ.setdefault('JAX_PLATFORMS', 'cpu')
os.environ.setdefault('ISOFFN_AUTO_DTYPE', 'float32')  # the same everywhere
os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '2')  # the partitioner's remarks on tiny meshes

import pytest  # noqa: E402

from tests import battery  # noqa: E402
from transformer import plugin, spec  # noqa: E402
from transformer.config import Config  # noqa: E402
from transformer.errors import UserError  # noqa: E402


def pytest_addoption(parser: pytest.Parser) -> None:
  parser.addoption('--plugin', default='', help='your own file: run the batteries on its variants')


def pytest_configure(config: pytest.Config) -> None:
  """Before tests are collected, so that they are collected for the plugin's variants too."""
  try:
    plugin.load(config.option.plugin)
  except UserError as e:
    raise pytest.UsageError(str(e)) from None


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
  """The whole product of variants runs only when asked for by -m exhaustive.

  With --plugin only the tests of its variants run.
  """

  def wanted(item: pytest.Item) -> bool:
    if item.get_closest_marker('exhaustive') and 'exhaustive' not in config.option.markexpr:
      return False
    return not config.option.plugin or not own.isdisjoint(_parameters(item))

  own = {name for slot in spec.slots() for name in plugin.names(slot)}
  config.hook.pytest_deselected(items=[item for item in items if not wanted(item)])
  items[:] = [item for item in items if wanted(item)]


def _parameters(item: pytest.Item) -> list[str]:
  callspec = getattr(item, 'callspec', None)
  return [str(value) for value in callspec.params.values()] if callspec else []


@pytest.fixture(scope='session', autouse=True)
def caches(tmp_path_factory: pytest.TempPathFactory) -> None:
  """Prepared data and compiled programs in pytest's own folder, for all workers and processes."""
  import jax

  base = tmp_path_factory.getbasetemp()
  shared = base.parent if 'PYTEST_XDIST_WORKER' in os.environ else base
  with pytest.MonkeyPatch.context() as patch:
    patch.setenv('ISOFFN_CACHE', str(shared / 'isoffn-cache'))
    programs = {'jax_compilation_cache_dir': str(shared / 'programs')}
    programs |= {'jax_persistent_cache_min_compile_time_secs': 0.1}
    for name, value in programs.items():
      jax.config.update(name, value)
      patch.setenv(name.upper(), str(value))
    yield


@pytest.fixture(scope='module', autouse=True)
def few_programs() -> None:
  """Forgets compiled programs before Linux refuses to map more memory, where XLA would crash.

  Each takes some of the 65,530 mappings that a process may have.
  """
  yield
  maps = Path('/proc/self/maps')
  if maps.exists() and maps.read_bytes().count(b'\n') > 25_000:
    import jax

    jax.clear_caches()
    gc.collect()


@pytest.fixture
def tiny_config() -> Config:
  """The resolved config of battery.tiny, on one device."""
  return battery.tiny()
