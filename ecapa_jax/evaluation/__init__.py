"""From a trial list and recordings to error rates: lists, cached embeddings, scores, reports and plots."""
