"""Which parts of a method go together, and with which data; the only place.

What an objective needs must be given by the sampler, the data or the method:
each need has one message. Besides, each kind of memory and of targets has its
conditions. Messages name the options of the config and what to change.
"""

from collections.abc import Callable
import dataclasses
import typing

from retrieval_jax import correctors
from retrieval_jax import samplers
from retrieval_jax import types
from retrieval_jax.samplers import stateless

if typing.TYPE_CHECKING:  # a Method checks itself, so it imports this
  from retrieval_jax import method as methods
  from retrieval_jax.mining import episodes

NEEDS = {
    'log_z': (
        "estimator.name='cache_gradient' needs log Z over the memory; use "
        "sampler.name='gumbel', 'top_k_gumbel' or 'bucketed' ('pool' with "
        "sampler.pool_order='softmax' has that of the pool)."),
    'log_q': (
        "estimator.name='sampled_softmax' and objective.importance=True need "
        'log q of every column; use '
        "sampler.name='uniform' or 'gumbel', or 'tree' with "
        'sampler.chain_steps=0.'),
    'every_row': (
        "estimator.name='full_softmax' is the exact loss over all targets; it "
        "needs memory.kind='corpus' and sampler.name='exhaustive'."),
    'only_draws': (
        'data.num_candidates changes the columns of the loss, but this '
        'estimator.name is right for all that was drawn and nothing else; '
        "leave it out, or use estimator.name='truncated_softmax'."),
    'negatives': (
        "sampler.name='none' with estimator.columns='own' or 'draws' leaves "
        "the loss without negatives; use columns 'positives', or explicit "
        'candidates by data.num_candidates.'),
    'teacher': (
        "distillation.kind and guide.by='scores' compare the scores of a "
        "query's positive and candidates; they need data.num_candidates of at "
        'least 1.'),
    'teacher_vectors': (
        "guide.by='embeddings' and teacher.loss read another encoder's vectors "
        'of the same data; set teacher.folder to what experiments.embed wrote '
        'of it.'),
    'answers': (
        "objective.name='marginal' needs the likelihoods of a reader; set "
        "reader.name='extractive' or 'seq2seq'."),
    'independent': (
        'objective.importance=True weighs draws that are independent of each '
        "other, and sampler.name='gumbel' draws without replacement; use "
        "sampler.name='uniform' or 'tree', or objective.importance=False."),
    'positives': (
        'estimator.spread_out keeps the positives of a batch apart, and '
        "teacher.loss brings them to a teacher's vectors; questions with "
        'answers have none; leave it out.'),
    'reads_alone': (
        'reader.fused=True trains the reader on all passages together, but '
        "objective.estimate='marginal' or 'joint' has it read each alone; use "
        "objective.estimate='emdr2' or 'perplexity'."),
}
"""Need of an objective -> what to say where nothing gives it."""


def given(method: 'methods.Method') -> frozenset[str]:
  """Returns what a method gives to its objective, of the keys of NEEDS."""
  gives = set(method.sampler.gives)
  if not method.memory.holds_corpus:
    gives.discard('every_row')
  gives.add('teacher' if method.num_candidates else 'only_draws')
  if method.teacher_dim:
    gives.add('teacher_vectors')
  if method.num_negatives:
    gives.add('negatives')
  gives.add('positives' if method.reader is None else 'answers')
  if method.reader is None or not method.reader.fuses:
    gives.add('reads_alone')
  if (not isinstance(method.sampler, samplers.Gumbel)
      or method.sampler.num_negatives == 1):
    gives.add('independent')
  return frozenset(gives)


