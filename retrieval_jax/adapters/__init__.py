"""Adapters: better retrieval from a frozen encoder, without a backward pass.

Each is fitted to embeddings of training queries, their judgements and the
targets' embeddings, whatever made them, and gives an index.
"""

from retrieval_jax.adapters.methods import ADAPTERS as ADAPTERS
from retrieval_jax.adapters.methods import make as make
from retrieval_jax.adapters.moved import Moved as Moved
from retrieval_jax.adapters.nudge import NudgeM as NudgeM
from retrieval_jax.adapters.nudge import NudgeN as NudgeN
from retrieval_jax.adapters.pairs import Pairs as Pairs
from retrieval_jax.adapters.pefa_xl import PefaXL as PefaXL
from retrieval_jax.adapters.pefa_xs import PefaXS as PefaXS
