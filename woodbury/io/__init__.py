"""Files and facts: sparse weights, checkpoints, whole-or-nothing folders, recipes as facts."""
