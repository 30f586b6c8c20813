"""Training data: manifest, order, reading, batches."""
