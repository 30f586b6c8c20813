"""Addresses and downloads of models and recordings."""
