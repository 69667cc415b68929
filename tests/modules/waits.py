"""How often a training step makes its host wait for a GPU, counted where there is none.

What a GPU would hold is known by where it comes from: the batch, the weights, and whatever is computed of them. Reading
any of it is a wait, be it in Python or within torch, where a mask as an index is counted. What `Late` has sent before
is the host's already.
"""

import sys

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

READ_BY_PYTHON = {"tolist", "numpy", "cpu"}
READ_BY_TORCH = {"_local_scalar_dense", "nonzero", "masked_select", "equal", "_unique2", "is_nonzero"}
INDEXED = {"index", "index_put", "index_put_"}
ON_A_CPU_ALONE = {"_known_finite"}


class HostWaits(TorchDispatchMode):
    """Counts the reads of what a device would hold.

    Args:
        held: what it holds at the beginning.
    """

    def __init__(self, held):
        super().__init__()
        self.held = {storage(tensor): tensor for tensor in held}  # kept alive: no other tensor gets their place
        self.places = []
        self._python = _PythonReads(self)

    def __enter__(self):
        self._python.__enter__()
        return super().__enter__()

    def __exit__(self, *error):
        super().__exit__(*error)
        self._python.__exit__(*error)

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        made, given = function(*args, **kwargs), tensors((args, kwargs))
        name = function.overloadpacket.__name__
        masked = name in INDEXED and any(one.dtype in (torch.bool, torch.uint8) for one in tensors(args[1]))
        if name in READ_BY_TORCH or masked:
            self.read(given)
        sent = name == "copy_" and (kwargs.get("non_blocking") or args[2:] == (True,))
        own = {storage(one) for one in given}
        for one in tensors(made):
            if sent:
                self.held.pop(storage(one), None)
            elif own & self.held.keys():
                self.held[storage(one)] = one
        return made

    def read(self, given):
        """Count a read of some tensors."""
        frame, stack = sys._getframe(1), []
        while frame is not None:
            stack.append(frame.f_code.co_name)
            frame = frame.f_back
        if any(storage(one) in self.held for one in given) and not ON_A_CPU_ALONE & set(stack):
            self.places.append(stack)


class _PythonReads(TorchFunctionMode):
    """The reads that torch does not hear of."""

    def __init__(self, waits):
        super().__init__()
        self.waits = waits

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if getattr(function, "__name__", "") in READ_BY_PYTHON:
            self.waits.read(tensors((args, kwargs)))
        return function(*args, **(kwargs or {}))


def tensors(values):
    """The tensors in nested values."""
    return [value for value in tree_leaves(values) if isinstance(value, torch.Tensor)]


def storage(tensor):
    """Where a tensor's values are."""
    return tensor.untyped_storage().data_ptr()
