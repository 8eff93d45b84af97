"""Several processes that run one program: on the hosts of a pod or a cluster.

Each runs the same script with the same flags, and does the same on its host;
arrays on the devices are shared by all. The first alone writes what all of them
would write. Folders of a run must therefore be seen by all of them.
"""

from collections.abc import Iterator, Mapping, Sequence
import contextlib
import dataclasses
import os
import shutil
import tempfile
from typing import Any
import zlib

import jax
from jax.experimental import multihost_utils
import numpy as np
from numpy.typing import DTypeLike

from retrieval_jax import files

_HEARTBEAT_SECONDS = 60
"""After how long a process that is gone ends the others."""


@dataclasses.dataclass(frozen=True)
class Start:
  """How the processes find each other.

  Attributes:
    distributed: 'auto' asks the environment whether there are several, see
      `found_in`; 'on' starts them and leaves it to jax to find out about the
      cluster, which on Cloud TPU asks the machine; 'off' is one process.
    coordinator: HOST:PORT of the first process, where nobody else tells; the
      two others go with it.
    num_processes: how many there are.
    process_id: which this is, from 0.
    heartbeat_seconds: after how long without a sign of life a process counts
      as gone, which ends the others.
  """
  distributed: str = 'auto'
  coordinator: str | None = None
  num_processes: int | None = None
  process_id: int | None = None
  heartbeat_seconds: int = _HEARTBEAT_SECONDS

  def __post_init__(self):
    explicit = {'--coordinator': self.coordinator,
                '--num_processes': self.num_processes,
                '--process_id': self.process_id}
    given = [name for name, value in explicit.items() if value is not None]
    if given and len(given) < len(explicit):
      missing = [name for name in explicit if name not in given]
      raise ValueError(
          f'{", ".join(given)} without {", ".join(missing)}: the three say '
          'together how processes find each other. On SLURM, Kubernetes and '
          'TPU pods leave all of them out.')
    if given and self.distributed == 'off':
      raise ValueError(
          f'--distributed=off goes without {", ".join(given)}, which are for '
          'several processes.')
    if self.process_id is not None and not (
        0 <= self.process_id < self.num_processes):
      raise ValueError(
          f'--process_id={self.process_id} must be 0 to '
          f'{self.num_processes - 1}: there are '
          f'--num_processes={self.num_processes}.')
    host, _, port = (self.coordinator or 'host:1').rpartition(':')
    if not host or not port.isdigit():
      raise ValueError(
          f'--coordinator={self.coordinator} must be HOST:PORT, such as '
          '10.0.0.1:8476, of the machine of process 0.')


def found_in(environment: Mapping[str, str]) -> str:
  """Returns what tells of several processes, '' if nothing does.

  More than one task of a SLURM step or of Open MPI; several TPU hosts on GKE; a
  pod of an indexed Job, or of a JobSet of such, on Kubernetes. How they find
  each other is then left to jax, which knows these clusters.

  Args:
    environment: as os.environ.
  """
  number = lambda name: int(environment.get(name) or 0)
  if 'SLURM_STEP_NODELIST' in environment and number('SLURM_NTASKS') > 1:
    return 'SLURM'
  if number('OMPI_COMM_WORLD_SIZE') > 1:
    return 'Open MPI'
  if ',' in environment.get('TPU_WORKER_HOSTNAMES', ''):
    return 'TPU pod'
  if ('KUBERNETES_SERVICE_HOST' in environment
      and 'JOB_COMPLETION_INDEX' in environment):
    return 'Kubernetes'
  return ''


