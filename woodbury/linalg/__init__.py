"""Linear algebra on tensors: factors, Gram matrices, products with rows, solvers; no models."""
