"""Settings, variants, presets; `resolve` turns what was asked into what runs. Never imports jax."""

from transformer.config import activations, data, moe, routing, variants
from transformer.config.field import setting
from transformer.config.placement import LaunchConfig, ParallelConfig
from transformer.config.presets import PRESETS
from transformer.config.resolve import (
  config_hash,
  encoder_ratios,
  hyper,
  idle,
  ratios,
  resolve,
  result_settings,
  static_key,
  widths,
)
from transformer.config.settings import (
  SECTIONS,
  SETTINGS,
  Config,
  DataConfig,
  FFNConfig,
  LossConfig,
  ModelConfig,
  MoEConfig,
  OptimConfig,
  TrainConfig,
)

__all__ = [
  'PRESETS',
  'SECTIONS',
  'SETTINGS',
  'Config',
  'DataConfig',
  'FFNConfig',
  'LaunchConfig',
  'LossConfig',
  'MoEConfig',
  'ModelConfig',
  'OptimConfig',
  'ParallelConfig',
  'TrainConfig',
  'activations',
  'config_hash',
  'data',
  'encoder_ratios',
  'hyper',
  'idle',
  'moe',
  'ratios',
  'resolve',
  'result_settings',
  'routing',
  'setting',
  'static_key',
  'variants',
  'widths',
]
