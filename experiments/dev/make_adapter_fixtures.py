"""Writes low-rank adapters to the tiny encoders, with what the reference gives.

For development only; needs CPU torch, transformers and peft, and runs without
this package:

  python experiments/dev/make_adapter_fixtures.py tests/models/families \
      tests/models/adapters

The first folder is what make_family_fixtures.py writes. OUT/NAME is a folder as
peft writes it, whose base is FAMILIES/NAME, with `hidden.npy` [n, L, 32], what
the adapted encoder makes of the `tokens` in the reference of the base. Both
factors are noise.
"""

import json
import os
import shutil
import sys

import numpy as np
import peft
import torch
import transformers

# name -> what differs from adapters of rank 2 at queries and values
CASES = {
    'bert': {'target_modules': r'.*layer\.\d+\.attention\.self\.(query|value)'},
    'modernbert': {'target_modules': ['Wqkv', 'Wi', 'Wo']},
    'gemma3_text': {'target_modules': ['q_proj', 'gate_proj', 'down_proj'],
                    'use_rslora': True},
    'qwen3': {'target_modules': 'all-linear', 'r': 3},
    't5': {'target_modules': ['q', 'v', 'wi']},
}


def main():
  families, out = sys.argv[1:]
  for name, options in CASES.items():
    folder = os.path.join(out, name)
    shutil.rmtree(folder, ignore_errors=True)
    base = os.path.join(families, name)
    kind = (transformers.T5EncoderModel if name == 't5'
            else transformers.AutoModel)
    torch.manual_seed(0)
    model = peft.get_peft_model(
        kind.from_pretrained(base, dtype=torch.float32), peft.LoraConfig(**{
            'r': 2, 'lora_alpha': 5, 'init_lora_weights': False,
            'task_type': 'FEATURE_EXTRACTION', **options})).eval()
    wanted = np.load(os.path.join(base, 'reference.npz'))
    tokens = torch.tensor(wanted['tokens'])
    tokenizer = transformers.AutoTokenizer.from_pretrained(base)
    encoded = tokenizer(list(map(str, wanted['texts'])), padding=True,
                        truncation=True, max_length=tokens.shape[1],
                        return_tensors='pt')
    assert (encoded['input_ids'] == tokens).all()
    with torch.no_grad():
      hidden = model(input_ids=tokens,
                     attention_mask=encoded['attention_mask'])[0].numpy()
    model.save_pretrained(folder)
    os.remove(os.path.join(folder, 'README.md'))
    path = os.path.join(folder, 'adapter_config.json')
    with open(path, encoding='utf-8') as f:
      config = json.load(f)
    if isinstance(config['target_modules'], list):
      config['target_modules'].sort()  # it is kept as a set
    with open(path, 'w', encoding='utf-8') as f:
      json.dump({**config, 'base_model_name_or_path': name}, f, indent=2)
    np.save(os.path.join(folder, 'hidden.npy'), hidden)


if __name__ == '__main__':
  main()
