"""Named shapes: each a few settings; precedence is flag > preset > the script's own defaults."""


def _vaswani(d_model: int, heads: int, d_ff: int, dropout: float, steps: int) -> dict:
  """Vaswani et al. 2017: Table 3, §5.1 to §5.4; what they leave open as in their tensor2tensor.

  A row is a pair, padded. 200 rows of 128 places are their 25,000 source and target tokens a batch
  only where sentences fill them; --data.batch_size=900 where they average 28 tokens.
  """
  warmup = 4000
  return {
    'model.architecture': 'encoder_decoder',
    'model.d_model': d_model,
    'model.num_layers': 6,
    'model.num_heads': heads,
    'model.positions': 'sinusoidal',
    'model.norm': 'layernorm',
    'model.norm_placement': 'post',
    'model.dropout': dropout,
    'ffn.d_ff': d_ff,
    'ffn.activation': 'relu',
    'ffn.bias': True,
    'data.tokenizer': 'bpe(vocab_size=37000)',
    'data.source_len': 128,
    'data.seq_len': 128,
    'data.batch_size': 200,
    'loss.label_smoothing': 0.1,
    'optim.name': 'adam(b2=0.98, eps=1e-09)',
    'optim.schedule': f'inverse_sqrt(warmup={warmup / steps})',
    'optim.learning_rate': (d_model * warmup) ** -0.5,
    'optim.clip_norm': 1e9,  # no gradient is clipped
    'train.steps': steps,
  }


PRESETS: dict[str, dict] = {
  # The smallest comparison that shows something true: seconds a run on one core.
  'pilot': {
    'model.d_model': 96,
    'model.num_layers': 2,
    'model.num_heads': 3,
    'model.unroll': True,
    'data.tokenizer': 'bpe(vocab_size=1024)',
    'data.seq_len': 64,
    'data.batch_size': 16,
    'train.steps': 400,
  },
  # The shape at which training and decoding speed is compared with other codebases.
  'bench': {
    'model.d_model': 256,
    'model.num_layers': 6,
    'model.num_heads': 4,
    'model.unroll': True,
    'ffn.ratio': 4.0,
    'data.tokenizer': 'bpe(vocab_size=8192)',
    'data.seq_len': 256,
    'data.batch_size': 16,
  },
  # Radford et al. 2019, the smallest model.
  'gpt2': {
    'model.d_model': 768,
    'model.num_layers': 12,
    'model.num_heads': 12,
    'model.unroll': False,
    'model.positions': 'learned',
    'model.norm': 'layernorm(epsilon=1e-05)',
    'model.bias': True,
    'model.embedding_scale': 'one',
    'ffn.bias': True,
    'ffn.activation': 'gelu_tanh',
    'data.tokenizer': 'bpe(vocab_size=50257)',
    'data.seq_len': 1024,
    'data.batch_size': 512,
    'train.steps': 600_000,
    'optim.learning_rate': 6e-4,
  },
  # Jiang et al. 2024, table 1: 46.7 billion parameters, of which a token meets 12.9. How it was
  # trained is not told: rates, batch and steps are this library's own.
  'mixtral_8x7b': {
    'model.d_model': 4096,
    'model.num_layers': 32,
    'model.num_heads': 32,
    'model.num_kv_heads': 8,
    'model.positions': 'rotary(base=1000000.0)',
    'model.norm': 'rmsnorm(epsilon=1e-05)',
    'model.embedding_scale': 'one',
    'model.tied': False,
    'ffn.d_ff': 14336,
    'ffn.activation': 'swiglu',
    'moe.experts': 8,
    'moe.router': 'topk(k=2)',
    'data.tokenizer': 'bpe(vocab_size=32000)',
    'data.seq_len': 32768,
  },
  'vaswani_base': _vaswani(512, heads=8, d_ff=2048, dropout=0.1, steps=100_000),
  'vaswani_big': _vaswani(1024, heads=16, d_ff=4096, dropout=0.3, steps=300_000),
}
