"""Launch plans: a call that differs from an earlier one in nothing but addresses is not worked out again.

Between an operator and its kernels stand the arithmetic of our launchers and Triton's own, which looks at every stride
of every tensor: 25 us a launch, more than small kernels take. Nothing of that depends on where a tensor lies, but for
its alignment. So the third call of a kind is recorded: what it allocates, and which compiled kernels it launches on
what. Later calls of that kind allocate and launch the same, on their own addresses.

Two calls are of a kind if their arguments are equal, their tensors in shape, strides, dtype, device and alignment, and
if the same of them coincide. A call that does more than to allocate, to view and to launch, such as one that sums the
gradients of learnt features in torch, is carried out in full every time.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

RECORDED_CALL = 3
"""The call of a kind that is recorded, at the cost of two others."""

MOST_PLANS = 1024
"""Kinds of calls an operator remembers; beyond, it forgets the one it met first."""

_ALIGNMENT = 16
"""Bytes for which Triton looks whether a pointer is a multiple of them."""

_SCRATCH_ALIGNMENT = 512
"""Bytes to which torch's allocator aligns what it hands out, and we what we cut from one of its blocks."""

_ALLOCATIONS = {
    torch.ops.aten.empty,
    torch.ops.aten.empty_like,
    torch.ops.aten.empty_strided,
    torch.ops.aten.new_empty,
    torch.ops.aten.new_empty_strided,
}
_VIEWS = {
    torch.ops.aten.permute,
    torch.ops.aten.select,
    torch.ops.aten.slice,
    torch.ops.aten.unbind,
    torch.ops.aten.unsqueeze,
    torch.ops.aten.view,
}

PLANNED_DEVICES = {"cuda"}
"""Types of devices whose launches are planned. Triton's interpreter, on CPU tensors, compiles nothing."""

_recordings = threading.local()


class _Allocation(NamedTuple):
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype


class _PlannedLaunch(NamedTuple):
    """A compiled kernel with its grid, and its arguments as a function of addresses and of constants."""

    run: Callable[..., None]
    arguments: Callable[[list[int], list[Any]], tuple[Any, ...]]
    constants: list[Any]


class _Plan(NamedTuple):
    """Results to allocate, bytes of scratch memory, what to launch, and whether there is one result, not a tuple."""

    results: tuple[_Allocation, ...]
    scratch: int
    launches: tuple[_PlannedLaunch, ...]
    is_single: bool

    def carry_out(self, tensors: list[Tensor], addresses: list[int]) -> Tensor | tuple[Tensor, ...]:
        """Allocate and launch; `tensors` are the arguments, and lie at `addresses`."""
        allocate = tensors[0].new_empty_strided
        results = [allocate(shape, stride, dtype=dtype) for shape, stride, dtype in self.results]
        addresses += [x.data_ptr() for x in results]
        if self.scratch:
            scratch = allocate((self.scratch,), (1,), dtype=torch.uint8)
            addresses.append(scratch.data_ptr())
        stream = _stream(tensors[0].device)
        for run, arguments, constants in self.launches:
            run(*arguments(addresses, constants), stream=stream)
        return results[0] if self.is_single else tuple(results)


def _stream(device: torch.device) -> int:
    from triton.runtime import driver  # here, as without triton there are no launches

    active: Any = driver.active
    return active.get_current_stream(device.index or 0)


class _Recording(TorchDispatchMode):
    """Watch a call: its allocations, its launches, and whether it did anything else."""

    def __init__(self, arguments: Sequence[Tensor]) -> None:
        super().__init__()
        self.arguments = list(arguments)
        self.allocated: list[Tensor] = []
        self.launches: list[tuple[Callable[..., None], tuple[Any, ...]]] = []
        self.is_complete = True

    def __enter__(self) -> _Recording:
        _recordings.current = self
        return super().__enter__()

    def __exit__(self, *exception: Any) -> None:
        _recordings.current = None
        super().__exit__(*exception)

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func.overloadpacket in _ALLOCATIONS:
            self.allocated.append(result)
        elif func is torch.ops.aten.detach.default:  # how torch.empty hands out what it has allocated
            self.allocated = [result if x is args[0] else x for x in self.allocated]
        elif func.overloadpacket not in _VIEWS:
            self.is_complete = False
        return result

    def plan(self, results: Any) -> _Plan | None:
        """Return what was recorded, or None where more was done than a plan can do again."""
        is_single = isinstance(results, Tensor)
        results = [results] if is_single else list(results)
        own = {id(x) for x in self.allocated}
        if not self.is_complete or len({id(x) for x in results} & own) < len(results):
            return None
        allocations = tuple(_Allocation(tuple(x.shape), x.stride(), x.dtype) for x in results)
        memory = _Memory(self.arguments, self.allocated, results)
        try:
            launches = tuple(_planned_launch(run, arguments, memory) for run, arguments in self.launches)
        except _AmbiguousError:
            return None
        return _Plan(allocations, memory.scratch, launches, is_single)


class _AmbiguousError(Exception):
    """Of memory that several tensors share, it cannot be told through which of them it was reached."""


