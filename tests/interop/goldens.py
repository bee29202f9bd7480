"""The models that make_goldens.py drew, and what the original implementations make of them."""

from __future__ import annotations

import functools
import json
import shutil
from pathlib import Path
from typing import Any

import jax
import ml_dtypes
import numpy as np

from transformer import model
from transformer.config import Config

FOLDER = Path(__file__).parent / 'golden'
NAMES = sorted(path.name for path in FOLDER.iterdir() if path.is_dir())


def arrays(name: str) -> dict[str, np.ndarray]:
  """What a model was given, and its logits."""
  found = dict(np.load(FOLDER / name / 'golden.npz'))
  return {k: x if x.dtype == np.float32 else x.astype(np.int32) for k, x in found.items()}


def padded(given: dict[str, np.ndarray]) -> tuple[np.ndarray, ...]:
  """The same as this library takes it, −1 for padding."""
  if 'source_BS' in given:
    return np.where(given['mask'] > 0, given['source_BS'], -1), given['ids_BT']
  tokens = np.where(given['mask'] > 0, given['ids_BT'], -1)
  if 'types_BT' in given:
    return tokens, None, None, given['types_BT']
  return (tokens,)


def real(given: dict[str, np.ndarray]) -> np.ndarray:
  """(B, T) where logits mean something."""
  return np.ones(given['ids_BT'].shape, bool) if 'source_BS' in given else given['mask'] > 0


@functools.partial(jax.jit, static_argnums=0)
def logits(config: Config, params: dict, *tokens: Any) -> jax.Array:
  """logits_BTV of the model of a config."""
  return model.build(config).apply({'params': params}, *tokens)[0]


def difference(name: str, config: Config, params: dict) -> float:
  """The largest from the original's logits, where they mean something."""
  given = arrays(name)
  found = np.asarray(logits(config, params, *padded(given)))
  return float(np.abs(found - given['logits_BTV'])[real(given)].max())


def copy(name: str, folder: Path) -> Path:
  """A copy that may be spoilt."""
  shutil.copytree(FOLDER / name, folder)
  return folder


def edit(folder: Path, **changes: Any) -> None:
  """Changes config.json; None takes a key out, and '@null' is null."""
  path = folder / 'config.json'
  tree = json.loads(path.read_text()) | changes
  tree = {k: v for k, v in tree.items() if k not in changes or v is not None}
  path.write_text(json.dumps({k: None if v == '@null' else v for k, v in tree.items()}))


def tensors(folder: Path) -> dict[str, np.ndarray]:
  """The tensors of model.safetensors."""
  from safetensors.numpy import load_file

  return load_file(folder / 'model.safetensors')


def put(folder: Path, found: dict[str, np.ndarray], name: str = 'model.safetensors') -> None:
  """Writes tensors in place of a folder's."""
  from safetensors.numpy import save_file

  save_file(found, folder / name)


def halved(x: np.ndarray, kind: str) -> np.ndarray:
  """In bfloat16 or float16."""
  return x.astype({'bfloat16': ml_dtypes.bfloat16, 'float16': np.float16}[kind])
