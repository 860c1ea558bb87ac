"""Files: sparse weights, checkpoints, fingerprints, folders written whole or not at all."""