class _Memory:
    """Where tensors lie: so many bytes behind the start of an argument, of a result or of the scratch memory.

    Those starts are numbered, the scratch memory last; it is handed out to other allocations as they are met.
    """

    def __init__(self, arguments: list[Tensor], allocated: list[Tensor], results: list[Tensor]) -> None:
        self.scratch = 0
        self.places: dict[int, tuple[int, int]] = {}
        for slot, x in enumerate([*arguments, *results]):
            self.places.setdefault(id(x), (slot, 0))
        self.scratch_slot = len(arguments) + len(results)
        self.unplaced = {id(x) for x in allocated} - self.places.keys()
        self.owners: dict[int, list[Tensor]] = {}
        for x in {id(x): x for x in [*arguments, *allocated]}.values():
            self.owners.setdefault(x.untyped_storage().data_ptr(), []).append(x)

    def place(self, x: Tensor) -> tuple[int, int]:
        """Return (slot, bytes behind its start)."""
        if id(x) in self.places:
            return self.places[id(x)]
        if id(x) in self.unplaced:
            self.places[id(x)] = self.scratch_slot, self.scratch
            self.scratch += -(-x.untyped_storage().nbytes() // _SCRATCH_ALIGNMENT) * _SCRATCH_ALIGNMENT
            return self.places[id(x)]
        owners = self.owners[x.untyped_storage().data_ptr()]
        if len(owners) > 1:
            raise _AmbiguousError
        slot, offset = self.place(owners[0])
        return slot, offset + x.data_ptr() - owners[0].data_ptr()


def _planned_launch(run: Callable[..., None], arguments: tuple[Any, ...], memory: _Memory) -> _PlannedLaunch:
    """Write the arguments down as a function of where the memory starts, and of constants.

    It is one Python expression, as a walk over forty arguments would cost what it is to save.
    """
    constants: list[Any] = []

    def constant(x: Any) -> str:
        constants.append(x)
        return f"constants[{len(constants) - 1}]"

    def expression(x: Any) -> str:
        if isinstance(x, tuple):
            return f"({' '.join(f'{expression(each)},' for each in x)})"
        if not isinstance(x, Tensor):
            return constant(x)
        if x.numel() == 0:
            return constant(0)
        slot, offset = memory.place(x)
        return f"starts[{slot}] + {constant(offset)}" if offset else f"starts[{slot}]"

    return _PlannedLaunch(run, _function(expression(arguments)), constants)


@lru_cache(maxsize=4096)
def _function(expression: str) -> Callable[[list[int], list[Any]], tuple[Any, ...]]:
    """Compile an expression; calls that differ in lengths share theirs."""
    return eval(f"lambda starts, constants: {expression}")


def launch_kernel(kernel: Any, programs: int, *arguments: Any, **constants: Any) -> None:
    """Launch a kernel over `programs` programs, where a call is being recorded as part of its plan.

    Args:
        kernel: a function of `triton.jit`.
        programs: size of the grid, which has one dimension.
        arguments: of the kernel, in order; tensors by themselves or at the head of a tuple of strides.
        constants: compile-time values, and options of Triton's launcher.
    """
    compiled = kernel[(programs,)](*arguments, **constants)
    recording = getattr(_recordings, "current", None)
    if recording is None:
        return
    if compiled is None:  # Triton's interpreter has run it
        recording.is_complete = False
        return
    named = dict(zip(kernel.arg_names, arguments, strict=False)) | constants
    recording.launches.append((compiled[(programs, 1, 1)], tuple(named[name] for name in kernel.arg_names)))


def planned(implementation: Callable[..., Any], impl_position: int) -> Callable[..., Any]:
    """Let an operator's implementation carry out plans.

    Args:
        implementation: takes tensors, None, numbers, names and lists of numbers, by position; returns one new tensor or
            several; launches through `launch_kernel` alone.
        impl_position: of the argument that names the schedule; the reference has no launches.
    """
    plans: OrderedDict[Any, _Plan | int] = OrderedDict()  # or how many calls of a kind there were

    def call(*arguments: Any) -> Any:
        if arguments[impl_position] == "reference":
            return implementation(*arguments)
        tensors = [x for x in arguments if isinstance(x, Tensor)]
        device = tensors[0].device
        if device.type not in PLANNED_DEVICES:
            return implementation(*arguments)
        addresses = [x.data_ptr() for x in tensors]
        kind = _kind(arguments, addresses)
        met = plans.get(kind, 0)
        if isinstance(met, _Plan):
            return met.carry_out(tensors, addresses)
        if met + 1 != RECORDED_CALL:
            if met == 0 and len(plans) >= MOST_PLANS:
                plans.popitem(last=False)
            plans[kind] = met + 1
            return implementation(*arguments)
        with _Recording(tensors) as recording:
            results = implementation(*arguments)
        plans[kind] = recording.plan(results) or RECORDED_CALL
        return results

    return call


def _kind(arguments: tuple[Any, ...], addresses: list[int]) -> tuple[Any, ...]:
    """Return what the launches of a call depend on."""
    parts: list[Any] = []
    for x in arguments:
        if isinstance(x, Tensor):
            parts += (x.shape, x.stride(), x.dtype, x.device)
        else:
            parts.append(tuple(x) if isinstance(x, list) else x)
    alignments = [x % _ALIGNMENT for x in addresses]  # views at an offset are aligned or not as these are
    parts.append(tuple(alignments) if any(alignments) else None)
    parts.append(tuple(map(addresses.index, addresses)) if len(set(addresses)) < len(addresses) else None)
    return tuple(parts)
