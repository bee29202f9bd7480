"""Where a result comes from: code, versions, machine and data, beside every run."""

from __future__ import annotations

import datetime
import functools
import hashlib
import importlib.metadata
import json
import os
import platform
import subprocess
from pathlib import Path

from transformer import plugin
from transformer.config import Config, config_hash
from transformer.files import replacing

_PACKAGES = (
  'jax',
  'jaxlib',
  'flax',
  'optax',
  'orbax-checkpoint',
  'grain',
  'tokenizers',
  'numpy',
  'sacrebleu',
)
_DECISIVE = ('jax', 'jaxlib', 'flax', 'optax')
_ONLOOKERS = (
  'analysis',
  'boards.py',
  'evaluate.py',
  'flags.py',
  'interop',
  'measure',
  'programs.py',
  'replay.py',
  'upcycle.py',
)
_ROOT = Path(__file__).parent


def code_digest(config: Config) -> str:
  """Sixteen hex digits over what decides the result of a config.

  That is the library's source, the versions of JAX's, and the user's files that declare a variant
  the config uses. Left out is what only looks at results: analysis, evaluation of text, flags.
  """
  files = sorted(plugin.origins(config).values())
  if not files:
    return library_digest()
  return hashlib.sha256(json.dumps([library_digest(), *files]).encode()).hexdigest()[:16]


@functools.cache
def library_digest() -> str:
  """The part of `code_digest` that all configs share, as it is when first asked for."""
  total = hashlib.sha256(json.dumps({n: versions().get(n) for n in _DECISIVE}).encode())
  for path in sorted(_ROOT.rglob('*.py')):
    if path.relative_to(_ROOT).parts[0] in _ONLOOKERS:
      continue
    total.update(str(path.relative_to(_ROOT)).encode() + b'\0' + path.read_bytes() + b'\0')
  return total.hexdigest()[:16]


def versions() -> dict[str, str]:
  """Package -> installed version, of what a result may depend on."""
  found = {}
  for name in _PACKAGES:
    try:
      found[name] = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
      continue
  return found


def git_commit() -> str:
  """The checkout's commit, '-dirty' appended if files differ from it; '' outside a checkout.

  Of a snapshot (launch/snapshot.py), that of the checkout it was taken from.
  """
  if (_ROOT.parent / 'COMMIT').exists():
    return (_ROOT.parent / 'COMMIT').read_text()

  def git(*args: str) -> str:
    command = ['git', '-C', str(_ROOT), *args]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

  try:
    return git('rev-parse', 'HEAD') + ('-dirty' if git('status', '--porcelain', '-uno') else '')
  except (OSError, subprocess.CalledProcessError):
    return ''


def cpu_model() -> str:
  """The processor's name."""
  try:
    lines = Path('/proc/cpuinfo').read_text().splitlines()
    return next(x.partition(':')[2].strip() for x in lines if x.startswith('model name'))
  except (OSError, StopIteration):
    return platform.processor() or platform.machine()


def cores() -> int:
  """Cores of the machine."""
  return os.cpu_count() or 1


def describe(config: Config) -> dict:
  """Code, versions and machine of this process. Starts jax."""
  import jax

  devices = jax.devices()
  return {
    'git_commit': git_commit(),
    'code': code_digest(config),
    'plugins': plugin.origins(config),
    'versions': versions(),
    'python': platform.python_version(),
    'platform': platform.platform(),
    'device': f'{len(devices)} x {devices[0].device_kind}',
    'cpu': cpu_model(),
    'cores': cores(),
  }


def write(
  folder: Path, config: Config, fingerprint: str, info: dict, origin: dict | None = None
) -> None:
  """Writes provenance.json into a run's folder; of a run that is continued, also who began it.

  origin: what of the run that this one begins from; once written it stays.
  """
  path = folder / 'provenance.json'
  try:
    last = json.loads(path.read_text(encoding='utf-8'))
  except (OSError, ValueError):
    last = {}
  sitting = {k: last[k] for k in ('started', 'code', 'git_commit', 'device') if k in last}
  record = {
    'config_hash': config_hash(config),
    **describe(config),
    'data': {'fingerprint': fingerprint, **info},
    'origin': origin or last.get('origin'),
    'earlier_sittings': [*last.get('earlier_sittings', []), sitting] if last else [],
    'started': datetime.datetime.now(datetime.UTC).isoformat(timespec='seconds'),
  }
  with replacing(path) as f:
    f.write(json.dumps(record, indent=2) + '\n')
