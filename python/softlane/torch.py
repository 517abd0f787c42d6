"""The softmax family for torch tensors: torch's names, order and defaults over softlane's kernels.

CPU tensors in, CPU tensors out. The kernels read and write the tensors' own memory. Importing
softlane does not import this module; importing this module imports torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from softlane import _arrays, _core

try:
    import torch
except ModuleNotFoundError as error:
    if error.name != "torch":
        raise
    raise ImportError("softlane.torch needs torch: pip install 'softlane[torch]'") from None

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["CrossEntropyLoss", "cross_entropy", "log_softmax", "logsumexp", "softmax"]

# What the kernels compute in; half types give float32 where a result is not rounded at once.
_WIDE = {
    torch.float16: torch.float32,
    torch.bfloat16: torch.float32,
    torch.float32: torch.float32,
    torch.float64: torch.float64,
}
_INTEGERS = {torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64} | {
    getattr(torch, name) for name in ("uint16", "uint32", "uint64") if hasattr(torch, name)
}

_forward_ad: Any = torch.autograd.forward_ad
# Through Any, so that type checkers say the same with and without torch installed.
_Function: Any = torch.autograd.Function
_TorchLoss: Any = torch.nn.CrossEntropyLoss


# ---- functions ----------------------------------------------------------------------------------


def softmax(input: Tensor, dim: int) -> Tensor:
    r"""Probabilities proportional to ``exp(input)`` along a dimension, as `torch.softmax`.

    Parameters
    ----------
    input : torch.Tensor
        Logits of any shape and strides: a dense CPU tensor of float16, bfloat16, float32 or
        float64.
    dim : int
        The dimension whose elements compete.

    Returns
    -------
    torch.Tensor
        Probabilities in the shape and dtype of `input`, to which gradients flow back.

    Raises
    ------
    TypeError
        For anything but a tensor, and for a layout or dtype that is not listed above.
    ValueError
        For a tensor on another device.
    numpy.exceptions.AxisError
        For a dimension that `input` does not have; it is an IndexError, which torch raises.

    See Also
    --------
    softlane.softmax : The same for arrays, with a mask and a temperature; it states the accuracy.

    Notes
    -----
    Gradients can be taken once: the second derivative raises RuntimeError.

    Examples
    --------
    >>> import torch
    >>> import softlane.torch
    >>> softlane.torch.softmax(torch.tensor([[1.0, 2.0, 3.0]]), dim=1)
    tensor([[0.0900, 0.2447, 0.6652]])
    """
    _check_floating(input, "input")
    dims = _dims(dim, input.ndim)
    if _is_differentiated(input):
        result: Tensor = _Softmax.apply(input, dims, False)
        return result
    return _softmax(input, dims, False, input.dtype)


def log_softmax(input: Tensor, dim: int) -> Tensor:
    r"""Logarithms of the probabilities that `softmax` gives, as `torch.log_softmax`.

    Parameters
    ----------
    input : torch.Tensor
        Logits, as `softmax` takes them.
    dim : int
        The dimension whose elements compete.

    Returns
    -------
    torch.Tensor
        Log-probabilities in nats, in the shape and dtype of `input`.

    Raises
    ------
    TypeError, ValueError, numpy.exceptions.AxisError
        As `softmax` does.

    See Also
    --------
    softlane.log_softmax : The same for arrays.

    Examples
    --------
    >>> import torch
    >>> import softlane.torch
    >>> softlane.torch.log_softmax(torch.tensor([30.0, 0.0]), dim=0)  # torch: 0, -30
    tensor([-9.3576e-14, -3.0000e+01])
    """
    _check_floating(input, "input")
    dims = _dims(dim, input.ndim)
    if _is_differentiated(input):
        result: Tensor = _Softmax.apply(input, dims, True)
        return result
    return _softmax(input, dims, True, input.dtype)


def logsumexp(input: Tensor, dim: int | tuple[int, ...], keepdim: bool = False) -> Tensor:
    r"""Logarithm of a sum of exponentials, as `torch.logsumexp`.

    Parameters
    ----------
    input : torch.Tensor
        Exponents, of the kind that `softmax` takes.
    dim : int or tuple of int
        The dimension or dimensions to sum over.
    keepdim : bool, default: False
        Whether they stay, with length 1.

    Returns
    -------
    torch.Tensor
        The logarithm, in the dtype of `input` (half types too, as in torch).

    Raises
    ------
    TypeError, ValueError, numpy.exceptions.AxisError
        As `softmax` does; ValueError also for a dimension that is given twice.

    See Also
    --------
    softlane.logsumexp : The same for arrays, with factors, signs and a mask.

    Examples
    --------
    >>> import torch
    >>> import softlane.torch
    >>> softlane.torch.logsumexp(torch.tensor([[100.0, 100.0], [0.0, 0.0]]), dim=1)
    tensor([100.6931,   0.6931])
    """
    _check_floating(input, "input")
    dims = _dims(dim, input.ndim)
    if _is_differentiated(input):
        result: Tensor = _LogSumExp.apply(input, dims, bool(keepdim))
        return result
    return _logsumexp(input, dims, bool(keepdim))


def cross_entropy(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
) -> Tensor:
    r"""Cross-entropy of logits against classes, as `torch.nn.functional.cross_entropy`.

    Where `input` requires a gradient, it is computed together with the loss, from one pass.

    Parameters
    ----------
    input : torch.Tensor
        Logits of the kind that `softmax` takes, of shape (C,), (N, C) or (N, C, d1, ...).
    target : torch.Tensor
        The class of each sample, 0 to C - 1, of any integer dtype and of shape (), (N,) or
        (N, d1, ...); or the probabilities of the classes, of a floating dtype and in the shape of
        `input`. They get no gradient.
    weight : torch.Tensor, optional
        A factor for each class, of shape (C,) and a floating dtype. It gets no gradient.
    ignore_index : int, default: -100
        Samples with this target have loss and gradient 0 and do not count in the mean.
    reduction : {"mean", "sum", "none"}, default: "mean"
        "mean" is the weighted one: the sum of the losses over the sum of ``weight[target]``.
    label_smoothing : float, default: 0.0
        The share, 0 to 1, of the target distribution that is spread over all classes.

    Returns
    -------
    torch.Tensor
        The loss in nats, of shape () or, with ``reduction="none"``, that of `target`. Its dtype
        is that of `input`; float32 for half types within `torch.autocast`, as in torch.

    Raises
    ------
    IndexError
        For a target that is not a class; the text names it and its position.
    TypeError
        For anything but tensors, a layout or dtype that is not listed above, and for a `weight`
        or `target` that requires a gradient.
    ValueError
        For an argument of another shape, out of its range, or on another device.

    See Also
    --------
    CrossEntropyLoss : The same as a module.
    softlane.cross_entropy_with_grad : Loss and gradient of arrays.

    Examples
    --------
    >>> import torch
    >>> import softlane.torch
    >>> input = torch.tensor([[2.0, 1.0, 0.1], [0.5, 2.5, 0.3]], requires_grad=True)
    >>> loss = softlane.torch.cross_entropy(input, torch.tensor([0, 2]))
    >>> print(round(loss.item(), 6))
    1.41854
    >>> loss.backward()
    >>> input.grad
    tensor([[-0.1705,  0.1212,  0.0493],
            [ 0.0543,  0.4012, -0.4555]])
    """
    _check_floating(input, "input")
    axis = _check_target(input, target)
    if weight is not None:
        _check_weight(weight, input.shape, axis)
    options = (
        axis,
        _arrays.as_int64(ignore_index, "ignore_index"),
        _arrays.as_reduction(reduction),
        _arrays.as_share(label_smoothing, "label_smoothing"),
    )
    dtype = input.dtype
    if dtype is not _WIDE[dtype] and torch.is_autocast_enabled("cpu"):
        dtype = torch.float32
    if _is_differentiated(input):
        result: Tensor = _CrossEntropy.apply(input, target, weight, options, dtype)
        return result
    return _cross_entropy(input, target, weight, options, dtype, None)[0]


class CrossEntropyLoss(_TorchLoss):  # type: ignore[misc]
    r"""`cross_entropy` as a module, in the place of `torch.nn.CrossEntropyLoss`.

    It is a subclass of that and takes the same arguments in the same order; its state and its
    text are the same too.

    Parameters
    ----------
    weight : torch.Tensor, optional
        A factor for each class, of shape (C,): a buffer of the module.
    size_average, reduce : bool, optional
        What torch had before `reduction`, deprecated there.
    ignore_index, reduction, label_smoothing
        As in `cross_entropy`.

    See Also
    --------
    cross_entropy : The function.

    Examples
    --------
    >>> import torch
    >>> from softlane.torch import CrossEntropyLoss
    >>> criterion = CrossEntropyLoss(label_smoothing=0.1)
    >>> input = torch.tensor([[2.0, 1.0, 0.1], [0.5, 2.5, 0.3]])
    >>> print(round(criterion(input, torch.tensor([0, 2])).item(), 4))
    1.4269
    """

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """Compute the loss of logits, as `cross_entropy` takes them, against target classes."""
        return cross_entropy(
            input,
            target,
            weight=self.weight,
            ignore_index=self.ignore_index,
            reduction=self.reduction,
            label_smoothing=self.label_smoothing,
        )


# ---- what is accepted ---------------------------------------------------------------------------


def _check_tensor(tensor: Any, name: str) -> None:
    if not isinstance(tensor, torch.Tensor):
        raise TypeError(f"{name} is of type {type(tensor).__name__}, expected torch.Tensor")
    if tensor.is_nested:
        raise TypeError(f"{name} is a nested tensor, expected a dense one")
    if tensor.layout is not torch.strided:
        raise TypeError(
            f"{name} has layout {tensor.layout}, expected torch.strided (a dense tensor)"
        )
    if tensor.device.type != "cpu":
        raise ValueError(f"{name} is on device {tensor.device}, expected cpu: pass {name}.cpu()")


def _check_floating(tensor: Any, name: str) -> None:
    _check_tensor(tensor, name)
    if tensor.dtype not in _WIDE:
        raise TypeError(
            f"{name} has dtype {tensor.dtype}, expected torch.float16, torch.bfloat16, "
            "torch.float32 or torch.float64"
        )


def _check_target(input: Any, target: Any) -> int:
    """The dimension of the classes."""
    _check_tensor(target, "target")
    shape = tuple(input.shape)
    if not shape:
        raise ValueError("input has shape (), expected (C,), (N, C) or (N, C, d1, ...)")
    axis = 1 if len(shape) > 1 else 0
    samples = _arrays.without_axes(shape, (axis,))
    if target.dtype in _WIDE and target.shape == input.shape:
        if target.requires_grad and torch.is_grad_enabled():
            raise TypeError("target is a tensor that requires grad: pass target.detach()")
        return axis
    if target.dtype not in _INTEGERS:
        raise TypeError(
            f"target has dtype {target.dtype} and shape {tuple(target.shape)}, expected an integer "
            f"type, or a floating one and the shape of input, {shape}"
        )
    if tuple(target.shape) != samples:
        raise ValueError(
            f"target has shape {tuple(target.shape)}, expected {samples}: "
            f"input {shape} without dimension {axis}"
        )
    return axis


def _check_weight(weight: Any, shape: Any, axis: int) -> None:
    _check_floating(weight, "weight")
    if tuple(weight.shape) != (shape[axis],):
        raise ValueError(
            f"weight has shape {tuple(weight.shape)}, expected ({shape[axis]},): "
            f"input {tuple(shape)} along dimension {axis}"
        )
    if weight.requires_grad and torch.is_grad_enabled():
        raise TypeError("weight is a tensor that requires grad: pass weight.detach()")


def _dims(dim: Any, ndim: int) -> tuple[int, ...]:
    """Ascending dimensions, not negative; empty for a tensor without any, where -1 and 0 pass."""
    if type(dim) is int and -ndim <= dim < ndim:
        return (dim % ndim,)
    given = dim if isinstance(dim, (tuple, list)) else (dim,)
    if not given:
        raise ValueError("dim is empty, expected at least one dimension")
    axes = []
    for item in given:
        axis = _arrays.as_integer(item, "dim")
        if not -max(ndim, 1) <= axis < max(ndim, 1):
            raise _arrays.AxisError(axis, ndim, "dim")
        axes.append(axis % max(ndim, 1))
    if len(set(axes)) < len(axes):
        raise ValueError(f"dim is {dim}, which names a dimension twice")
    return tuple(sorted(axes)) if ndim else ()


def _is_differentiated(tensor: Any) -> bool:
    """Whether autograd has to see the call: also in forward mode, which it then refuses."""
    if tensor.requires_grad and torch.is_grad_enabled():
        return True
    level: int = _forward_ad._current_level
    return level >= 0


# ---- tensors as the kernels take them -----------------------------------------------------------


def _view(tensor: Any) -> Any:
    """The memory of a tensor as an ndarray; of bfloat16, which NumPy lacks, as uint16."""
    if tensor.requires_grad:
        tensor = tensor.detach()
    if tensor.is_neg():  # a view that negates when it is read: rare, and the only copy
        tensor = tensor.resolve_neg()
    if tensor.dtype is torch.bfloat16:
        return tensor.view(torch.int16).numpy().view(np.uint16)
    return tensor.numpy()


def _bits(*tensors: Any) -> int:
    """Bit i says that operand i is bfloat16."""
    found = 0
    for i, tensor in enumerate(tensors):
        if tensor is not None and tensor.dtype is torch.bfloat16:
            found |= 1 << i
    return found


def _softmax(input: Tensor, dims: tuple[int, ...], log: bool, dtype: torch.dtype) -> Tensor:
    output = torch.empty(input.shape, dtype=dtype, device="cpu")  # in C order, as torch's is
    _core.softmax(_view(input), _view(output), dims, None, 1.0, log, _bits(input, output))
    return output


def _logsumexp(input: Tensor, dims: tuple[int, ...], keepdim: bool) -> Tensor:
    shape = _arrays.without_axes(tuple(input.shape), dims)
    output = torch.empty(shape, dtype=input.dtype, device="cpu")
    _core.logsumexp(_view(input), _view(output), None, dims, None, None, _bits(input, None, output))
    if keepdim:
        return output.reshape(_arrays.without_axes(tuple(input.shape), dims, keepdims=True))
    return output


def _cross_entropy(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    options: tuple[int, int, int, float],
    dtype: torch.dtype,
    gradient_dtype: torch.dtype | None,
) -> tuple[Tensor, Tensor | None]:
    """The loss in `dtype`, and the gradient with respect to input in its own, if one is named."""
    axis, ignore_index, reduction, label_smoothing = options
    samples = _arrays.without_axes(tuple(input.shape), (axis,))
    loss = torch.empty(() if reduction else samples, dtype=dtype, device="cpu")
    gradient = None
    if gradient_dtype is not None:
        gradient = torch.empty_like(input, dtype=gradient_dtype, requires_grad=False)
    _core.cross_entropy(
        _view(input),
        _view(target),
        axis,
        None if weight is None else _view(weight),
        None,
        ignore_index,
        label_smoothing,
        1.0,
        None,
        reduction,
        _view(loss),
        None if gradient is None else _view(gradient),
        _bits(input, gradient, weight, None, loss, target),
        0.0,
        0.0,
        None,
    )
    return loss, gradient


# ---- autograd -----------------------------------------------------------------------------------


class _Softmax(_Function):  # type: ignore[misc]
    @staticmethod
    def forward(ctx: Any, input: Tensor, dims: tuple[int, ...], log: bool) -> Tensor:
        output = _softmax(input, dims, log, input.dtype)
        ctx.save_for_backward(output)
        ctx.dims, ctx.log = dims, log
        return output

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor, None, None]:
        (output,) = ctx.saved_tensors
        gradient = torch.empty_like(output, requires_grad=False)
        _core.softmax_backward(
            _view(grad_output),
            _view(output),
            _view(gradient),
            ctx.dims,
            1.0,
            ctx.log,
            _bits(grad_output, output, gradient),
        )
        return _differentiable_once(gradient, grad_output, output), None, None


class _LogSumExp(_Function):  # type: ignore[misc]
    @staticmethod
    def forward(ctx: Any, input: Tensor, dims: tuple[int, ...], keepdim: bool) -> Tensor:
        ctx.save_for_backward(input)
        ctx.dims, ctx.keepdim = dims, keepdim
        return _logsumexp(input, dims, keepdim)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor, None, None]:
        (input,) = ctx.saved_tensors
        gradient = _softmax(input, ctx.dims, False, _WIDE[input.dtype])
        factor = grad_output.detach()
        if not ctx.keepdim:
            for dim in ctx.dims:
                factor = factor.unsqueeze(dim)
        gradient = gradient.mul_(factor).to(input.dtype)
        return _differentiable_once(gradient, grad_output, input), None, None


class _CrossEntropy(_Function):  # type: ignore[misc]
    """The gradient of the loss is computed in forward and handed over by the first backward.

    It is scaled in place there. Should another backward come (``retain_graph=True``), it is
    computed again; likewise where a gradient that is rounded to a half type has to be scaled.
    """

    @staticmethod
    def forward(
        ctx: Any,
        input: Tensor,
        target: Tensor,
        weight: Tensor | None,
        options: tuple[int, int, int, float],
        dtype: torch.dtype,
    ) -> Tensor:
        is_reduced = options[2] != 0
        gradient_dtype = input.dtype if is_reduced else _WIDE[input.dtype]
        loss, ctx.gradient = _cross_entropy(input, target, weight, options, dtype, gradient_dtype)
        ctx.save_for_backward(input, target, weight)
        ctx.options, ctx.dtype, ctx.input_dtype = options, dtype, input.dtype
        return loss

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor, None, None, None, None]:
        gradient: Any
        gradient, ctx.gradient = ctx.gradient, None
        axis, ignore_index, reduction, _ = ctx.options
        factor = grad_output.detach()
        wide = _WIDE[ctx.input_dtype]
        is_scaled = reduction == 0 or factor.item() != 1.0
        if gradient is None or (is_scaled and gradient.dtype is not wide):
            input, target, weight = ctx.saved_tensors
            gradient = _cross_entropy(input, target, weight, ctx.options, ctx.dtype, wide)[1]
        if reduction == 0:
            gradient.mul_(factor.unsqueeze(axis))
            classes = ctx.saved_tensors[1]
            if (
                classes.dtype in _INTEGERS and not torch.isfinite(factor).all()
            ):  # 0 * inf: what is ignored stays 0
                gradient.masked_fill_((classes == ignore_index).unsqueeze(axis), 0.0)
        elif is_scaled:
            gradient.mul_(factor)
        gradient = gradient.to(ctx.input_dtype)
        if torch.is_grad_enabled():
            gradient = _differentiable_once(gradient, grad_output, ctx.saved_tensors[0])
        return gradient, None, None, None, None


class _DifferentiableOnce(_Function):  # type: ignore[misc]
    @staticmethod
    def forward(ctx: Any, gradient: Tensor, *depends_on: Tensor) -> Tensor:
        return gradient.clone()

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Any:
        raise RuntimeError(
            "trying to differentiate twice a function of softlane.torch, "
            "which can be differentiated once"
        )


def _differentiable_once(gradient: Tensor, *depends_on: Tensor) -> Tensor:
    """The gradient so that its derivative raises.

    torch's own `once_differentiable` leaves a constant where `grad_output` requires no gradient,
    as in ``torch.autograd.grad(loss, input, create_graph=True)``: a penalty on it would be lost.
    """
    if not torch.is_grad_enabled():
        return gradient
    result: Tensor = _DifferentiableOnce.apply(gradient, *depends_on)
    return result
