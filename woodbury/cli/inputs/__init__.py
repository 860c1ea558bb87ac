"""What the words MODEL and DATA become: a module, a training and a test split."""
