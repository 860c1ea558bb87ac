"""Compiled kernels for CPUs: products that torch has no fast ones for. Numba compiles them."""
