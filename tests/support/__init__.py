"""What several test files share: operators, networks, the float64 truth, random tensors, the
command line."""
