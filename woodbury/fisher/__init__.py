"""Damped Fisher matrices: multiply by them, solve with them, read their inverses."""
