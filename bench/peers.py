"""The contenders: each prepares a call without arguments for a case. What it cannot compute, it refuses by raising."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from grid import Array, Case, Data

Call = Callable[[], Any]


class UnsupportedError(Exception):
    """This contender has no such function, dtype or layout."""


def softlane(case: Case, data: Data) -> Call:
    import softlane

    function = getattr(softlane, case.function)
    out = {"out": np.empty_like(data.x)} if data.reuse else {}
    if case.function == "softmax_backward":
        return partial(function, data.grad_output, data.probabilities, case.axis, **out)
    targets = data.soft_targets if case.layout == "soft" else data.targets
    if case.function == "cross_entropy":
        return partial(function, data.x, targets, case.axis)
    if case.function == "cross_entropy_with_grad":
        grad = {"grad_out": out["out"]} if out else {}
        return partial(function, data.x, targets, case.axis, **grad)
    where = {"where": data.mask} if case.layout == "masked" else {}
    if case.function == "logsumexp":
        return partial(function, data.x, case.axis, **where)
    return partial(function, data.x, case.axis, **where, **out)


def masked(case: Case, data: Data) -> Array:
    """The logits as those need them who know no mask."""
    return np.where(data.mask, data.x, data.x.dtype.type(-np.inf))


def numpy(case: Case, data: Data) -> Call:
    x, axis, buffer = data.x, case.axis, np.empty_like(data.x)

    def exponentials() -> tuple[Array, Array]:
        nonlocal x
        if case.layout == "masked":
            x = masked(case, data)
        top = x.max(axis, keepdims=True)
        np.subtract(x, top, out=buffer)
        np.exp(buffer, out=buffer)
        return top, buffer.sum(axis, keepdims=True)

    def softmax() -> Array:
        _, total = exponentials()
        np.divide(buffer, total, out=buffer)
        return buffer

    def logsumexp() -> Array:
        top, total = exponentials()
        found: Array = (np.log(total) + top).squeeze(axis)
        return found

    def log_softmax() -> Array:
        top, total = exponentials()
        np.subtract(x, np.log(total) + top, out=buffer)
        return buffer

    def cross_entropy() -> Any:
        if case.layout == "soft":
            return -np.multiply(log_softmax(), data.soft_targets, out=buffer).sum(axis).mean()
        return (logsumexp() - x[data.index]).mean()

    def cross_entropy_with_grad() -> Any:
        if case.layout == "soft":
            loss = cross_entropy()
            np.subtract(softmax(), data.soft_targets, out=buffer)
            return loss, np.divide(buffer, len(x), out=buffer)
        top, total = exponentials()
        loss = ((np.log(total) + top).squeeze(axis) - x[data.index]).mean()
        np.divide(buffer, total, out=buffer)
        buffer[data.index] -= 1
        np.divide(buffer, len(data.targets), out=buffer)
        return loss, buffer

    def softmax_backward() -> Array:
        g, y = data.grad_output, data.probabilities
        total = np.multiply(g, y, out=buffer).sum(axis, keepdims=True)
        np.subtract(g, total, out=buffer)
        np.multiply(buffer, y, out=buffer)
        return buffer

    call: Call = locals()[case.function]
    return call


def scipy(case: Case, data: Data) -> Call:
    from scipy import special

    if not hasattr(special, case.function):
        raise UnsupportedError
    function = getattr(special, case.function)
    if case.layout == "masked":
        return lambda: function(masked(case, data), axis=case.axis)
    return partial(function, data.x, axis=case.axis)


def tensor(array: Array) -> Any:
    """A torch tensor of the same memory."""
    import torch

    if array.dtype.name == "bfloat16":
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)


def torch(case: Case, data: Data) -> Call:
    import torch

    aten, dim, x = torch.ops.aten, case.axis % len(case.shape), tensor(data.x)
    # In C order: its gradient of softmax is wrong in another.
    out = {"out": torch.empty(case.shape, dtype=x.dtype)} if data.reuse else {}
    if case.function == "softmax_backward":
        g, y = tensor(data.grad_output), tensor(data.probabilities)
        if out:
            backward = aten._softmax_backward_data.out
            return partial(backward, g, y, dim, x.dtype, grad_input=out["out"])
        return partial(torch._softmax_backward_data, g, y, dim, x.dtype)
    if case.layout == "masked":
        function, outside = getattr(torch, case.function), tensor(~data.mask)
        return lambda: function(x.masked_fill(outside, -torch.inf), dim)
    if case.function in ("softmax", "log_softmax"):
        return partial(getattr(torch, case.function), x, dim, **out)
    if case.function == "logsumexp":
        return partial(torch.logsumexp, x, dim)
    loss = torch.nn.functional.cross_entropy
    targets = torch.from_numpy(data.soft_targets if case.layout == "soft" else data.targets)
    if case.function == "cross_entropy":
        return partial(loss, x.movedim(dim, 1), targets)
    x.requires_grad_()

    def forward_and_backward() -> Any:
        value = loss(x.movedim(dim, 1), targets)
        return value.detach(), torch.autograd.grad(value, x)[0]

    return forward_and_backward


def jax(case: Case, data: Data) -> Call:
    import jax
    from jax import numpy as jnp

    if case.layout in ("F", "step 2"):
        raise UnsupportedError  # its arrays have no strides
    axis = case.axis
    if case.function == "softmax_backward":
        backward = jax.jit(lambda g, y: y * (g - (g * y).sum(axis, keepdims=True)))
        operands = jnp.asarray(data.grad_output), jnp.asarray(data.probabilities)
        return lambda: backward(*operands).block_until_ready()
    x = jnp.asarray(data.x)
    if "cross" not in case.function:
        function = partial(getattr(jax.nn, case.function), axis=axis)
        if case.layout == "masked":
            mask = jnp.asarray(data.mask)
            hidden = jax.jit(lambda x, mask: function(jnp.where(mask, x, -jnp.inf)))
            return lambda: hidden(x, mask).block_until_ready()
        forward = jax.jit(function)
        return lambda: forward(x).block_until_ready()
    targets = jnp.asarray(data.soft_targets if case.layout == "soft" else data.targets)

    def loss(x: Any, targets: Any) -> Any:
        if case.layout == "soft":
            return -(targets * jax.nn.log_softmax(x, axis)).sum(axis).mean()
        picked = jnp.take_along_axis(x, jnp.expand_dims(targets, axis), axis).squeeze(axis)
        return (jax.nn.logsumexp(x, axis) - picked).mean()

    wanted = jax.jit(loss if case.function == "cross_entropy" else jax.value_and_grad(loss))
    return lambda: jax.block_until_ready(wanted(x, targets))  # type: ignore[no-untyped-call]


# Function: operator, inputs, whether `axes` is a list.
_OPERATORS = {
    "softmax": ("Softmax", ("x",), "axis"),
    "log_softmax": ("LogSoftmax", ("x",), "axis"),
    "logsumexp": ("ReduceLogSumExp", ("x",), "axes"),
    "cross_entropy": ("SoftmaxCrossEntropyLoss", ("x", "targets"), ""),
}
_ELEMENT_TYPES = {"float32": 1, "int64": 7, "float16": 10, "float64": 11}


def onnxruntime(case: Case, data: Data) -> Call:
    import onnxruntime as ort

    import softlane

    if case.function not in _OPERATORS or case.dtype not in _ELEMENT_TYPES:
        raise UnsupportedError
    if case.layout in ("masked", "soft"):
        raise UnsupportedError  # of one operator
    if case.function == "cross_entropy" and case.axis == 0:
        raise UnsupportedError  # classes are on axis 1
    options = ort.SessionOptions()
    options.intra_op_num_threads = softlane.get_num_threads()
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    session = ort.InferenceSession(onnx_model(case), options, ["CPUExecutionProvider"])
    feed = {"x": data.x}
    if case.function == "cross_entropy":
        feed["targets"] = data.targets
    if not (data.reuse and case.layout == "C" and case.function in ("softmax", "log_softmax")):
        return lambda: session.run(None, feed)[0]
    out = np.empty(case.shape, data.x.dtype)
    binding = session.io_binding()
    binding.bind_cpu_input("x", data.x)
    binding.bind_output("out", "cpu", 0, out.dtype.type, out.shape, out.ctypes.data)

    def call() -> Array:
        session.run_with_iobinding(binding)
        return out

    return call


def onnx_model(case: Case) -> bytes:
    """A model of one operator, in the protobuf encoding: field number and wire type, then an integer or a length."""

    def integer(number: int, value: int) -> bytes:
        return varint(number << 3) + varint(value)

    def block(number: int, content: bytes | str) -> bytes:
        content = content.encode() if isinstance(content, str) else content
        return varint(number << 3 | 2) + varint(len(content)) + content

    def varint(value: int) -> bytes:
        head = b""
        while value > 127:
            head, value = head + bytes([value & 127 | 128]), value >> 7
        return head + bytes([value])

    def tensor(name: str, dtype: str, shape: tuple[int, ...]) -> bytes:
        dims = b"".join(block(1, integer(1, n)) for n in shape)
        return block(1, name) + block(
            2, block(1, integer(1, _ELEMENT_TYPES[dtype]) + block(2, dims))
        )

    operator, inputs, axis_name = _OPERATORS[case.function]
    axis = case.axis % len(case.shape)
    attributes = b""
    if axis_name == "axis":
        attributes = block(5, block(1, "axis") + integer(3, axis) + integer(20, 2))
    elif axis_name:
        attributes = block(5, block(1, "axes") + integer(8, axis) + integer(20, 7))
        attributes += block(5, block(1, "keepdims") + integer(3, 0) + integer(20, 2))
    node = b"".join(block(1, name) for name in inputs) + block(2, "out") + block(4, operator)
    rest = case.shape[:axis] + case.shape[axis + 1 :]
    reduced = {"logsumexp": rest, "cross_entropy": ()}.get(case.function, case.shape)
    graph = (
        block(1, node + attributes)
        + block(2, "one")
        + block(11, tensor("x", case.dtype, case.shape))
    )
    if "targets" in inputs:
        graph += block(11, tensor("targets", "int64", rest))
    graph += block(12, tensor("out", case.dtype, reduced))
    return integer(1, 8) + block(7, graph) + block(8, block(1, "") + integer(2, 17))


PEERS: dict[str, Callable[[Case, Data], Call]] = {
    peer.__name__: peer for peer in (numpy, scipy, torch, onnxruntime, jax)
}


def installed() -> list[str]:
    return [name for name in PEERS if importlib.util.find_spec(name)]


def limits(case: Case, data: Data) -> dict[str, Call]:
    """What no implementation can beat: a copy into an existing array, and reading (the fastest of these counts)."""
    if case.size < 64:
        return {"np.exp": partial(np.exp, data.x)}
    found: dict[str, Call] = {"copy": partial(np.copyto, np.empty_like(data.x), data.x)}
    if case.layout != "step 2":
        text = bytearray(b"\1") * data.x.nbytes
        found["read: memchr"] = partial(text.find, b"\2")
    if case.layout == "C" and case.dtype in ("float32", "float64"):
        flat = data.x.reshape(-1)
        found["read: max"] = partial(np.max, flat)
        found["read: dot"] = partial(np.dot, flat, flat)
    return found
