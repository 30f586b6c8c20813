"""The calls and results of other projects."""
