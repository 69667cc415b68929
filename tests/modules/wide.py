"""How much of a step is logits: what a memory test counts."""

import weakref

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Wide(TorchDispatchMode):
    """Bytes that are alive at most in tensors of a vocabulary's width."""

    def __init__(self, vocabulary):
        super().__init__()
        self.vocabulary, self.alive, self.most, self.seen = vocabulary, 0, 0, set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for value in tree_leaves(result):
            if isinstance(value, torch.Tensor) and value.ndim > 1 and value.shape[-1] == self.vocabulary:
                storage = value.untyped_storage()
                if storage.data_ptr() not in self.seen:
                    self.seen.add(storage.data_ptr())
                    self.alive += storage.nbytes()
                    weakref.finalize(storage, self._gone, storage.data_ptr(), storage.nbytes())
        self.most = max(self.most, self.alive)
        return result

    def _gone(self, place, size):
        self.seen.discard(place)
        self.alive -= size
