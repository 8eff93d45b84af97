"""Dense retrieval trained with hard negatives from stale target embeddings."""
