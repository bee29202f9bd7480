"""Named shapes: each a few settings; precedence is flag > preset > the script's own defaults."""

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
}
