"""Files: audio, bundles, checkpoints, downloads."""
