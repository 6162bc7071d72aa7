"""Zero-shot retrieval: how well embeddings of unseen classes find their own class."""
