"""The web page and the HTTP service. Needs the extra `serve`."""