def check_method(method: 'methods.Method') -> None:
  """Raises a ValueError if the parts of a method do not go together."""
  if method.num_candidates < 0:
    raise ValueError(
        f'data.num_candidates={method.num_candidates} must be a number of '
        'candidates per query, or 0 for none.')
  for need, message in NEEDS.items():
    if need in method.objective.needs - given(method):
      raise ValueError(message)
  memory, refresh = method.memory, method.refresh
  if method.reader is not None:
    _check_reader(method)
  if (method.sampler.draws_from_pools and method.sampler.draws_from_memory
      and not memory.holds_corpus):
    raise ValueError(
        "sampler.name='pool_gumbel', and 'pool' with sampler.pool_order="
        "'softmax', score mined ids by their rows; set memory.kind='corpus', "
        "or draw from the pool alone: sampler.name='pool' with "
        "sampler.pool_order='rotating' or 'uniform'.")
  _MEMORY_CHECKS.get(memory.kind, lambda method: None)(method)
  if not method.sampler.num_negatives and refresh.write_back:
    raise ValueError(
        "refresh.write_back=True needs drawn rows, but sampler.name='none'.")
  if method.targets.source != 'encoder' and (
      not memory.holds_corpus or not refresh.is_off
      or method.corrector != correctors.Identity()):
    raise ValueError(
        f'targets.source={method.targets.source!r} takes the rows of the table '
        "for the targets; it needs memory.kind='corpus', all of refresh off "
        "and corrector.name='identity'.")
  if memory.on_host:
    _check_host(method)
  if memory.scan_dtype != 'float32':
    _check_coarse(method)
  if isinstance(method.sampler, samplers.Tree) and not memory.holds_corpus:
    raise ValueError(
        "sampler.name='tree' is over rows that keep their target; it needs "
        "memory.kind='corpus'.")
  refresh.num_rows(memory.num_slots)
  if method.corrector.num_anchors > memory.num_slots:
    raise ValueError(
        f'corrector.num_anchors={method.corrector.num_anchors} exceeds the '
        f'{memory.num_slots} rows of the memory; lower it.')
  if isinstance(method.corrector, correctors.Nystrom):
    _check_nystrom(method)


def _check_host(method):
  """Raises unless a step needs few of the rows, which are on the host."""
  if not method.sampler.takes_few_rows:
    raise ValueError(
        "memory.place='host' sends a step the rows that it asks for, but the "
        f'sampler {type(method.sampler).__name__} goes over all of them; use '
        "sampler.name='tree', 'uniform' or 'stochastic', or set "
        "memory.place='device'.")
  if method.targets.source != 'encoder':
    raise ValueError(
        f'targets.source={method.targets.source!r} trains against rows of the '
        "table; it needs memory.place='device'.")


_SCANNING = (samplers.Gumbel, samplers.TopK, samplers.SimANS,
             samplers.ShortlistGumbel, samplers.PoolGumbel)


def _check_coarse(method):
  """Raises unless all rows are scanned, as they are."""
  sampler, corrector = method.sampler, method.corrector
  option = f'memory.scan_dtype={method.memory.scan_dtype!r}'
  if not isinstance(sampler, _SCANNING):
    raise ValueError(
        f'{option} is of scans over all rows, but the sampler '
        f'{type(sampler).__name__} does none; leave it out, or use '
        "sampler.name='gumbel', 'top_k', 'simans', 'top_k_gumbel', 'bucketed' "
        "or 'pool_gumbel'.")
  if not corrector.folds:
    raise ValueError(
        f'{option} scans copies of the rows as they are, but '
        f'{type(corrector).__name__} moves each of them; leave it out, or use '
        "corrector.name='identity', or 'linear' or a linear 'nystrom' with "
        'corrector.keep_norm=False, which move the queries instead.')
  if getattr(sampler, 'ceiling', None):
    raise ValueError(
        f'{option} does not go with sampler.max_share or min_margin, which '
        'leave rows out by their exact scores; leave one of them out.')


def _check_reader(method):
  """Raises where something asks for the positives that answers replace."""
  if method.has_positives:
    raise ValueError(
        "reader.name is set, but this objective reads no answers; set "
        "objective.name='marginal', or reader.name='none'.")
  sampler = method.sampler
  asked = {
      'refresh.push=True': method.refresh.push,
      'data.num_candidates': method.num_candidates,
      "distillation.kind or guide.by='scores'": (
          'teacher' in method.objective.needs),
      "sampler.name='simans'": isinstance(sampler, samplers.SimANS),
      "sampler.name='pool' or 'pool_gumbel'": sampler.draws_from_pools,
      'sampler.max_share or min_margin': getattr(sampler, 'ceiling', None)}
  for option, is_set in asked.items():
    if is_set:
      raise ValueError(
          f"objective.name='marginal' trains on questions without a positive, "
          f'but {option} needs one; leave it out.')


def _check_nystrom(method):
  """Raises unless the table stays as it was when landmarks were chosen."""
  if not method.memory.holds_corpus:
    raise ValueError(
        "corrector.name='nystrom' needs landmarks that stay in the memory; set "
        "memory.kind='corpus'.")
  for option in ('write_back', 'push', 'fraction'):
    value = getattr(method.refresh, option)
    if value:
      raise ValueError(
          f"refresh.{option}={value} overwrites rows, but corrector.name="
          "'nystrom' predicts from rows as they were first embedded; leave it "
          'out (refresh.reencode_every may be set).')
  num_landmarks = method.corrector.num_landmarks
  if num_landmarks > method.memory.num_slots:
    raise ValueError(
        f'corrector.num_landmarks={num_landmarks} exceeds the '
        f'{method.memory.num_slots} rows of the memory; lower it.')


