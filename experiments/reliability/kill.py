r"""Kills each command at random moments and compares what the next one leaves.

  python -m experiments.reliability.kill --out=killed.json
  python -m experiments.reliability.kill --commands=train,mine --kills=5

For train, convert, embed, mine, adapt and export: the command is run twice
undisturbed, then killed (SIGKILL, its whole process group) `--kills` times. A
chain of kills goes on in one folder, `--chain` of them, until the command is
left alone; then must hold

- what it wrote equals what it writes undisturbed, byte for byte. Left out is
  what two undisturbed runs differ in, all of it named in the report: seconds in
  JSON, times in TensorBoard's events, and checkpoints, whose arrays are
  compared in place of their files;
- no temporary file is left, in its folder or in the cache;
- metrics.jsonl has each step once.

Last, `--at_once` trainings start together over one empty cache and must end
with what the undisturbed one wrote. Everything lies in a temporary folder. With
the default options it takes about fifteen minutes of two cores.
"""

import collections
from collections.abc import Iterator, Mapping, Sequence
import dataclasses
import json
import os
import pathlib
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from typing import Any

from absl import app
from absl import flags
import jax
import numpy as np

from experiments import process
from retrieval_jax import files
from retrieval_jax import trained

_KILLS = flags.DEFINE_integer('kills', 20, 'Kills of each command.')
_CHAIN = flags.DEFINE_integer('chain', 4, 'Kills before it may finish.')
_COMMANDS = flags.DEFINE_list(
    'commands', ['train', 'convert', 'embed', 'mine', 'adapt', 'export'],
    'Which commands.')
_AT_ONCE = flags.DEFINE_integer('at_once', 3, 'Trainings at once; 0: none.')
_SEED = flags.DEFINE_integer('seed', 0, 'Of the moments.')
_OUT = flags.DEFINE_string('out', None, 'JSON file for the report.')

_CONFIG = 'configs/stale.py:tiny'
_OPTIONS = ('--config.data.source=beir', '--config.data.num_targets=0',
            '--config.evaluation.baselines=False', '--config.num_steps=40',
            '--config.checkpoint.every=3', '--config.log.every=1',
            '--config.refresh.write_back=True')
_SECONDS = re.compile(r'seconds|.*_seconds|latency_ms')  # keys of JSON
# Vectors that mine and search keep with a run are not training's.
_NOT_COMPARED = re.compile(
    r'tensorboard/.*|checkpoints/.*|targets/.*|results\.md')
_TEMPORARY = re.compile(r'\..*|.*\btmp\b.*')


@dataclasses.dataclass(frozen=True)
class Command:
  """A command under test.

  Attributes:
    name: of the script.
    arguments: `{out}` stands for what it writes, `{cache}` for its cache.
  """
  name: str
  arguments: tuple[str, ...]

  def start(self, folder: pathlib.Path) -> subprocess.Popen:
    """Starts it in a process group of its own; it writes folder/out."""
    paths = {'out': folder / 'out', 'cache': folder / 'cache'}
    with open(folder / 'log.txt', 'ab') as log:
      return subprocess.Popen(
          [sys.executable, '-m', f'experiments.{self.name}',
           *(argument.format(**paths) for argument in self.arguments)],
          stdout=log, stderr=log, start_new_session=True)

  def run(self, folder: pathlib.Path) -> float:
    """Runs it to its end; returns the seconds.

    Raises:
      RuntimeError: with its last words, if it fails.
    """
    started = time.monotonic()
    if self.start(folder).wait():
      raise RuntimeError((folder / 'log.txt').read_text('utf-8')[-2000:])
    return time.monotonic() - started

  def kill(self, folder: pathlib.Path, seconds: float) -> bool:
    """Runs it for some seconds; returns whether it had to be killed."""
    process = self.start(folder)
    try:
      process.wait(seconds)
      return False
    except subprocess.TimeoutExpired:
      os.killpg(process.pid, signal.SIGKILL)
      process.wait()
      return True


