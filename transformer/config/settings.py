"""Every setting of a run, declared once: type, default, range, help and what it touches.

Flags, JSON, help, the program key and the hash all come from these declarations.

A setting is one of three kinds:
  static: it changes array shapes or the graph, so another value is another compiled program;
  traced: it changes the result but not the program (rates, seeds, data, lengths of runs);
  free:   it changes neither (placement, logging, launch).
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from transformer import spec
from transformer.config.field import setting
from transformer.config.placement import LaunchConfig, ParallelConfig
from transformer.errors import UserError, nearest


@dataclass(frozen=True)
class ModelConfig:
  """The Transformer around the feed-forward network."""

  architecture: str = setting(
    'decoder',
    'which Transformer: of next tokens, of masked tokens, or from a source to a target',
    choices=('decoder', 'encoder', 'encoder_decoder'),
  )
  d_model: int = setting(256, 'width of the residual stream', low=1, high=10**7)
  num_layers: int = setting(6, 'number of blocks', low=1, high=10**5)
  num_encoder_layers: int = setting(
    0, "encoder_decoder: the encoder's; 0: num_layers", low=0, high=10**5
  )
  num_heads: int = setting(4, 'attention heads; 0: no attention, FFNs alone', low=0)
  num_kv_heads: int = setting(0, 'key/value heads, shared by groups; 0: num_heads', low=0)
  head_dim: int = setting(0, 'width of a head; 0: d_model / num_heads', low=0)
  v_head_dim: int = setting(0, "width of a head's values, d_v; 0: head_dim", low=0)
  attention_window: int = setting(
    0, 'keys a token sees back from itself, of an encoder ahead too, itself included; 0: all', low=0
  )
  vocab_size: int = setting(
    0, "vocabulary; 0: the tokenizer's, with a mask token for an encoder", low=0, high=10**7
  )
  positions: str = setting('rotary', 'how positions enter')
  norm: str = setting('rmsnorm', 'normalisation of branches and logits')
  norm_placement: str = setting(
    'pre',
    'before a branch, after its sum with the stream, or before and after the branch',
    choices=('pre', 'post', 'sandwich'),
  )
  parallel_branches: bool = setting(False, 'attention and FFN read the same input and add up')
  qk_norm: bool = setting(False, 'RMSNorm of queries and keys, per head')
  bias: bool = setting(False, 'biases of query, key, value and out')
  qkv_bias: bool = setting(False, 'biases of query, key and value alone')
  logits_bias: bool = setting(False, 'a bias a vocabulary entry')
  tied: bool = setting(True, 'one table for embedding and logits')
  embedding_scale: str = setting(
    'sqrt_d_model', 'factor on the embedding', choices=('sqrt_d_model', 'one')
  )
  embedding_norm: bool = setting(False, 'a norm after the embedding, too (BERT)')
  token_types: int = setting(0, 'encoder: kinds of tokens told apart (BERT has 2); 0: none', low=0)
  head: str = setting(
    'linear',
    "before the logits: nothing, or a dense layer with the FFN's activation and a norm (BERT)",
    choices=('linear', 'transform'),
  )
  shared_source: bool = setting(True, 'encoder_decoder: source and target share one embedding')
  out_init: float = setting(
    1.0, "factor on the initial deviation of attention's out; 0: zeros", low=0.0, high=1e3
  )
  logit_cap: float = setting(0.0, 'logits become cap · tanh(logits / cap); 0: no cap', low=0.0)
  attention_cap: float = setting(0.0, 'the same for attention scores; 0: no cap', low=0.0)
  dropout: float = setting(0.0, 'dropout of embedding and residual branches', low=0.0, high=0.95)
  stochastic_depth: float = setting(
    0.0, 'chance that a row skips a branch of the last layer; falls to 0', low=0.0, high=0.95
  )
  dtype: str = setting(
    'auto',
    'compute type, auto: the fastest here; parameters and optimizer state stay float32',
    choices=('auto', 'float32', 'bfloat16'),
  )
  remat: str = setting(
    'none',
    'of each block, what backward computes again: nothing, all, or all but matrix products',
    kind='free',
    choices=('none', 'full', 'dots'),
  )
  unroll: bool = setting(False, 'unroll the loop over layers (speed only)', kind='free')


@dataclass(frozen=True)
class FFNConfig:
  """The position-wise feed-forward network."""

  ratio: float = setting(4.0, 'd_ff / d_model, when d_ff is 0; 0: no FFN', low=0.0, high=1e6)
  d_ff: int = setting(0, 'hidden width; 0: ratio * d_model', low=0, high=10**8)
  ratios: str = setting(
    '',
    "in place of ratio, by layer: '2,4,8,4', repeated, or 'ramp(2,6)'; d_ff is their mean width",
  )
  activation: str = setting('gelu', 'nonlinearity, plain or gated')
  encoder_ratios: str = setting(
    '', "encoder_decoder: ratio or ratios of the encoder; empty: as the decoder's"
  )
  encoder_activation: str = setting(
    '', "encoder_decoder: nonlinearity of the encoder; empty: as the decoder's"
  )
  multiple_of: int = setting(1, 'd_ff is rounded to a multiple of this', low=1)
  hidden_layers: int = setting(1, '2: a three-layer FFN, d_ff to d_ff between', low=1, high=2)
  shared: bool = setting(False, 'one FFN, with its weights, for all layers')
  bias: bool = setting(False, 'biases of up, gate and down')
  dropout: float = setting(0.0, 'dropout of the last hidden layer', low=0.0, high=0.95)
  down_init: float = setting(
    1.0, 'factor on the initial deviation of down; 0: zeros', low=0.0, high=1e3
  )


@dataclass(frozen=True)
class MoEConfig:
  """A mixture of experts in place of the feed-forward network. ffn.d_ff is the width of each."""

  experts: int = setting(0, 'number of experts; 0: the dense FFN', low=0, high=10**5)
  router: str = setting('topk', 'which tokens meet which experts')
  dispatch: str = setting('auto', 'how tokens get to experts and back')
  layers: str = setting(
    'all', 'layers with experts: all | none | every(2) | last(4) | 3,5, counted from 0'
  )
  encoder_layers: str = setting(
    '', "encoder_decoder: the same of the encoder; empty: as the decoder's"
  )
  shared_experts: int = setting(
    0, 'experts that every token has, beside those it is routed to', low=0, high=10**4
  )
  granularity: int = setting(
    1, 'splits each expert into as many of d_ff / granularity, and k by it grows', low=1, high=10**4
  )
  group_size: int = setting(
    0, 'tokens routed together, of one sequence; 0: the whole sequence', low=0
  )
  capacity_factor: float = setting(
    1.25, 'capacity: places over tokens, in training', low=1e-3, high=1e5
  )
  eval_capacity_factor: float = setting(
    0.0, 'the same in evaluation; 0: as in training', low=0.0, high=1e5
  )
  balance_loss: float = setting(
    0.01, 'weight of the load-balancing loss of each layer', kind='traced', low=0.0
  )
  z_loss: float = setting(
    0.001, "weight of the mean of log² Z of each layer's router", kind='traced', low=0.0
  )
  allow_noncausal: bool = setting(
    False, 'let a causal model route by tokens it has not seen; reports say so', kind='free'
  )


@dataclass(frozen=True)
class DataConfig:
  """Where tokens come from."""

  source: str = setting('stdlib', 'text', kind='traced')
  tokenizer: str = setting('bpe(vocab_size=4096)', 'text to tokens', kind='traced')
  batch_size: int = setting(16, 'sequences per step, over all devices', low=1)
  seq_len: int = setting(256, 'tokens per sequence', low=1)
  source_len: int = setting(0, 'encoder_decoder: tokens per source; 0: seq_len', low=0)
  mask_token: int = setting(
    -1, "encoder: id of the mask; -1: one entry after the tokenizer's", low=-1, high=10**7
  )
  held_out: float = setting(
    0.1, 'share of documents (of packages, for stdlib) held out', kind='traced', low=0.001, high=0.9
  )
  text_field: str = setting('text', 'field of the text in jsonl and parquet', kind='traced')
  group_field: str = setting(
    '',
    'their field of what is held out whole (author, site …); empty: each document on its own',
    kind='traced',
  )
  cache: str = setting(
    '', 'folder of prepared data; empty: $ISOFFN_CACHE or ~/.cache/isoffn', kind='free'
  )


@dataclass(frozen=True)
class LossConfig:
  """What training minimises. train/loss and eval/loss stay plain cross-entropy."""

  mask_rate: float = setting(
    0.15,
    'encoder: share of the tokens to be found again; 8 in 10 of them masked, 1 another',
    low=0.001,
    high=0.999,
  )
  label_smoothing: float = setting(
    0.0, 'share of the target spread over the vocabulary', low=0.0, high=0.99
  )
  z_loss: float = setting(
    0.0, 'weight of the mean of log² Z, Z the sum of exp(logits)', kind='traced', low=0.0
  )


@dataclass(frozen=True)
class OptimConfig:
  """The optimizer and its schedule."""

  name: str = setting('adamw', 'optimizer')
  learning_rate: float = setting(
    0.0,
    'peak rate; 0: 0.768 / d_model (under mup / base_d_model), times 0.3 for lion, 60 for sgd',
    kind='traced',
    low=0.0,
    high=100.0,
  )
  schedule: str = setting('cosine', 'rate over time, as a share of the peak')
  parametrization: str = setting('standard', 'how rates and scales follow d_model and d_ff')
  weight_decay: float = setting(
    0.1,
    'decoupled decay of the matrices; 0 for adam and sgd, which have l2',
    kind='traced',
    low=0.0,
  )
  clip_norm: float = setting(1.0, 'largest global gradient norm', kind='traced', low=1e-9)
  ema: float = setting(
    0.0,
    'decay of a moving average of the weights, which is what gets evaluated; 0: none',
    low=0.0,
    high=0.9999999,
  )


@dataclass(frozen=True)
class TrainConfig:
  """The loop."""

  steps: int = setting(1000, 'optimizer steps', kind='traced', low=1)
  accumulate: int = setting(1, 'micro-batches a batch is cut into', low=1)
  max_bad_steps: int = setting(
    10, 'non-finite steps in a row that stop the run', kind='free', low=1
  )
  log_every: int = setting(10, 'steps between rows of metrics.jsonl', kind='free', low=1)
  eval_every: int = setting(0, 'steps between evaluations; 0: only at the end', kind='free', low=0)
  checkpoint_every: int = setting(
    0, 'steps between checkpoints; 0: every evaluation', kind='free', low=0
  )
  keep_last: int = setting(2, 'newest checkpoints kept', kind='free', low=1)
  keep_best: int = setting(1, 'checkpoints of lowest eval/loss kept', kind='free', low=0)
  tensorboard: bool = setting(False, 'also write TensorBoard event files', kind='free')
  wandb: str = setting('', 'also log to this project of Weights & Biases', kind='free')
  ffn_statistics: bool = setting(
    True, 'rows ffn/… at each evaluation: zeros, dead units, kurtosis, ranks, norms', kind='free'
  )
  diagnose: int = setting(
    0,
    'steps between rows diag/…: gradients, updates, activations by layer; 0: none',
    kind='free',
    low=0,
  )
  decoded: int = setting(
    256,
    'encoder_decoder: held-out sources decoded after the last step, for exact match, BLEU and chrF',
    kind='traced',
    low=0,
  )
  init_from: str = setting(
    '', 'begin from the weights of this run: its folder, or folder@step', kind='traced'
  )
  init: str = setting(
    'finetune',
    'finetune: only weights come from init_from; continue: all does, and its step goes on',
    kind='traced',
    choices=('finetune', 'continue'),
  )


@dataclass(frozen=True)
class Config:
  """One run. Made by flags or JSON; `resolve` turns it into what really runs."""

  model: ModelConfig = ModelConfig()
  ffn: FFNConfig = FFNConfig()
  moe: MoEConfig = MoEConfig()
  data: DataConfig = DataConfig()
  loss: LossConfig = LossConfig()
  optim: OptimConfig = OptimConfig()
  train: TrainConfig = TrainConfig()
  parallel: ParallelConfig = ParallelConfig()
  launch: LaunchConfig = LaunchConfig()
  seed: int = setting(
    0, 'of initialisation, data order and noise', kind='traced', low=0, high=2**31 - 1
  )
  plugin: str = setting(
    '', 'your own file of activations, sources and schedules (transformer/plugin.py)', kind='free'
  )

  def replace(self, **changes: Any) -> Config:
    """Returns a copy with changes by flag name: `config.replace(**{'ffn.d_ff': 512})`."""
    sections: dict[str, dict] = {}
    for path, value in changes.items():
      declared = SETTINGS.get(path)
      if declared is None:
        raise UserError(f'--{path}: no such setting{nearest(path, SETTINGS)}')
      value = spec.check_value(f'--{path}', declared, value)
      section, _, name = path.rpartition('.')
      sections.setdefault(section, {})[name] = value
    top = sections.pop('', {})
    for section, values in sections.items():
      top[section] = dataclasses.replace(getattr(self, section), **values)
    return dataclasses.replace(self, **top)

  def get(self, path: str) -> Any:
    """The value of a setting by its flag name."""
    section, _, name = path.rpartition('.')
    return getattr(getattr(self, section) if section else self, name)

  def to_json(self) -> dict:
    """Nested plain values, as written to config.json."""
    return dataclasses.asdict(self)

  @staticmethod
  def from_json(tree: dict, origin: str = 'config') -> Config:
    """Inverse of `to_json`; raises UserError naming `origin` for a key that does not exist."""
    changes = {}
    for key, value in tree.items():
      for path, leaf in (
        ((f'{key}.{k}', v) for k, v in value.items()) if isinstance(value, dict) else [(key, value)]
      ):
        if path not in SETTINGS:
          raise UserError(f'{origin}: no setting {path!r}{nearest(path, SETTINGS)}')
        changes[path] = leaf
    return Config().replace(**changes)


def _settings() -> dict[str, dataclasses.Field]:
  found = {}
  for section in dataclasses.fields(Config):
    if section.metadata:
      found[section.name] = section
    else:
      for f in dataclasses.fields(section.default):
        found[f'{section.name}.{f.name}'] = f
  return found


SETTINGS: dict[str, dataclasses.Field] = _settings()  # flag name -> declaration
SECTIONS: dict[str, str] = {  # section -> one line of help
  f.name: type(f.default).__doc__ for f in dataclasses.fields(Config) if not f.metadata
}