def _check_none(method):
  # A sampler that draws from elsewhere may ask to be rebuilt.
  only_rebuilds = dataclasses.replace(method.refresh, reencode_every=0).is_off
  if method.sampler.draws_from_memory or not (
      only_rebuilds if method.sampler.num_negatives
      else method.refresh.is_off):
    raise ValueError(
        "memory.kind='none' remembers nothing to draw from or refresh; set "
        "memory.kind='corpus' or 'ring', or sampler.name='none' with all of "
        'refresh off.')
  if method.corrector != correctors.Identity():
    raise ValueError(
        "memory.kind='none' remembers nothing to correct; set "
        "corrector.name='identity', or memory.kind='corpus' or 'ring'.")


def _check_ring(method):
  if method.refresh.reencode_every:
    raise ValueError(
        'refresh.reencode_every re-encodes a whole corpus; with '
        "memory.kind='ring' use refresh.fraction, push and write_back.")
  if not method.refresh.push:
    raise ValueError(
        "memory.kind='ring' takes in the batches' positives: set "
        'refresh.push=True.')


_MEMORY_CHECKS: dict[str, Callable[['methods.Method'], None]] = {
    'none': _check_none, 'ring': _check_ring}


def check_episodes(plan: 'episodes.Plan', method: 'methods.Method',
                   setting: 'Setting', *, num_steps: int, best: str) -> None:
  """Raises a ValueError if episodes do not go with a method or its steps.

  Args:
    plan: of the run.
    method: of the run.
    setting: what the method meets.
    num_steps: of the run.
    best: what is measured to keep the best checkpoint, '' for none.
  """
  every = method.refresh.reencode_every
  draws_from_pools = method.sampler.draws_from_pools
  if draws_from_pools and plan.bar_answers and not setting.has_answers:
    raise ValueError(
        '--config.episodes.bar_answers=True leaves out passages that have an '
        f'answer to their query, and train_split={setting.split!r} of '
        f'{setting.data_name} has no answers; add them (docs/data.md), or set '
        'it to False.')
  if plan.later == 'memory' and not method.memory.holds_corpus:
    raise ValueError(
        "--config.episodes.later='memory' searches the memory for the next "
        "pools; it needs --config.memory.kind='corpus'.")
  if not every and (plan.number > 1 or plan.restart):
    raise ValueError(
        f'--config.episodes.number={plan.number} and restart={plan.restart} '
        'are of several episodes; say how many steps each of them takes: '
        '--config.refresh.reencode_every=STEPS.')
  number = plan.num_episodes(num_steps, every)
  if plan.early_negatives and number == 1 and draws_from_pools:
    raise ValueError(
        f'--config.episodes.early_negatives={plan.early_negatives} is of all '
        'episodes but the last, and there is one alone; set it to 0, or make '
        'more of them by --config.refresh.reencode_every and '
        '--config.episodes.number.')
  if not every:
    return
  last = num_steps - (number - 1) * every
  if last < 1:
    raise ValueError(
        f'--config.episodes.number={number} episodes of '
        f'--config.refresh.reencode_every={every} steps leave no step of the '
        f'--config.num_steps={num_steps} to the last of them.')
  if not plan.restart:
    return
  if number == 1:
    raise ValueError(
        '--config.episodes.restart=True starts each episode after the first '
        'anew, but there is one alone; raise --config.episodes.number, or '
        f'lower --config.refresh.reencode_every={every}.')
  if plan.later == 'memory' and draws_from_pools:
    raise ValueError(
        "--config.episodes.later='memory' mines in what earlier encoders have "
        'embedded, and --config.episodes.restart=True throws these encoders '
        'away, so that neither the first encoder nor a corrector of its rows '
        "has seen them; set restart=False, or later='encoder'.")
  if best:
    raise ValueError(
        f'--config.checkpoint.best={best!r} keeps a state that '
        '--config.episodes.restart=True throws away; leave one of them out.')


@dataclasses.dataclass(frozen=True)
class Setting:
  """What a method meets in a run.

  Attributes:
    batch_size: B.
    num_devices: S.
    num_targets: N, without copies.
    tied: whether one tower encodes queries and targets.
    normalize: whether embeddings have length one.
    table_dtype: of the remembered embeddings.
    data_name: of the data set, for messages.
    split: of the training queries.
    num_candidates: the most explicit candidates that a query of the split has
      besides its known positives; None where the split has no candidates.
    has_answers: whether there are answers to queries of the split.
    has_teacher: whether some query has a teacher's scores of a positive and of
      another candidate.
    negatives: of several data sets, what a query draws from: 'own' or 'joint';
      None of one.
  """
  batch_size: int
  num_devices: int
  num_targets: int
  tied: bool
  normalize: bool
  table_dtype: str
  data_name: str
  split: str
  num_candidates: int | None
  has_answers: bool
  has_teacher: bool
  negatives: str | None = None


