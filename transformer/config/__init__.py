"""Settings, variants, presets; `resolve` turns what was asked into what runs. Never imports jax."""

from transformer.config import variants
from transformer.config.presets import PRESETS
from transformer.config.resolve import (
  config_hash,
  hyper,
  resolve,
  result_settings,
  static_key,
)
from transformer.config.settings import (
  SECTIONS,
  SETTINGS,
  Config,
  DataConfig,
  FFNConfig,
  LaunchConfig,
  ModelConfig,
  OptimConfig,
  ParallelConfig,
  TrainConfig,
  setting,
)

__all__ = [
  'PRESETS',
  'SECTIONS',
  'SETTINGS',
  'Config',
  'DataConfig',
  'FFNConfig',
  'LaunchConfig',
  'ModelConfig',
  'OptimConfig',
  'ParallelConfig',
  'TrainConfig',
  'config_hash',
  'hyper',
  'resolve',
  'result_settings',
  'setting',
  'static_key',
  'variants',
]