def write_data(folder: pathlib.Path, num_targets: int = 2000) -> None:
  """Writes a made-up data set in BEIR layout: queries are shuffled targets."""
  rng = np.random.default_rng(0)
  words = [''.join(rng.choice(list('abcdefghij'), 5)) for _ in range(400)]
  texts = [rng.choice(words, 8).tolist() for _ in range(num_targets)]
  (folder / 'qrels').mkdir(parents=True)
  lines = lambda name, rows: (folder / name).write_text(
      ''.join(json.dumps(row) + '\n' for row in rows), 'utf-8')
  lines('corpus.jsonl', [{'_id': f'd{i}', 'title': '', 'text': ' '.join(text)}
                         for i, text in enumerate(texts)])
  queries = []
  for split, number in (('train', 200), ('dev', 40), ('test', 40)):
    judged = 'query-id\tcorpus-id\tscore\n'
    for _ in range(number):
      target = int(rng.integers(num_targets))
      judged += f'q{len(queries)}\td{target}\t1\n'
      queries.append({'_id': f'q{len(queries)}', 'text': ' '.join(
          rng.permutation(texts[target])[:5])})
    (folder / 'qrels' / f'{split}.tsv').write_text(judged, 'utf-8')
  lines('queries.jsonl', queries)


def make_commands(root: pathlib.Path) -> Mapping[str, Command]:
  """Returns the commands; those after train use root/train and root/embed."""
  data, run = root / 'data', root / 'train' / 'first' / 'out'
  return {command.name: command for command in (
      Command('train', (f'--config={_CONFIG}', '--workdir={out}', *_OPTIONS,
                        f'--config.data.path={data}',
                        '--config.data.cache={cache}')),
      Command('convert', ('--source=beir', f'--path={data}', '--out={out}')),
      Command('embed', (f'--workdir={run}', '--out={out}')),
      Command('mine', (f'--workdir={run}', '--num_negatives=4', '--out={out}')),
      Command('adapt', (f'--embeddings={root / "embed" / "first" / "out"}',
                        '--method=xs,nudge_m', '--out={out}')),
      Command('export', (f'--workdir={run}', '--out={out}', '--embeddings')))}


def contents(out: pathlib.Path) -> dict[str, Any]:
  """Returns what is compared of a file or folder: name -> bytes or JSON."""
  found: dict[str, Any] = {}
  for path in sorted(out.rglob('*')):
    name = path.relative_to(out).as_posix()
    if path.is_dir() or _NOT_COMPARED.fullmatch(name):
      continue
    # Some files say where they are.
    content = path.read_bytes().replace(str(out.parent).encode(), b'FOLDER')
    if path.suffix == '.json':
      found[name] = _without_seconds(json.loads(content))
    elif path.suffix == '.jsonl' and path.name == 'metrics.jsonl':
      found[name] = [_without_seconds(json.loads(line))
                     for line in content.splitlines()]
    elif path.name != files.SEAL:
      found[name] = content
  if (out / 'checkpoints').is_dir():
    _, state = trained.load_state(str(out), num_devices=1)
    found['checkpoint'] = [np.asarray(leaf).tobytes() for leaf in
                           jax.tree.leaves(jax.tree.map(_numbers, state))]
  return found


def _numbers(leaf: jax.Array) -> jax.Array:
  if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
    return jax.random.key_data(leaf)
  return leaf


def _without_seconds(value: Any) -> Any:
  if isinstance(value, dict):
    return {name: _without_seconds(item) for name, item in value.items()
            if not _SECONDS.fullmatch(name)}
  if isinstance(value, list):
    return [_without_seconds(item) for item in value]
  return value


def problems(folder: pathlib.Path, wanted: Mapping[str, Any]
             ) -> Iterator[str]:
  """Yields what is wrong in a command's folder after it has finished."""
  found = contents(folder / 'out')
  for name in sorted(found.keys() | wanted.keys()):
    if found.get(name) != wanted.get(name):
      yield f'{name} differs' if name in found and name in wanted else (
          f'{name} is {"new" if name in found else "missing"}')
  for path in sorted(folder.rglob('*')):
    if _TEMPORARY.fullmatch(path.name):
      yield f'{path.relative_to(folder)} is left'
  metrics = folder / 'out' / 'metrics.jsonl'
  if metrics.exists():
    steps = collections.Counter(
        line['step'] for line in map(json.loads, metrics.open(encoding='utf-8'))
        if 'train/nll' in line)
    if any(count > 1 for count in steps.values()) or len(steps) != max(steps):
      yield f'metrics.jsonl has steps {sorted(steps.elements())}'


