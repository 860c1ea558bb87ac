"""The user's side: a model, its weights as one vector, its data, its loss, and what they cost."""
