"""Who spoke when: overlap detection, clustering of windows, turns, and the files they are written to."""
