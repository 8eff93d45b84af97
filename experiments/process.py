"""What every script does around its work: quiet logs, errors in one line.

And flags that name files and folders, in which ~ is the home of the user: no
shell expands it behind the = of --workdir=~/runs.
"""

import ast
import contextlib
import dataclasses
import os
import sys
import traceback

from absl import app
from absl import flags
from absl import logging
import jax
from ml_collections import config_flags

from retrieval_jax import processes
from retrieval_jax import runtime
from retrieval_jax import terminal

_MESSAGE = 4000  # characters of an error, which may quote somebody's data

flags.disclaim_key_flags()  # --help shows what a script defines by this module


class _PathParser(flags.ArgumentParser):
  syntactic_help = 'a path; ~ is your home'

  def parse(self, argument):
    return os.path.expanduser(argument)


class _PathsParser(flags.ListParser):

  def parse(self, argument):
    return [os.path.expanduser(path) for path in super().parse(argument)]


def DEFINE_path(name, default, text, **kwargs):
  """Defines a flag as flags.DEFINE_string does, in which ~ is expanded."""
  return flags.DEFINE(_PathParser(), name, default, text, **kwargs)


def DEFINE_config(text, **kwargs):
  """Defines --config as config_flags.DEFINE_config_file does, ~ expanded."""
  config_flags.DEFINE_config_file('config', None, text, **kwargs)
  parser = kwargs.get('flag_values', flags.FLAGS)['config'].parser
  parse = parser.parse
  parser.parse = lambda argument: parse(os.path.expanduser(argument))


def DEFINE_paths(name, default, text, **kwargs):
  """Defines a flag as flags.DEFINE_list does, in which ~ is expanded."""
  return flags.DEFINE(_PathsParser(), name, default, text,
                      serializer=flags.CsvListSerializer(','), **kwargs)


def DEFINE_lenient(**kwargs):
  """Defines --lenient; of a config it is --config.data.lenient."""
  return flags.DEFINE_bool(
      'lenient', False, 'Drop and count judgements of unknown ids, repeated '
      'ones and queries without a relevant target, in place of refusing them.',
      **kwargs)


def DEFINE_processes(values):
  """Defines the flags by which several processes find each other."""
  default = processes.Start()
  flags.DEFINE_enum(
      'distributed', default.distributed, ['auto', 'on', 'off'],
      'Whether this is one of several processes: auto asks the environment '
      '(SLURM, Open MPI, Kubernetes, TPU pods), on leaves it to jax.',
      flag_values=values)
  flags.DEFINE_string(
      'coordinator', None, 'HOST:PORT of process 0, where the environment does '
      'not tell.', flag_values=values)
  flags.DEFINE_integer(
      'num_processes', None, 'How many there are.', lower_bound=1,
      flag_values=values)
  flags.DEFINE_integer(
      'process_id', None, 'Which this is, from 0.', lower_bound=0,
      flag_values=values)
  flags.DEFINE_integer(
      'heartbeat_seconds', default.heartbeat_seconds, 'After how long a '
      'process that is gone ends the others.', lower_bound=1,
      flag_values=values)


def _start_processes(values):
  """Joins the other processes, of which only the first then prints."""
  processes.start(processes.Start(**{
      field.name: values[field.name].value
      for field in dataclasses.fields(processes.Start)}))
  if not processes.is_first():
    sys.stdout = open(os.devnull, 'w')  # noqa: SIM115  until the end


@contextlib.contextmanager
def script(values=None):
  """Keeps libraries' logs to warnings and compiled programs on disk.

  A cache folder that is set already, as by JAX_COMPILATION_CACHE_DIR, stays.
  Errors that a user can fix (ValueError, OSError, FloatingPointError,
  ModuleNotFoundError, NoAccelerator, OtherFailed) end the process with exit
  code 1 and their message alone; RETRIEVAL_JAX_TRACEBACK=1 shows where they
  came from.

  Args:
    values: with the flags of `DEFINE_processes`, if the script has them.
  """
  if 'verbosity' not in flags.FLAGS or not flags.FLAGS['verbosity'].present:
    logging.set_verbosity(logging.ERROR)
  if not jax.config.jax_compilation_cache_dir:
    runtime.configure_compilation_cache(
        os.path.expanduser('~/.cache/retrieval_jax/compiled'))
  try:
    if values is not None:
      _start_processes(values)
    yield
  except Exception as error:
    known = isinstance(error, (
        ValueError, OSError, FloatingPointError, ModuleNotFoundError,
        runtime.NoAccelerator, processes.OtherFailed))
    if not known or os.environ.get('RETRIEVAL_JAX_TRACEBACK'):
      if processes.several():
        _leave(traceback.format_exc())
      raise
    message = (f'error: {terminal.shown(str(error), _MESSAGE, keep=chr(10))}\n'
               '(RETRIEVAL_JAX_TRACEBACK=1 shows where.)')
    if processes.several():
      _leave(message)
    sys.exit(message)


def _leave(message):
  """Ends this process at once: a proper end would wait for the others.

  They may be waiting for this one, and end when they miss its heartbeat.
  """
  print(f'process {jax.process_index()}: {message}', file=sys.stderr,
        flush=True)
  os._exit(1)


def lines(what):
  """Returns the lines of standard input that are not blank, one by one.

  Args:
    what: a line is, for who types it.

  Raises:
    ValueError: if there are several processes, whose inputs would differ.
  """
  if processes.several():
    raise ValueError(
        f'Several processes do not share an input; give each {what} by '
        '--query.')
  if sys.stdin.isatty():
    print(f'One {what} per line; end with Ctrl-D.', file=sys.stderr)
  return (line.strip() for line in sys.stdin if line.strip())


def parse_flags(argv):
  """Parses flags like absl, but a misspelt --config option gives no traceback.

  Args:
    argv: the command line; the locked ConfigDict refuses names it lacks with
      an AttributeError or KeyError, which absl lets through.

  Returns:
    The arguments that are not flags.
  """
  try:
    return app.parse_flags_with_usage(argv)
  except (AttributeError, KeyError) as error:
    sys.exit(f'error: there is no such --config option: {_unquoted(error)}\n'
             'retrieval_jax/factory/defaults.py lists all of them.')


def _unquoted(error):
  """Returns the message that ml_collections wrapped in reprs of KeyErrors."""
  text = str(error)
  while text[:1] in ('"', "'"):
    try:
      text = ast.literal_eval(text)
    except (SyntaxError, ValueError):
      break
  return text
