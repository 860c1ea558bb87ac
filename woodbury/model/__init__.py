"""The user's side: a model, its weights as one vector, its data and its loss."""
