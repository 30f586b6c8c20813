"""Readers of checkpoint files of other libraries, which never run anything in a file."""
