"""Addresses and errors as messages show them."""

from __future__ import annotations


def without_secrets(url: str) -> str:
    """The URL less its user, password, query and fragment, which may hold keys: fit for messages and logs."""
    scheme, _, rest = one_line(url).partition("://")
    host, slash, path = rest.partition("?")[0].partition("#")[0].partition("/")
    return f"{scheme}://{host.rpartition('@')[2]}{slash}{path}"


def one_line(error: object) -> str:
    """What an error says, without line breaks; its type if it says nothing."""
    return " ".join(str(error).split()) or type(error).__name__
