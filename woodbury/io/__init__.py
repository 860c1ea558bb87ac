"""Files: sparse weights, folders that are written whole or not at all, checksums."""
