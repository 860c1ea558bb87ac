"""One thread for all tests: two threads on a busy machine wait for each other far longer than they compute."""

import torch

torch.set_num_threads(1)
