"""Keys of a config.json and the settings they are, each by one rule that is read both ways."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from transformer import spec
from transformer.config import Config

# Keys of any family that change no logits: of training, of generation and of what saved it.
HARMLESS = (
  *('_attn_implementation', '_attn_implementation_autoset', '_name_or_path', '_num_labels'),
  *('architectures', 'bad_words_ids', 'begin_suppress_tokens', 'bos_token_id'),
  *('chunk_size_feed_forward', 'cls_token_id', 'decoder_start_token_id', 'diversity_penalty'),
  *('do_sample', 'dtype', 'early_stopping', 'encoder_no_repeat_ngram_size', 'eos_token_id'),
  *('exponential_decay_length_penalty', 'finetuning_task', 'forced_bos_token_id'),
  *('forced_eos_token_id', 'gradient_checkpointing', 'id2label', 'initializer_range'),
  *('label2id', 'length_penalty', 'mask_token_id', 'max_length', 'min_length', 'model_type'),
  *('no_repeat_ngram_size', 'num_beam_groups', 'num_beams', 'num_labels'),
  *('num_return_sequences', 'output_attentions', 'output_hidden_states', 'output_past'),
  *('output_scores', 'pad_token_id', 'prefix', 'problem_type', 'remove_invalid_values'),
  *('repetition_penalty', 'return_dict', 'return_dict_in_generate', 'sep_token_id'),
  *('suppress_tokens', 'task_specific_params', 'temperature', 'tf_legacy_loss'),
  *('tokenizer_class', 'top_k', 'top_p', 'torch_dtype', 'torchscript', 'transformers_version'),
  *('typical_p', 'unk_token_id', 'use_bfloat16', 'use_cache'),
)
# Their names of the functions that a gate or a plain FFN applies -> ours. The first of those that
# mean the same is the one written.
PLAIN = {
  **{'gelu': 'gelu', 'gelu_python': 'gelu'},
  **dict.fromkeys(('gelu_new', 'gelu_pytorch_tanh', 'gelu_fast', 'gelu_accurate'), 'gelu_tanh'),
  **{'silu': 'silu', 'swish': 'silu', 'relu': 'relu', 'relu2': 'relu2', 'sigmoid': 'sigmoid'},
  **{'tanh': 'tanh', 'mish': 'mish', 'leaky_relu': 'leaky_relu', 'linear': 'identity'},
}
_GATES = {
  **{'silu': 'swiglu', 'gelu': 'geglu', 'relu': 'reglu', 'relu2': 'relu2_glu', 'sigmoid': 'glu'},
  'identity': 'bilinear',
}
GATED = {theirs: _GATES.get(ours, f'product(on_gate={ours})') for theirs, ours in PLAIN.items()}


def _same(value: Any, _: Any) -> Any:
  return value


@dataclass(frozen=True)
class Key:
  """A key of config.json.

  setting: its flag name here. default: what the original takes where the key is absent.
  read: (their value, the whole object) to ours. write: (our value, the config) to theirs. Either
  raises ValueError, saying what would be right, where there is no such thing.
  unread: it is written for the original's sake and not read: another key tells.
  """

  name: str
  setting: str
  default: Any
  read: Callable[[Any, dict], Any] = _same
  write: Callable[[Any, Config], Any] = _same
  unread: bool = False


def null_is_0(name: str, setting: str, default: Any = None, fill: str = '') -> Key:
  """A key whose null is our 0. fill: the setting that our 0 stands for; else it is written null."""

  def write(value: Any, config: Config) -> Any:
    return value or (config.get(fill) if fill else None)

  return Key(name, setting, default, lambda value, _: value or 0, write)


def argument(name: str, setting: str, variant: str, field: str, default: float) -> Key:
  """A key that is a number of a variant, as epsilon in 'layernorm(epsilon=1e-05)'."""

  def read(value: Any, _: dict) -> str:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
      raise ValueError('should be a number')
    return f'{variant}({field}={float(value)!r})'

  def write(text: str, _: Config) -> float:
    return getattr(spec.parse(setting, text), field, default)

  return Key(name, setting, default, read, write)


def one_of(name: str, setting: str, default: Any, names: dict[Any, str]) -> Key:
  """A key with few values. names: theirs to ours."""

  def canonical(ours: str) -> str:
    return spec.canonical(spec.parse(setting, ours)) if setting in spec.slots() else ours

  def read(value: Any, _: dict) -> str:
    if not isinstance(value, type(default)) or value not in names:
      raise ValueError(f'should be one of {", ".join(map(str, names))}')
    return names[value]

  def write(text: str, _: Config) -> Any:
    return next((t for t, ours in names.items() if canonical(ours) == canonical(text)), default)

  return Key(name, setting, default, read, write)


def shown(value: Any) -> str:
  """A value of config.json on one short line."""
  text = json.dumps(value)
  return text if len(text) <= 80 else f'{text[:79]}…'
