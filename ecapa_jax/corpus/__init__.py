"""A corpus in, Parquet shards of embeddings out: restartable, and mappable by any cluster framework."""
