"""The compiled kernels. Positional arguments, validated by the package: see csrc/bindings.cpp.

Arrays are buffers of any strides. Axes are distinct and not negative. Outputs are written in place. A
bfloat16 array goes as uint16, and a bit of `bf16` says so: 0 to 2 for softmax's x, out; logsumexp's x,
b, out; softmax_backward's grad_output, output, out; segments' x, out; exp_sums' x. 0 to 5 for
cross_entropy's logits, grad, weight, sample_weight, loss, targets. Its loss has no dimensions where it
is reduced; float64 asks for float64 arithmetic.
"""

from typing import Any, TypeAlias

import numpy as np

_Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]

__version__: str

def plain_softmax(x: Any, axis: Any, log: bool, temperature: Any, out: Any, /) -> _Array | None: ...
def plain_logsumexp(x: Any, axis: Any, /) -> Any: ...
def plain_cross_entropy(
    logits: Any,
    targets: Any,
    axis: Any,
    label_smoothing: Any,
    temperature: Any,
    reduction: Any,
    with_grad: bool,
    /,
) -> Any: ...
def plain_backward(
    grad_output: Any, output: Any, axis: Any, log: bool, temperature: Any, /
) -> _Array | None: ...
def softmax(
    x: _Array,
    out: _Array,
    axes: tuple[int, ...],
    where: _Array | None,
    temperature: float,
    log: bool,
    bf16: int,
    /,
) -> None: ...
def logsumexp(
    x: _Array,
    out: _Array,
    sign: _Array | None,
    axes: tuple[int, ...],
    b: _Array | None,
    where: _Array | None,
    bf16: int,
    /,
) -> None: ...
def cross_entropy(
    logits: _Array,
    targets: _Array,
    axis: int,
    weight: _Array | None,
    sample_weight: _Array | None,
    ignore_index: int,
    label_smoothing: float,
    temperature: float,
    where: _Array | None,
    reduction: int,
    loss: _Array,
    grad: _Array | None,
    bf16: int,
    z_loss: float,
    softcap: float,
    stats: tuple[_Array, _Array, _Array, _Array] | None,
    /,
) -> None: ...
def exp_sums(x: _Array, states: _Array, axes: tuple[int, ...], bf16: int, /) -> None: ...
def log_of_sums(states: _Array, /) -> _Array: ...
def segments(x: _Array, indptr: _Array, out: _Array, log: bool | None, bf16: int, /) -> None: ...
def softmax_backward(
    grad_output: _Array,
    output: _Array,
    out: _Array,
    axes: tuple[int, ...],
    temperature: float,
    log: bool,
    bf16: int,
    /,
) -> None: ...
def get_num_threads() -> int: ...
def set_num_threads(n: int, /) -> None: ...
def set_thread_limit(n: int, /) -> int: ...
def isas_compiled() -> list[str]: ...
def isas_usable() -> list[str]: ...
def get_isa() -> str: ...
def set_isa(name: str, /) -> None: ...
def compiler() -> str: ...
def elementary(name: str, x: _Array, /) -> _Array: ...
