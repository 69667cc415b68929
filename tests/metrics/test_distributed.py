"""Two real processes over gloo: a rank that counted nothing must neither hang nor blur the other's keys."""

import subprocess
import sys

import torch

from tempspec.metrics.ratio import ClusteredRatio

RANK = """
import os, sys
import torch
from tempspec.metrics.ratio import ClusteredRatio, paired_difference

(store, result), other = sys.argv[1:], os.fork()  # both begin after the imports
rank = 0 if other else 1
torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
even, idle = ClusteredRatio(replicates=20), ClusteredRatio(replicates=20)
key_N = torch.arange(6) + 2**62 + 6 * rank
even.update(torch.arange(6) + rank, torch.ones(6), key_N)
if rank == 1:
    for key in key_N:
        idle.update(torch.ones(1), torch.ones(1), key[None])
found = [even.estimate(), idle.estimate(), paired_difference(even, even)]
even.update(torch.zeros(0), torch.zeros(0), key_N[:0])
torch.save([list(estimate.to_dict().values()) for estimate in [*found, even.estimate()]], f"{result}{rank}")
torch.distributed.destroy_process_group()
sys.exit(rank == 0 and os.waitpid(other, 0)[1] != 0)
"""


def test_ranks_agree_with_one_process(tmp_path):
    line = [sys.executable, "-c", RANK, str(tmp_path / "store"), str(tmp_path / "result")]
    assert subprocess.run(line, timeout=120).returncode == 0

    single = ClusteredRatio(replicates=20)
    for rank in range(2):
        single.update(torch.arange(6) + rank, torch.ones(6), torch.arange(6) + 2**62 + 6 * rank)
    for rank in range(2):
        even, idle, difference, again = torch.load(tmp_path / f"result{rank}")
        assert even == again == list(single.estimate().to_dict().values())
        assert idle == [1, 1, 1, 6]
        assert difference == [0, 0, 0, 12]
