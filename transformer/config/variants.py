"""Every variant of every slot: its arguments, help and traits. Bodies live in the slot's room.

To add one: declare it here, write its body there under the same name. The batteries find it.
"""

from __future__ import annotations

from dataclasses import field
from typing import ClassVar

from transformer.config.settings import setting
from transformer.spec import declare


def _text(help: str) -> str:
  """The one argument of a variant written 'name:text'."""
  return field(metadata=dict(help=help, kind='traced', colon=True))


# --- ffn.activation: body in activations.py. `gated`: a second projection, gate, multiplies up.


@declare('ffn.activation', 'relu')
class Relu:
  """max(x, 0) (Nair & Hinton 2010)."""

  gated: ClassVar[bool] = False


@declare('ffn.activation', 'gelu')
class Gelu:
  """x Φ(x), exact (Hendrycks & Gimpel 2016)."""

  gated: ClassVar[bool] = False


@declare('ffn.activation', 'silu')
class Silu:
  """x σ(x), also called Swish-1 (Elfwing 2017; Ramachandran 2017)."""

  gated: ClassVar[bool] = False


@declare('ffn.activation', 'relu2')
class Relu2:
  """max(x, 0)² (So et al. 2021, Primer)."""

  gated: ClassVar[bool] = False


@declare('ffn.activation', 'geglu')
class Geglu:
  """GELU(x W_gate) ⊙ x W_up (Shazeer 2020)."""

  gated: ClassVar[bool] = True


@declare('ffn.activation', 'swiglu')
class Swiglu:
  """SiLU(x W_gate) ⊙ x W_up (Shazeer 2020)."""

  gated: ClassVar[bool] = True


@declare('ffn.activation', 'identity')
class Identity:
  """No nonlinearity: the yardstick."""

  gated: ClassVar[bool] = False


# --- model.positions: body in positions.py. `table`: has a learned table of seq_len rows.


@declare('model.positions', 'rotary')
class Rotary:
  """Queries and keys rotated by position (Su et al. 2021, RoFormer)."""

  base: float = setting(10000.0, 'longest wavelength / 2π', low=1.0)
  table: ClassVar[bool] = False


@declare('model.positions', 'sinusoidal')
class Sinusoidal:
  """Fixed sines and cosines added to the embedding (Vaswani et al. 2017, §3.5)."""

  table: ClassVar[bool] = False


@declare('model.positions', 'learned')
class Learned:
  """A learned vector per position added to the embedding (Gehring et al. 2017)."""

  table: ClassVar[bool] = True


# --- model.norm: body in layers.py. `bias`: has an offset beside its scale.


@declare('model.norm', 'rmsnorm')
class RMSNorm:
  """x / rms(x) · scale (Zhang & Sennrich 2019)."""

  epsilon: float = setting(1e-6, 'added to the mean square', low=0.0)
  bias: ClassVar[bool] = False


@declare('model.norm', 'layernorm')
class LayerNorm:
  """(x − mean) / std · scale + bias (Ba et al. 2016)."""

  epsilon: float = setting(1e-6, 'added to the variance', low=0.0)
  bias: ClassVar[bool] = True


# --- data.source: body in data/sources.py. `text`: documents of text, tokenised by data.tokenizer.


@declare('data.source', 'stdlib')
class Stdlib:
  """The running interpreter's own standard library; nothing to download."""

  text: ClassVar[bool] = True


@declare('data.source', 'text')
class Text:
  """UTF-8 text files, a document each."""

  glob: str = _text('files, as in text:corpus/**/*.txt')
  text: ClassVar[bool] = True


@declare('data.source', 'tfds')
class Tfds:
  """A TensorFlow Datasets text set prepared as array_record."""

  name: str = _text('data set, as in tfds:lm1b or tfds:wikipedia/20230601.en')
  text: ClassVar[bool] = True


@declare('data.source', 'synthetic')
class Synthetic:
  """Random tokens of a fixed first-order Markov chain: no files, no tokenizer."""

  rows: int = setting(4096, 'training sequences', kind='traced', low=1)
  text: ClassVar[bool] = False


# --- data.tokenizer: body in data/tokenizers.py.


@declare('data.tokenizer', 'byte')
class Byte:
  """UTF-8 bytes and one end-of-document token."""

  vocab_size: ClassVar[int] = 257


@declare('data.tokenizer', 'bpe')
class Bpe:
  """Byte-level byte-pair encoding trained on the training documents (Sennrich et al. 2016)."""

  vocab_size: int = setting(4096, 'entries, bytes and end-of-document included', low=257)


# --- optim.name and optim.schedule: bodies in optimizer.py.


@declare('optim.name', 'adamw')
class AdamW:
  """Adam with decoupled weight decay (Loshchilov & Hutter 2019)."""

  b1: float = setting(0.9, 'decay of the first moment', kind='traced', low=0.0, high=0.9999999)
  b2: float = setting(0.95, 'decay of the second moment', kind='traced', low=0.0, high=0.9999999)
  eps: float = setting(1e-8, 'added to the root of the second moment', kind='traced', low=0.0)


@declare('optim.schedule', 'cosine')
class Cosine:
  """Linear warm-up, then half a cosine down to `final` (Loshchilov & Hutter 2017)."""

  warmup: float = setting(0.1, 'share of the steps', kind='traced', low=0.0, high=1.0)
  final: float = setting(0.1, 'share of the peak at the end', kind='traced', low=0.0, high=1.0)
