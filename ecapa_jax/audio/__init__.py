"""Audio in: loading, decoding, parts of files, windows."""
