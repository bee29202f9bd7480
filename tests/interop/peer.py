"""What transformers makes of folders that this library wrote; run by test_live.py, not imported.

  python peer.py FOLDER...

Each holds given.npz; logits.npy is written beside it. Prints a JSON object a folder: keys that were
missing or not expected, and where there is a tokenizer and text.txt the ids of the text.
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch
import transformers as hf

AUTO = {
  'bert': hf.AutoModelForMaskedLM,
  'marian': hf.AutoModelForSeq2SeqLM,
}


def main(folder: Path) -> dict:
  kind = json.loads((folder / 'config.json').read_text())['model_type']
  auto = AUTO.get(kind, hf.AutoModelForCausalLM)
  model, info = auto.from_pretrained(
    folder,
    output_loading_info=True,
    attn_implementation='eager',
    experts_implementation='eager',  # the other wants sizes divisible by 4
    dtype=torch.float32,
  )
  given = {k: torch.tensor(x, dtype=torch.long) for k, x in np.load(folder / 'given.npz').items()}
  with torch.no_grad():
    logits = model.eval()(**given).logits
  np.save(folder / 'logits.npy', logits.numpy())
  told = {k: sorted(map(str, info[k])) for k in ('missing_keys', 'unexpected_keys')}
  if (folder / 'text.txt').exists():
    tokenizer = hf.AutoTokenizer.from_pretrained(folder)
    told['ids'] = tokenizer((folder / 'text.txt').read_text(), add_special_tokens=False).input_ids
    told['end'] = tokenizer.eos_token_id
  return told


if __name__ == '__main__':
  hf.logging.set_verbosity_error()
  print(json.dumps([main(Path(name)) for name in sys.argv[1:]]))
