"""The network: `ecapa` from top to bottom, the layers it is made of, other poolings, fast products."""
