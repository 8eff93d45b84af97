"""Ways to search a trained model: build(targets), search(state, queries, k)."""

from retrieval_jax.indexes.exact import ExactIndex as ExactIndex
from retrieval_jax.indexes.faiss import FaissIndex as FaissIndex