def check_setting(method: 'methods.Method', setting: Setting) -> None:
  """Raises a ValueError if a method does not go with the model or the data."""
  if setting.batch_size % setting.num_devices:
    raise ValueError(
        f'--config.batch_size={setting.batch_size} must be a multiple of the '
        f'{setting.num_devices} devices.')
  if getattr(method.corrector, 'keep_norm', False) and not setting.normalize:
    raise ValueError(
        '--config.corrector.keep_norm=True gives a corrected row the length of '
        'the stale one, which is right for embeddings of length one only; with '
        '--config.model.normalize=False set '
        '--config.corrector.keep_norm=False.')
  source = method.targets.source
  if source != 'encoder' and setting.tied:
    raise ValueError(
        f'--config.targets.source={source!r} trains the query tower alone, '
        'which must not be the target tower as well; set '
        '--config.model.tied=False.')
  if source == 'rows' and setting.table_dtype != 'float32':
    raise ValueError(
        "--config.targets.source='rows' trains the rows of the table by small "
        f'steps, which {setting.table_dtype} rounds away; set '
        '--config.memory.dtype=float32.')
  _check_capacity(method.memory, method, setting)
  _check_candidates(method, setting)
  if setting.negatives is not None:
    _check_sets(method, setting.negatives)


def _check_sets(method: 'methods.Method', negatives: str):
  """Raises unless a sampler can draw from one of several data sets."""
  sampler = method.sampler
  if negatives == 'own' and sampler.num_negatives and (
      not isinstance(sampler, stateless.Stateless)
      or not sampler.draws_from_memory or method.memory.on_host
      or isinstance(sampler, samplers.BucketedGumbel)):  # buckets of all rows
    raise ValueError(
        "--config.data.negatives='own' hides the rows of other sets from the "
        f'sampler, and {type(sampler).__name__} does not look at these alone, '
        'or they are on the host; use '
        "--config.sampler.name='gumbel', 'top_k', 'simans', 'uniform' or "
        "'stochastic' with --config.memory.place='device', or "
        "--config.data.negatives='joint'.")
  if getattr(sampler, 'pool_order', None) == 'rotating':
    raise ValueError(
        "--config.sampler.pool_order='rotating' goes on with each epoch, of "
        'which several data sets have each its own; set it to '
        "'uniform' or 'softmax'.")


def _check_capacity(memory: types.Memory, method: 'methods.Method',
                    setting: Setting):
  if not memory.num_slots or memory.holds_corpus:
    return
  if method.refresh.push and memory.num_slots < setting.batch_size:
    raise ValueError(
        f'--config.memory.capacity={memory.num_slots} rows must hold at least '
        f'one batch of {setting.batch_size} (--config.batch_size).')
  if getattr(memory, 'prefill', False) and (
      memory.num_slots > setting.num_targets):
    raise ValueError(
        f'--config.memory.capacity={memory.num_slots} rows cannot be filled '
        f'with {setting.num_targets} targets; lower it, or take '
        "--config.memory.kind=corpus, which holds them all.")


def _check_candidates(method: 'methods.Method', setting: Setting):
  """Raises where the data lacks candidates or scores that are asked for.

  Single queries may have fewer, or no scores: they are masked.
  """
  asked = f'--config.data.num_candidates={method.num_candidates}'
  if not method.num_candidates:
    return
  if setting.num_candidates is None:
    raise ValueError(
        f'{asked}, but {setting.data_name} has no candidates of split '
        f'{setting.split!r}; add candidates/{setting.split}.tsv to its folder, '
        'or set the option to 0.')
  if setting.num_candidates < method.num_candidates:
    raise ValueError(
        f'{asked}, but no query of split {setting.split!r} has more than '
        f'{setting.num_candidates} candidates that are not known positives; '
        'lower the option.')
  if 'teacher' in method.objective.needs and not setting.has_teacher:
    raise ValueError(
        "--config.distillation.kind and guide.by='scores' need teacher scores, "
        f'but no query of split {setting.split!r} has both a positive and '
        'another candidate with a score; give them in the third column of '
        f'candidates/{setting.split}.tsv, the positives among them.')
