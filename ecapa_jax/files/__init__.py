"""Files of the user: outputs written whole or not at all, tables of text, and folders of recordings."""