def start(options: Start) -> None:
  """Joins the other processes, if there are any; before jax is used.

  Raises:
    ValueError: if jax cannot find the others.
  """
  if jax.distributed.is_initialized() or options.distributed == 'off':
    return
  if (options.distributed == 'auto' and options.coordinator is None
      and not found_in(os.environ)):
    return
  try:
    jax.distributed.initialize(
        options.coordinator, options.num_processes, options.process_id,
        heartbeat_timeout_seconds=options.heartbeat_seconds)
  except (ValueError, RuntimeError) as error:
    raise ValueError(
        f'The processes did not find each other: {error}. Give '
        '--coordinator=HOST:PORT, --num_processes and --process_id; or '
        '--distributed=off for one process.') from error


def is_first() -> bool:
  """Returns whether this process speaks and writes for all."""
  return not jax.process_index()


def several() -> bool:
  """Returns whether there are others."""
  return jax.process_count() > 1


def wait(name: str) -> None:
  """Returns when all processes are here.

  Args:
    name: of the place, the same in all.
  """
  if several():
    multihost_utils.sync_global_devices(name)


class OtherFailed(RuntimeError):
  """The first process has failed, and says why itself."""


@contextlib.contextmanager
def first_before_others(what: str) -> Iterator[None]:
  """Lets the first process through, then the others, who find what it made.

  Nothing in it may need the others.

  Args:
    what: is done, for the message.

  Raises:
    OtherFailed: in the others, if an exception was raised in the first.
  """
  if not several():
    yield
    return
  told = False

  def tell(succeeded):
    return bool(multihost_utils.broadcast_one_to_all(np.array(succeeded)))

  if not is_first() and not tell(False):
    raise OtherFailed(f'{what}: process 0 failed, and says why.')
  try:
    yield
    told = True
  finally:
    if is_first():
      tell(told)


def check_same(values: Mapping[str, Any], remedy: str) -> None:
  """Raises a ValueError unless all processes have the same values.

  Args:
    values: name -> anything with a repr, the same names in all.
    remedy: what to do.
  """
  if not several():
    return
  digests = np.array([zlib.crc32(repr(value).encode())
                      for value in values.values()], np.uint32)
  found = np.asarray(multihost_utils.process_allgather(digests))
  for name, of_value in zip(values, found.T):
    if len(set(of_value.tolist())) > 1:
      raise ValueError(
          f'The {len(of_value)} processes differ in {name}: process '
          f'{jax.process_index()} has {values[name]!r}. {remedy}')


def total(number: int) -> int:
  """Returns the sum of a number over all processes."""
  if not several():
    return number
  # In halves: without x64 jax has no int64.
  parts = np.asarray(multihost_utils.process_allgather(
      np.array([number >> 24, number & (2**24 - 1)], np.int32)))
  high, low = parts.reshape(-1, 2).astype(np.int64).sum(axis=0).tolist()
  return (high << 24) + low


def joined(array: np.ndarray) -> np.ndarray:
  """Returns the arrays [n] of all processes behind each other."""
  if not several():
    return array
  return np.asarray(multihost_utils.process_allgather(array, tiled=True))


@contextlib.contextmanager
def new_folder(path: str) -> Iterator[str]:
  """Yields a folder as `files.new_folder` does, which the first process makes.

  The others write the same into a folder that is removed; all leave when `path`
  is there.
  """
  if is_first():
    with files.new_folder(path) as folder:
      yield folder
  else:
    folder = tempfile.mkdtemp(prefix='retrieval_jax_')
    try:
      yield folder
    finally:
      shutil.rmtree(folder, ignore_errors=True)
  wait(f'made {path}')


class _Nowhere:
  """Rows of a file that another process writes."""

  def __setitem__(self, rows: Any, values: np.ndarray) -> None:
    """Takes values of some rows and forgets them."""


@contextlib.contextmanager
def new_array(path: str, dtype: DTypeLike, shape: Sequence[int]
              ) -> Iterator[Any]:
  """Yields what takes rows by `[rows] = values`.

  Of the first process it is the file that `files.new_array` makes; what the
  others give goes nowhere.
  """
  if not is_first():
    yield _Nowhere()
    return
  with files.new_array(path, dtype, shape) as array:
    yield array
