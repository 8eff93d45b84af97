"""Writes the flag tables of docs/scripts.md, from the scripts' own flags.

  python -m experiments.dev.flag_tables

What is between `<!-- flags of SCRIPT -->` and `<!-- end of flags -->` is
replaced; everything else stays. A test says when the file is out of date.
"""

import importlib
import pathlib
import re

from absl import app
from absl import flags

FILE = 'docs/scripts.md'
_REPEATED = ';\n    repeat this option to specify a list of values'
_TABLE = re.compile(
    r'(<!-- flags of (\w+) -->\n).*?(<!-- end of flags -->)', re.S)


def scripts():
  """Returns the names of the scripts, the modules that define flags."""
  folder = pathlib.Path(__file__).resolve().parent.parent
  return sorted(path.stem for path in folder.glob('*.py')
                if 'def define_flags(' in path.read_text(encoding='utf-8'))


def table(script):
  """Returns the Markdown table of a script's flags, in order of definition."""
  values = flags.FlagValues()
  importlib.import_module(f'experiments.{script}').define_flags(values)
  rows = ['| flag | default | |', '| --- | --- | --- |']
  for flag in values.get_flags_for_module(f'experiments.{script}'):
    rows.append(
        f'| `--{flag.name}` | {_default(flag)} | {_meaning(flag)} |')
  return '\n'.join(rows) + '\n'


def _meaning(flag):
  """Returns a flag's help in one line, its choices first."""
  text = flag.help.removesuffix(_REPEATED)
  choices = getattr(flag.parser, 'enum_values', ())
  if choices:
    text = (', '.join(f'`{choice}`' for choice in choices) + ': '
            + text.partition('>: ')[2])
  return ' '.join(text.replace('|', '\\|').split())


def _default(flag):
  """Returns how the default of a flag is shown; nothing if it has none."""
  value = flag.default
  if value is None or value in ('', [], ()):
    return ''
  if isinstance(value, list | tuple):
    value = ','.join(str(each) for each in value)
  return f'`{value}`'


def up_to_date(text):
  """Returns the file's text with all tables regenerated."""
  return _TABLE.sub(
      lambda found: found[1] + table(found[2]) + found[3], text)


def main(argv):
  if len(argv) > 1:
    raise app.UsageError(f'Unexpected arguments {argv[1:]}.')
  path = pathlib.Path(FILE)
  path.write_text(up_to_date(path.read_text(encoding='utf-8')),
                  encoding='utf-8')
  print(f'Wrote {FILE}.')


if __name__ == '__main__':
  app.run(main)
