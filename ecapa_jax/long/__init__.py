"""Recordings of any length in the memory of a chunk."""
