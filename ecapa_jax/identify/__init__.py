"""Enrols speakers in one file and identifies the speaker of a recording by exact search."""
