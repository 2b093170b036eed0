"""Launch plans: a call that differs from an earlier one in nothing but addresses is not worked out again.

Between an operator and its kernels stand the arithmetic of our launchers and Triton's own, which looks at every stride
of every tensor: 25 us a launch, more than small kernels take. Nothing of that depends on where a tensor lies, but for
its alignment. So the second call of a kind is recorded: what it allocates, and which compiled kernels it launches on
what. Later calls of that kind allocate and launch the same, on their own addresses.

Two calls are of a kind if their arguments are equal, their tensors in shape, strides, dtype, device and alignment, and
if the same of them coincide. A call that does more than to allocate, to view and to launch, such as one that sums the
gradients of learnt features in torch, is carried out in full every time.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

MOST_PLANS = 1024
"""Kinds of calls an operator remembers; beyond, it begins anew."""

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


class _Address(NamedTuple):
    """Where a tensor lies: so many bytes behind the start of an argument, of a result or of the scratch memory."""

    slot: int
    offset: int


class _Allocation(NamedTuple):
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype


class _PlannedLaunch(NamedTuple):
    """A compiled kernel with its grid, and the function that makes its arguments from addresses."""

    run: Callable[..., None]
    arguments: Callable[[list[int]], tuple[Any, ...]]


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
        for run, arguments in self.launches:
            run(*arguments(addresses), stream=stream)
        return results[0] if self.is_single else tuple(results)


def _stream(device: torch.device) -> int:
    from triton.runtime import driver  # here, as without triton there are no launches

    active: Any = driver.active
    return active.get_current_stream(device.index or 0)


def _from_addresses(arguments: Sequence[Any]) -> Callable[[list[int]], tuple[Any, ...]]:
    """Return a function that makes these arguments, with numbers for addresses, from the start of every slot.

    It is one Python expression, as a walk over forty arguments would cost what it is to save.
    """
    constants: list[Any] = []

    def expression(x: Any) -> str:
        if isinstance(x, _Address):
            return f"starts[{x.slot}] + {x.offset}"
        if isinstance(x, tuple):
            return f"({' '.join(f'{expression(each)},' for each in x)})"
        if x is None or type(x) in (int, bool):
            return repr(x)
        constants.append(x)
        return f"constants[{len(constants) - 1}]"

    return eval(f"lambda starts: {expression(tuple(arguments))}", {"constants": constants})


class _Recording(TorchDispatchMode):
    """Watch a call: its allocations, its launches, and whether it did anything else."""

    def __init__(self, arguments: Sequence[Tensor]) -> None:
        super().__init__()
        self.arguments = list(arguments)
        self.allocated: list[Tensor] = []
        self.launches: list[tuple[Callable[..., None], list[Any]]] = []
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

    def add(self, compiled: Any, programs: int, arguments: Sequence[Any]) -> None:
        """Take down a launch."""
        self.launches.append((compiled[(programs, 1, 1)], [self._located(x) for x in arguments]))

    def plan(self, results: Any) -> _Plan | None:
        """Return what was recorded, or None where more was done than a plan can do again."""
        is_single = isinstance(results, Tensor)
        results = [results] if is_single else list(results)
        order = [i for r in results for i, x in enumerate(self.allocated) if x is r]
        if not self.is_complete or len(order) < len(results):
            return None
        moved = {i: _Address(len(self.arguments) + place, 0) for place, i in enumerate(order)}
        scratch = 0
        for i in sorted({i for _, arguments in self.launches for i in _allocations_of(arguments)} - moved.keys()):
            moved[i] = _Address(len(self.arguments) + len(results), scratch)
            scratch += -(-self.allocated[i].untyped_storage().nbytes() // _SCRATCH_ALIGNMENT) * _SCRATCH_ALIGNMENT
        allocations = tuple(_Allocation(tuple(x.shape), x.stride(), x.dtype) for x in results)
        launches = tuple(_PlannedLaunch(run, _from_addresses(_placed(x, moved))) for run, x in self.launches)
        return _Plan(allocations, scratch, launches, is_single)

    def _located(self, argument: Any) -> Any:
        """Replace tensors by where they lie: slots from 0 for arguments, from -1 downwards for allocations."""
        if isinstance(argument, tuple):
            return tuple(self._located(x) for x in argument)
        if not isinstance(argument, Tensor):
            return argument
        if argument.numel() == 0:
            return 0
        slots = [*enumerate(self.arguments), *((~i, x) for i, x in enumerate(self.allocated))]
        for slot, tensor in slots:
            if argument is tensor:
                return _Address(slot, 0)
        storage = argument.untyped_storage().data_ptr()
        owners = [(slot, x) for slot, x in slots if x.untyped_storage().data_ptr() == storage]
        if len(owners) != 1:  # a view of memory that several share: whose it is cannot be told
            self.is_complete = False
            return None
        slot, owner = owners[0]
        return _Address(slot, argument.data_ptr() - owner.data_ptr())


def _allocations_of(located: Any) -> Iterator[int]:
    """Yield the allocations among located arguments."""
    if isinstance(located, _Address):
        if located.slot < 0:
            yield ~located.slot
    elif isinstance(located, tuple | list):
        for x in located:
            yield from _allocations_of(x)


def _placed(located: Any, moved: dict[int, _Address]) -> Any:
    """Give allocations the addresses that they have in a plan."""
    if isinstance(located, _Address):
        if located.slot >= 0:
            return located
        start = moved[~located.slot]
        return _Address(start.slot, start.offset + located.offset)
    return tuple(_placed(x, moved) for x in located) if isinstance(located, tuple | list) else located


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
    if recording is not None:
        named = dict(zip(kernel.arg_names, arguments, strict=False)) | constants
        recording.add(compiled, programs, [named[name] for name in kernel.arg_names])


def planned(implementation: Callable[..., Any], impl_position: int) -> Callable[..., Any]:
    """Let an operator's implementation carry out plans.

    Args:
        implementation: takes tensors, None, numbers, names and lists of numbers, by position; returns one new tensor or
            several; launches through `launch_kernel` alone.
        impl_position: of the argument that names the schedule; the reference has no launches.
    """
    plans: dict[Any, _Plan | bool] = {}  # True after the first call of a kind, False where there can be no plan

    def call(*arguments: Any) -> Any:
        if arguments[impl_position] == "reference":
            return implementation(*arguments)
        tensors = [x for x in arguments if isinstance(x, Tensor)]
        device = tensors[0].device
        if device.type not in PLANNED_DEVICES:
            return implementation(*arguments)
        addresses = [x.data_ptr() for x in tensors]
        kind = _kind(arguments, addresses, device)
        plan = plans.get(kind)
        if isinstance(plan, _Plan):
            return plan.carry_out(tensors, addresses)
        if plan:
            with _Recording(tensors) as recording:
                results = implementation(*arguments)
            plans[kind] = recording.plan(results) or False
            return results
        if plan is None:
            if len(plans) >= MOST_PLANS:
                plans.clear()
            plans[kind] = True
        return implementation(*arguments)

    return call


def _kind(arguments: tuple[Any, ...], addresses: list[int], device: torch.device) -> tuple[Any, ...]:
    """Return what the launches of a call depend on."""
    parts: list[Any] = [device]
    for x in arguments:
        if isinstance(x, Tensor):
            parts += (x.shape, x.stride(), x.dtype)
        else:
            parts.append(tuple(x) if isinstance(x, list) else x)
    if any(x % _ALIGNMENT for x in addresses):
        parts.append(tuple(x % _ALIGNMENT == 0 for x in addresses))
    if len(set(addresses)) < len(addresses):
        parts.append(tuple(map(addresses.index, addresses)))
    return tuple(parts)
