"""What fresh embeddings become: the losses, and terms on top of them.

Every objective is a frozen `types.Objective`: (parameters of its own, fresh
embeddings, batch, proposal) -> (loss [B], scalars). `Contrastive` is the loss
of all published systems with positives here, `Marginal` that of questions with
answers in their place; `SpreadOut`, `Distilled`, `Matryoshka` and
`EmbeddingDistilled` wrap another one.
"""

from retrieval_jax.objectives.contrastive import Contrastive
from retrieval_jax.objectives.distillation import Distillation
from retrieval_jax.objectives.distillation import Distilled
from retrieval_jax.objectives.embedding_distillation import EmbeddingDistilled
from retrieval_jax.objectives.guide import Guide
from retrieval_jax.objectives.marginal import Marginal
from retrieval_jax.objectives.matryoshka import Matryoshka
from retrieval_jax.objectives.spread_out import SpreadOut
