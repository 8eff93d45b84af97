"""Folders that look like finished runs, with numbers chosen by the test."""

import json
import os


def write_run(folder, *, method='stale', seed=0, quality=0.5, calls=1000,
              seconds=60., curve=True, split='dev', diagnostics=(), **results):
  """Writes the files of a run of 30 steps and returns its folder.

  Args:
    folder: to be made.
    method: what results.json and config.json say.
    seed: the same.
    quality: RR@10 at the end.
    calls: target-encoder calls in the steps, beside 200 to fill the memory.
    seconds: in total; two thirds of them are of the steps.
    curve: whether metrics.jsonl is left, with `split` at steps 0, 20 and 30.
    split: that was evaluated.
    diagnostics: name -> values at steps 10, 20 and 30.
    **results: entries of results.json instead of these.
  """
  os.makedirs(folder)
  with open(os.path.join(folder, 'results.json'), 'w', encoding='utf-8') as f:
    json.dump({
        'measures': {split: {'RR@10': quality, 'R@1': quality / 2,
                             'nDCG@10': quality / 4}},
        'bm25': {split: {'RR@10': 0.25}}, 'untrained': {},
        'meter': {'target_encoder_calls_in_step': calls,
                  'target_encoder_calls_reembedding': 200,
                  'flops_in_step': calls * 3e9, 'flops_reembedding': 200e9,
                  'table_bytes': 2**20, 'device_bytes': 2**22, 'seconds': {
                      'total': seconds, 'update': seconds / 2,
                      'refresh': seconds / 6, 'evaluate': seconds / 3}},
        'steps': 30, 'seed': seed, 'method': method} | results, f)
  write_config(folder, {'sampler': {'name': method}, 'seed': seed})
  if not curve:
    return folder
  with open(os.path.join(folder, 'metrics.jsonl'), 'w', encoding='utf-8') as f:
    for number, step in enumerate((0, 10, 20, 30)):
      # Counts are logged more often than quality.
      line = {'step': step, 'seconds': seconds * step / 30, 'train/nll': 1.,
              'meter/target_encoder_calls': 200 + calls * step / 30}
      f.write(json.dumps(line) + '\n')
      if step != 10:
        f.write(json.dumps({
            'step': step, f'{split}/RR@10': quality * step / 30}) + '\n')
      if diagnostics and step:
        f.write(json.dumps({'step': step} | {
            name: values[number - 1] for name, values in diagnostics.items()})
                + '\n')
  return folder


def write_config(folder, config):
  """Writes what a run leaves at its start."""
  os.makedirs(folder, exist_ok=True)
  with open(os.path.join(folder, 'config.json'), 'w', encoding='utf-8') as f:
    json.dump(config, f)


def write_sweep(folder, methods, *, num_seeds=3, **options):
  """Writes NNN_METHOD-seedS for each of `methods`, name -> qualities.

  Args:
    folder: of the sweep.
    methods: name -> quality of each seed.
    num_seeds: how many of these are used.
    **options: of every run, as `write_run` takes them.
  """
  for number, (name, qualities) in enumerate(methods.items()):
    for seed, quality in enumerate(qualities[:num_seeds]):
      write_run(
          os.path.join(folder, f'{number * num_seeds + seed:03}_{name}-seed'
                       f'{seed}'),
          method=name, seed=seed, quality=quality, **options)
  return folder
