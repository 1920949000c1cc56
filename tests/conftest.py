"""One thread a process: the networks here are small, and pytest-xdist has the cores busy already."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # for the processes that tests start

import torch

torch.set_num_threads(1)
