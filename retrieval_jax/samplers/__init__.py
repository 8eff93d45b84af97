"""Ways to choose negatives from remembered targets; one file per method.

Every sampler is a frozen dataclass with `propose(key, queries [B, D],
exclude_rows [B, E], view) -> Proposal`, and only a sampler may read stale
vectors. Live rows of a table form a prefix (see `table`), on which the uniform
samplers rely.
"""

from retrieval_jax.samplers.exhaustive import Exhaustive
from retrieval_jax.samplers.gumbel import Gumbel
from retrieval_jax.samplers.none import NoNegatives
from retrieval_jax.samplers.positives import Ceiling
from retrieval_jax.samplers.shortlist import ShortlistGumbel
from retrieval_jax.samplers.simans import SimANS
from retrieval_jax.samplers.stochastic import StochasticNegativeMining
from retrieval_jax.samplers.top_k import TopK
from retrieval_jax.samplers.uniform import Uniform
