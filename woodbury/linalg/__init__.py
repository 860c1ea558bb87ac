"""Linear algebra on tensors: factors, Gram matrices, products with rows, sums over ranks."""