def kill_and_compare(command: Command, root: pathlib.Path, kills: int,
                     chain: int, random_moment: random.Random
                     ) -> dict[str, Any]:
  """Kills a command that often; returns what happened."""
  first, second = (root / command.name / name for name in ('first', 'second'))
  for folder in (first, second):
    folder.mkdir(parents=True, exist_ok=True)
  if not (first / 'out').exists():
    command.run(first)
  seconds = command.run(second)  # with all programs compiled
  wanted = contents(first / 'out')
  found = [f'undisturbed: {problem}' for problem in problems(second, wanted)]
  moments: list[float] = []
  for number in range(5 * kills):  # it may end before its moment
    if len(moments) == kills:
      break
    folder = root / command.name / f'killed-{number}'
    folder.mkdir()
    for _ in range(min(chain, kills - len(moments))):
      moment = random_moment.uniform(0, seconds)
      if not command.kill(folder, moment):
        break
      moments.append(round(moment, 2))
    if not (folder / 'out').exists() or command.name == 'train':
      command.run(folder)
    found += [f'{folder.name}: {problem}'
              for problem in problems(folder, wanted)]
    shutil.rmtree(folder)
  return {'seconds': round(seconds, 1), 'kills': len(moments),
          'moments': moments, 'problems': found}


def at_once(command: Command, root: pathlib.Path, number: int
            ) -> dict[str, Any]:
  """Starts trainings together over one empty cache; returns what happened."""
  shared = root / 'at_once'
  folders = [shared / str(i) for i in range(number)]
  (shared / 'cache').mkdir(parents=True)
  for folder in folders:
    folder.mkdir()
    (folder / 'cache').symlink_to(shared / 'cache')
  started = [command.start(folder) for folder in folders]
  for folder, training in zip(folders, started, strict=True):
    if training.wait():
      raise RuntimeError((folder / 'log.txt').read_text('utf-8')[-2000:])
  found: list[str] = []
  wanted = contents(root / 'train' / 'first' / 'out')
  for folder in folders:
    found += [f'{folder.name}: {problem}'
              for problem in problems(folder, wanted)]
  found += [f'cache: {path.name} is left' for path in (
      shared / 'cache').rglob('*') if _TEMPORARY.fullmatch(path.name)]
  return {'runs': number, 'problems': found}


def main(argv: Sequence[str]) -> None:
  if len(argv) > 1:
    raise app.UsageError(f'Unexpected arguments {argv[1:]}.')
  report: dict[str, Any] = {}
  with process.script(), tempfile.TemporaryDirectory(
      prefix='killed_') as temporary:
    root = pathlib.Path(temporary)
    os.environ.setdefault('JAX_COMPILATION_CACHE_DIR', str(root / 'programs'))
    write_data(root / 'data')
    commands = make_commands(root)
    moments = random.Random(_SEED.value)
    for name in ('train', 'embed'):  # what the others read
      (root / name / 'first').mkdir(parents=True)
      commands[name].run(root / name / 'first')
    for name in _COMMANDS.value:
      report[name] = kill_and_compare(
          commands[name], root, _KILLS.value, _CHAIN.value, moments)
      _show(name, report[name])
    if _AT_ONCE.value:
      report['at once'] = at_once(commands['train'], root, _AT_ONCE.value)
      _show('at once', report['at once'])
  if _OUT.value:
    files.write_json(_OUT.value, report)
  if any(entry['problems'] for entry in report.values()):
    sys.exit('There are problems.')


def _show(name: str, entry: Mapping[str, Any]) -> None:
  number = entry.get('kills', entry.get('runs'))
  print(f'{name}: {number}, {len(entry["problems"])} problems', flush=True)
  for problem in entry['problems']:
    print(f'  {problem}', flush=True)


if __name__ == '__main__':
  app.run(main)
