"""A recording on the CPU with the semantics of a CUDA graph: operations with the tensors that they were called with.

A replay calls them again, on the same memory, and puts what they make where it was made first. Whatever else decided
something, a shape or a value on the host, is what it was while recording.
"""

from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from tests.decoding.test_host_reads import READS, tensors_in

READING = {"_local_scalar_dense", "item", "nonzero", "masked_select", "_unique2", "equal", "is_nonzero", "lift_fresh"}
"""Operations that a GPU cannot do while it records: they wait for a value, or bring one from the host."""


class Tape(TorchDispatchMode):
    """Holds every operation with its tensors, and with what it made."""

    def __init__(self):
        super().__init__()
        self.steps = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function.overloadpacket.__name__ in READING:
            raise RuntimeError(f"operation not permitted while recording: {function.overloadpacket.__name__}")
        kwargs = kwargs or {}
        made = function(*args, **kwargs)
        self.steps.append((function, args, kwargs, list(tensors_in(made))))
        return made

    def replay(self):
        for function, args, kwargs, kept in self.steps:
            for own, value in zip(kept, tensors_in(function(*args, **kwargs)), strict=True):
                if own.data_ptr() != value.data_ptr():  # else a view, or changed in place
                    own.copy_(value)


class NoReads(TorchFunctionMode):
    """Refuses what reads a tensor's memory without an operation."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        name = getattr(function, "__name__", "")
        if name in READS:
            raise RuntimeError(f"operation not permitted while recording: {name}")
        return function(*args, **(kwargs or {}))


class Tapes:
    """A recorder of rounds; it counts its replays, and says when it is in one."""

    def __init__(self):
        self.made, self.replays, self.inside = 0, 0, False

    def __call__(self, run):
        run()  # what is made once, such as caches and tables, is made before
        tape = Tape()
        with NoReads(), tape:
            made = run()
        kept = made.clone()
        self.made += 1

        def replay():
            self.replays += 1
            self.inside = True
            tape.replay()
            kept.copy_(made)
            self.inside = False
            return kept

        return replay
