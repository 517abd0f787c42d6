"""softlane.torch: torch's values and gradients, dtypes and shapes, errors, memory, training. Needs torch."""

from __future__ import annotations

import doctest
import importlib
import inspect
import pickle
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import softlane
from softlane import _core
from support import BFLOAT16, output_of, rng_for, run_python

torch: Any = pytest.importorskip(
    "torch", reason="softlane.torch needs torch, which is not installed"
)
adapter: Any = importlib.import_module("softlane.torch")
F: Any = torch.nn.functional

FLOATS = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
HALVES = FLOATS[:2]
INTEGERS = [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64]
NAMES = ["softmax", "log_softmax", "logsumexp"]
REDUCTIONS = ["none", "mean", "sum"]
ROUNDS = 150  # random calls a test and instruction set

# Against torch in float64: what float64 itself loses there, and 2 ulp of the narrower types.
RELATIVE = {
    torch.float64: 1e-11,
    torch.float32: 3e-7,
    torch.float16: 1.1e-3,
    torch.bfloat16: 8.5e-3,
}
ABSOLUTE = {
    torch.float64: 1e-12,
    torch.float32: 1e-37,
    torch.float16: 6.1e-8,
    torch.bfloat16: 1e-37,
}


def name_of(dtype: Any) -> str:
    return str(dtype).removeprefix("torch.")


def close(got: Any, exact: Any, dtype: Any, scale: Any = 0.0) -> None:
    """`got` in the dtype against float64; `scale` is the size of what cancels in the exact result."""
    assert got.dtype is dtype
    assert got.shape == exact.shape
    with torch.no_grad():
        rounded = exact.to(dtype).double()
        bound = RELATIVE[dtype] * torch.maximum(exact.abs(), torch.as_tensor(scale).double())
        bound = bound + ABSOLUTE[dtype]
        near = ((got.double() - rounded).abs() <= bound) | (got.double() == rounded)
        assert bool((near | (got.isnan() & exact.isnan())).all()), (got, exact)


def laid_out(rng: np.random.Generator, shape: tuple[int, ...], dtype: Any, scale: float) -> Any:
    """A leaf tensor and a function that makes of it the input: in order, permuted, sliced, expanded."""
    values = torch.from_numpy(rng.normal(scale=scale, size=shape)).to(dtype)
    kind = rng.integers(4)
    if kind == 1:
        order = tuple(int(i) for i in rng.permutation(len(shape)))
        back = tuple(int(i) for i in np.argsort(order))
        return values.permute(order).contiguous(), lambda t: t.permute(back)
    if kind == 2:
        wide = torch.zeros((*shape[:-1], 2 * shape[-1]), dtype=dtype)
        wide[..., ::2] = values
        return wide, lambda t: t[..., ::2]
    if kind == 3:
        first = values[:1].clone()
        return first, lambda t: t.expand(shape)
    return values, lambda t: t


def random_shape(rng: np.random.Generator, low: int = 1) -> tuple[int, ...]:
    shape = [int(n) for n in rng.integers(1, 6, size=rng.integers(low, 5))]
    shape[rng.integers(len(shape))] = int(rng.choice([1, 2, 3, 8, 17, 40]))
    return tuple(shape)


def random_dim(rng: np.random.Generator, name: str, ndim: int) -> Any:
    if name == "logsumexp" and rng.random() < 0.4:
        chosen = rng.permutation(ndim)[: rng.integers(1, ndim + 1)]
        return tuple(int(d) - ndim * int(rng.integers(2)) for d in chosen)
    return int(rng.integers(-ndim, ndim))


# ---- values and gradients -----------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_values_and_gradients_are_torchs(isa: str, name: str) -> None:
    rng = rng_for("torch", name)
    for _ in range(ROUNDS):
        dtype = FLOATS[rng.integers(4)]
        shape = random_shape(rng)
        leaf, view = laid_out(rng, shape, dtype, float(rng.choice([0.1, 1, 5])))
        wide = leaf.detach().clone().double().requires_grad_()
        leaf.requires_grad_()
        arguments = [random_dim(rng, name, len(shape))]
        if name == "logsumexp":
            arguments.append(bool(rng.integers(2)))
        got = getattr(adapter, name)(view(leaf), *arguments)
        exact = getattr(torch, name)(view(wide), *arguments)
        close(got, exact, dtype, scale=view(wide).abs().max() if name == "logsumexp" else 0.0)

        g = torch.from_numpy(rng.normal(size=tuple(got.shape))).to(dtype)
        got.backward(g)
        exact.backward(g.double())
        # torch's autograd adds up the gradients of repeated elements, in the leaf's dtype
        repeats = got.numel() if view(leaf).numel() > leaf.numel() else 1
        terms = view(leaf).numel() * float(g.abs().max()) * repeats
        close(leaf.grad, wide.grad, dtype, scale=4 * terms)


def random_loss(rng: np.random.Generator, dtype: Any) -> tuple[Any, Callable[[Any], Any], Any, Any]:
    """A leaf, how the input is made of it, the target and the options."""
    shape = random_shape(rng)
    axis = min(1, len(shape) - 1)
    classes = shape[axis]
    leaf, view = laid_out(rng, shape, dtype, float(rng.choice([0.1, 1, 5])))
    samples = shape[:axis] + shape[axis + 1 :]
    target = torch.from_numpy(np.asarray(rng.integers(0, classes, size=samples)))
    ignored = int(rng.choice([-100, -1, 0, 300]))
    if rng.random() < 0.5:
        target = torch.where(
            torch.from_numpy(np.asarray(rng.random(samples) < 0.3)), ignored, target
        )
    if rng.random() < 0.3 and len(samples) > 1:
        target = target.mT.contiguous().mT
    weight = None
    if rng.random() < 0.5:
        weight = torch.from_numpy(rng.uniform(0.1, 2, classes)).to(dtype)
    options = {
        "weight": weight,
        "ignore_index": ignored,
        "reduction": REDUCTIONS[rng.integers(3)],
        "label_smoothing": float(rng.choice([0.0, 0.0, 0.1, 1.0])),
    }
    return leaf, view, target, options


@pytest.mark.parametrize("dtype", FLOATS, ids=name_of)
def test_losses_and_gradients_are_torchs(isa: str, dtype: Any) -> None:
    rng = rng_for("torch", "cross_entropy", name_of(dtype))
    for _ in range(ROUNDS):
        leaf, view, target, options = random_loss(rng, dtype)
        wide = leaf.detach().clone().double().requires_grad_()
        leaf.requires_grad_()
        weight = options["weight"]
        wide_options = options | {"weight": None if weight is None else weight.double()}
        exact = F.cross_entropy(view(wide), target, **wide_options)
        got = adapter.cross_entropy(view(leaf), target, **options)
        close(got, exact, dtype)
        close(adapter.cross_entropy(view(leaf).detach(), target, **options), exact, dtype)

        g = torch.from_numpy(rng.normal(size=tuple(got.shape))).to(dtype)
        got.backward(g, retain_graph=True)
        exact.backward(g.double())
        expected = wide.grad if exact.isfinite().all() else torch.nan_to_num(wide.grad)
        gradient = leaf.grad if exact.isfinite().all() else torch.nan_to_num(leaf.grad)
        scale = float(g.abs().max()) * (1 if view(leaf).numel() == leaf.numel() else leaf.numel())
        share = len(target.reshape(-1)) if options["reduction"] == "mean" else 1
        smallest = 0.1 if options["weight"] is not None else 1.0
        close(gradient, expected, dtype, scale=4 * scale / (smallest if share > 1 else 0.05))

        # Once more through the same graph: the gradient that was handed over is computed again.
        first = leaf.grad.clone()
        leaf.grad = None
        got.backward(g)
        assert torch.equal(leaf.grad.nan_to_num(), first.nan_to_num())


@pytest.mark.parametrize("dtype", INTEGERS, ids=name_of)
def test_targets_of_every_integer_dtype(dtype: Any) -> None:
    x = torch.randn(4, 5)
    target = torch.tensor([0, 4, 2, 1])
    got = adapter.cross_entropy(x, target.to(dtype))
    assert torch.equal(got, adapter.cross_entropy(x, target))


@pytest.mark.parametrize("shape", [(7,), (5, 7), (3, 7, 4)])
@pytest.mark.parametrize("dtype", FLOATS, ids=name_of)
def test_targets_that_are_probabilities(dtype: Any, shape: tuple[int, ...]) -> None:
    torch.manual_seed(1)
    x = (torch.randn(shape) * 3).to(dtype)
    target = torch.randn(shape).softmax(min(1, len(shape) - 1)).to(dtype)
    rtol = {torch.float64: 1e-12, torch.float32: 1e-5, torch.float16: 5e-3, torch.bfloat16: 4e-2}
    for weight in (None, torch.rand(7).to(dtype)):
        for reduction in ("mean", "sum", "none"):
            for smoothing in (0.0, 0.2):
                found = []
                for module in (adapter, torch.nn.functional):
                    z = x.clone().requires_grad_()
                    loss = module.cross_entropy(
                        z, target, weight, reduction=reduction, label_smoothing=smoothing
                    )
                    loss.backward(torch.full_like(loss, 3.0))
                    found.append((loss.detach(), z.grad))
                for ours, theirs in zip(*found, strict=True):
                    torch.testing.assert_close(ours, theirs, rtol=rtol[dtype], atol=rtol[dtype])


def test_confident_rows_keep_their_digits() -> None:
    x = torch.tensor([[30.0, 0.0]], requires_grad=True)
    assert adapter.log_softmax(x, 1)[0, 0].item() == pytest.approx(-9.357623e-14, rel=1e-6)
    loss = adapter.cross_entropy(x, torch.tensor([0]))
    assert loss.item() == pytest.approx(9.357623e-14, rel=1e-6)
    loss.backward()
    assert float(x.grad[0, 0]) == pytest.approx(-9.357623e-14, rel=1e-6)


def test_same_bits_as_for_arrays() -> None:
    x = torch.randn(7, 33)
    y = torch.randint(0, 33, (7,))
    a = x.numpy()
    assert np.array_equal(adapter.softmax(x, 1).numpy(), softlane.softmax(a))
    assert np.array_equal(adapter.log_softmax(x, 0).numpy(), softlane.log_softmax(a, 0))
    assert np.array_equal(adapter.logsumexp(x, -1).numpy(), softlane.logsumexp(a))
    loss, gradient = softlane.cross_entropy_with_grad(a, y.numpy())
    x.requires_grad_()
    got = adapter.cross_entropy(x, y)
    got.backward()
    assert got.item() == loss
    assert np.array_equal(x.grad.numpy(), gradient)


# ---- autograd -----------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore::UserWarning")  # of gradcheck
def test_gradcheck(isa: str) -> None:
    rng = rng_for("gradcheck")
    check: Any = torch.autograd.gradcheck
    for shape in [(3,), (4, 5), (2, 3, 4), (2, 5, 3, 2)]:
        x = torch.from_numpy(rng.normal(size=shape)).requires_grad_()
        for dim in range(-1, len(shape)):
            assert check(lambda t, d=dim: adapter.softmax(t, d), x)
            assert check(lambda t, d=dim: adapter.log_softmax(t, d), x)
            assert check(lambda t, d=dim: adapter.logsumexp(t, d), x)
            assert check(lambda t, d=dim: adapter.logsumexp(t, d, keepdim=True), x)
        everything = tuple(range(len(shape)))
        assert check(lambda t, d=everything: adapter.logsumexp(t, d), x)
        axis = min(1, len(shape) - 1)
        samples = shape[:axis] + shape[axis + 1 :]
        target = torch.from_numpy(rng.integers(0, shape[axis], size=samples))
        for weight in (None, torch.linspace(0.5, 1.5, shape[axis], dtype=torch.float64)):
            for reduction in REDUCTIONS:
                for smoothing in (0.0, 0.2):
                    assert check(
                        lambda t, y=target, w=weight, r=reduction, s=smoothing: (
                            adapter.cross_entropy(t, y, w, -100, r, s)
                        ),
                        x,
                    )


CALLS: list[tuple[str, Callable[[Any], Any]]] = [
    ("softmax", lambda x: adapter.softmax(x, 1)[:, 0].sum()),
    ("log_softmax", lambda x: adapter.log_softmax(x, 1)[:, 0].sum()),
    ("logsumexp", lambda x: adapter.logsumexp(x, 1).sum()),
    ("cross_entropy", lambda x: adapter.cross_entropy(x, torch.tensor([1, 0, 2]))),
]


@pytest.mark.parametrize(("name", "call"), CALLS, ids=[name for name, _ in CALLS])
def test_second_derivatives_raise(name: str, call: Callable[[Any], Any]) -> None:
    x = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(call(x), x)
    assert not gradient.requires_grad
    (again,) = torch.autograd.grad(call(x), x, create_graph=True)
    assert torch.equal(again, gradient)
    with pytest.raises(RuntimeError, match="differentiate twice"):
        again.square().sum().backward()
    loss = call(x)
    loss.backward()
    with pytest.raises(RuntimeError, match="second time"):
        loss.backward()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch's own imports
@pytest.mark.parametrize(("name", "call"), CALLS, ids=[name for name, _ in CALLS])
def test_forward_mode_and_transforms_raise(name: str, call: Callable[[Any], Any]) -> None:
    x = torch.randn(3, 4)
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(x, torch.ones_like(x))
        with pytest.raises(NotImplementedError, match="jvp"):
            call(dual)
    with pytest.raises(RuntimeError, match="setup_context"):
        torch.func.grad(call)(x)


def test_no_grad_and_detached_input() -> None:
    x = torch.randn(3, 4, requires_grad=True)
    target = torch.tensor([1, 0, 2])
    weight = torch.ones(4, requires_grad=True)
    with torch.no_grad():
        assert not adapter.softmax(x, 1).requires_grad
        assert not adapter.logsumexp(x, 1).requires_grad
        assert not adapter.cross_entropy(x, target, weight).requires_grad
    assert not adapter.log_softmax(x.detach(), 1).requires_grad
    with torch.inference_mode():
        assert adapter.cross_entropy(x, target).is_inference()
    assert adapter.softmax(torch.nn.Parameter(x.detach()), 1).requires_grad


def test_gradients_add_up_and_flow_through() -> None:
    x = torch.randn(6, 4, dtype=torch.float64, requires_grad=True)
    target = torch.tensor([1, 0, 2, 3, 3, 0])
    results = []
    for module in (torch, adapter):
        cross_entropy = module.cross_entropy if module is adapter else F.cross_entropy
        x.grad = None
        for _ in range(2):  # the second is added to the first
            z = 3 * x - 1
            loss = cross_entropy(z, target) + module.softmax(z, 1)[:, 1].sum()
            (loss + module.logsumexp(z, 1).mean()).backward()
        results.append(x.grad.clone())
    torch.testing.assert_close(results[1], results[0], rtol=1e-11, atol=1e-13)


def test_input_changed_in_place_after_the_loss() -> None:
    x = torch.randn(3, 4, requires_grad=True)
    z = x * 1.0
    target = torch.tensor([1, 0, 2])
    loss = adapter.cross_entropy(z, target)
    expected = torch.autograd.grad(F.cross_entropy(x, target), x)[0]
    z.detach().zero_()
    loss.backward()
    torch.testing.assert_close(x.grad, expected)
    y = adapter.softmax(x, 1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.mul_(2).sum().backward()


def test_ignored_samples_have_gradient_zero() -> None:
    x = torch.tensor([[1.0, 2.0], [float("inf"), float("nan")]], requires_grad=True)
    target = torch.tensor([0, -100])
    for reduction in REDUCTIONS:
        x.grad = None
        loss = adapter.cross_entropy(x, target, reduction=reduction)
        loss.backward(torch.ones_like(loss))
        assert torch.equal(x.grad[1], torch.zeros(2)) and bool(x.grad[0].isfinite().all())
    x.grad = None
    adapter.cross_entropy(x, target, reduction="none").backward(torch.tensor([1.0, float("inf")]))
    assert torch.equal(x.grad[1], torch.zeros(2))


def test_the_gradient_of_float16_is_scaled_before_it_is_rounded() -> None:
    x = torch.zeros(4096, 64, dtype=torch.float16, requires_grad=True)
    target = torch.zeros(4096, dtype=torch.int64)
    (adapter.cross_entropy(x, target) * 32768.0).backward()
    assert float(x.grad[0, 1]) == pytest.approx(32768 / 4096 / 64, rel=1e-3)


# ---- dtypes, special values and shapes ----------------------------------------------------------


@pytest.mark.parametrize("dtype", FLOATS, ids=name_of)
def test_dtypes_of_results(dtype: Any) -> None:
    x = torch.randn(3, 4).to(dtype).requires_grad_()
    target = torch.tensor([0, 1, 2])
    assert adapter.softmax(x, 1).dtype is dtype
    assert adapter.log_softmax(x, 1).dtype is dtype
    assert adapter.logsumexp(x, 1).dtype is dtype is torch.logsumexp(x, 1).dtype
    for reduction in REDUCTIONS:
        x.grad = None
        loss = adapter.cross_entropy(x, target, reduction=reduction)
        assert loss.dtype is dtype is F.cross_entropy(x, target, reduction=reduction).dtype
        loss.sum().backward()
        assert x.grad.dtype is dtype


@pytest.mark.parametrize("dtype", HALVES, ids=name_of)
def test_half_types_are_the_rounded_result(dtype: Any) -> None:
    rng = rng_for("torch", "halves")
    x = torch.from_numpy(rng.normal(scale=4, size=(50, 70))).to(dtype)
    for name in ("softmax", "log_softmax"):
        got = getattr(adapter, name)(x, 1).double()
        exact = getattr(torch, name)(x.double(), 1)
        spacing = 2.0 ** (exact.abs().log2().floor() - (10 if dtype is torch.float16 else 7))
        spacing = spacing.clamp_min(2.0**-24 if dtype is torch.float16 else 2.0**-133)
        assert float(((got - exact).abs() / spacing).max()) <= 0.51


@pytest.mark.parametrize("dtype", HALVES, ids=name_of)
def test_autocast_gives_float32_losses(dtype: Any) -> None:
    x = torch.randn(3, 4).to(dtype).requires_grad_()
    target = torch.tensor([0, 1, 2])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = adapter.cross_entropy(x, target)
        assert loss.dtype is F.cross_entropy(x, target).dtype is torch.float32
    loss.backward()
    assert x.grad.dtype is dtype
    assert loss.item() == pytest.approx(F.cross_entropy(x.float(), target).item(), rel=1e-6)


@pytest.mark.skipif(BFLOAT16 is None, reason="ml_dtypes is not installed")
def test_bfloat16_is_that_of_ml_dtypes() -> None:
    x = torch.randn(5, 17).bfloat16()
    a = x.view(torch.int16).numpy().view(BFLOAT16)
    got = adapter.softmax(x, 1).view(torch.int16).numpy().view(BFLOAT16)
    assert np.array_equal(got, softlane.softmax(a))


def test_bfloat16_does_not_need_ml_dtypes() -> None:
    code = """
import sys
sys.modules["ml_dtypes"] = None
import torch, softlane.torch
x = torch.tensor([[1.0, 2.0, 3.0]], dtype=torch.bfloat16, requires_grad=True)
softlane.torch.cross_entropy(x, torch.tensor([2])).backward()
softlane.torch.softmax(x, 1).sum().backward()
print(softlane.torch.logsumexp(x, 1).item(), x.grad.dtype)
"""
    assert output_of(code).split() == ["3.40625", "torch.bfloat16"]


def test_special_values_are_torchs() -> None:
    inf, nan = float("inf"), float("nan")
    for row in ([-inf] * 3, [inf, 1.0, 2.0], [inf, inf, 0.0], [nan, 1.0, 2.0], [-inf, 1.0, 2.0]):
        grads = []
        x = torch.tensor([row])
        for name in NAMES:
            ours, theirs = getattr(adapter, name)(x, 1), getattr(torch, name)(x, 1)
            torch.testing.assert_close(ours, theirs, equal_nan=True, rtol=1e-6, atol=0)
        for module in (adapter, torch):
            z = torch.tensor([row], requires_grad=True)
            module.logsumexp(z, 1).sum().backward()
            grads.append(z.grad)
        assert torch.equal(grads[0][0].isfinite(), grads[1][0].isfinite()) or inf in row


def test_shapes_are_torchs() -> None:
    for shape, dim in [((), 0), ((), -1), ((0, 3), 1), ((0, 3), 0), ((3, 0), 1), ((2, 0, 3), 2)]:
        x = torch.zeros(shape)
        for name in NAMES:
            ours, theirs = getattr(adapter, name)(x, dim), getattr(torch, name)(x, dim)
            assert ours.shape == theirs.shape
            assert torch.equal(ours, theirs) or bool(ours.isnan().all())
    x = torch.randn(2, 3, 4)
    for dims in [0, -1, (0, 2), (2, 0), [1], (0, 1, 2), (-1, 1)]:
        for keepdim in (False, True):
            ours, theirs = adapter.logsumexp(x, dims, keepdim), torch.logsumexp(x, dims, keepdim)
            assert ours.shape == theirs.shape
    empty = torch.zeros(0, 3, requires_grad=True)
    target = torch.zeros(0, dtype=torch.int64)
    for reduction in REDUCTIONS:
        ours = adapter.cross_entropy(empty, target, reduction=reduction)
        theirs = F.cross_entropy(empty, target, reduction=reduction)
        torch.testing.assert_close(ours, theirs, equal_nan=True)
        ours.sum().backward()
    everything_ignored = torch.full((2,), -100)
    assert bool(adapter.cross_entropy(torch.randn(2, 3), everything_ignored).isnan())


def test_results_are_contiguous() -> None:
    x = torch.randn(4, 5).T
    assert adapter.softmax(x, 1).stride() == torch.softmax(x, 1).stride() == (4, 1)


def test_negated_views() -> None:
    z = torch.view_as_complex(torch.randn(3, 4, 2)).conj().imag
    assert z.is_neg()
    assert torch.equal(adapter.softmax(z, 1), adapter.softmax(z.resolve_neg(), 1))


# ---- torch's own examples -----------------------------------------------------------------------


def softmax_naive(x: Any) -> Any:
    return torch.exp(x) / torch.exp(x).sum(dim=0)


def test_textbook_digits() -> None:
    scores = torch.tensor([0.9544, 1.4950, 1.4754, 0.8434, 0.7070, 1.0865])
    text = "tensor([0.1385, 0.2379, 0.2333, 0.1240, 0.1082, 0.1581])"
    assert repr(adapter.softmax(scores, dim=0)) == text == repr(torch.softmax(scores, dim=0))
    assert repr(softmax_naive(scores)) == text

    generator = torch.Generator().manual_seed(123)
    x = torch.randn(3, 5, generator=generator, requires_grad=True)
    y = torch.tensor([1, 0, 4])
    printed = []
    for loss in (torch.nn.CrossEntropyLoss(), adapter.CrossEntropyLoss()):
        x.grad = None
        value = loss(x, y)
        value.backward()
        printed.append((f"{value.item():.4f}", repr(x.grad)))
    assert printed[0] == printed[1]
    for name in NAMES:
        ours, theirs = getattr(adapter, name)(x, dim=1), getattr(torch, name)(x, dim=1)
        assert repr(ours.detach()) == repr(theirs.detach())

    logits = torch.tensor([[2.0, 1.0, 0.1], [0.5, 2.5, 0.3]])
    by_hand = -torch.log_softmax(logits, 1)[[0, 1], [0, 2]].mean()
    got = adapter.cross_entropy(logits, torch.tensor([0, 2]))
    assert repr(got) == repr(by_hand) == "tensor(1.4185)"


def test_naive_softmax_overflows_where_this_does_not() -> None:
    x = torch.tensor([1000.0, 1001.0, 1002.0])
    assert bool(softmax_naive(x).isnan().all())
    assert repr(adapter.softmax(x, dim=0)) == "tensor([0.0900, 0.2447, 0.6652])"
    assert bool(softmax_naive(torch.full((3,), -1000.0)).isnan().all())
    assert repr(adapter.softmax(torch.full((3,), -1000.0), 0)) == "tensor([0.3333, 0.3333, 0.3333])"


# ---- errors -------------------------------------------------------------------------------------


X = torch.zeros(2, 3)
Y = torch.tensor([0, 1])
BAD_INPUTS: list[tuple[str, Callable[[], Any], type[Exception], str]] = [
    ("array", lambda: np.zeros((2, 3)), TypeError, "input is of type ndarray"),
    ("list", lambda: [[1.0, 2.0]], TypeError, "input is of type list"),
    ("meta", lambda: X.to("meta"), ValueError, r"input is on device meta, expected cpu"),
    ("sparse", lambda: X.to_sparse(), TypeError, "input has layout torch.sparse_coo"),
    ("nested", lambda: torch.nested.nested_tensor([X[0], X[0, :2]]), TypeError, "nested"),
    (
        "jagged",
        lambda: torch.nested.nested_tensor([X[0], X[0, :2]], layout=torch.jagged),
        TypeError,
        "nested",
    ),
    ("complex", lambda: X.to(torch.complex64), TypeError, "input has dtype torch.complex64"),
    ("integers", lambda: X.to(torch.int64), TypeError, "input has dtype torch.int64, expected"),
    ("bool", lambda: X.to(torch.bool), TypeError, "input has dtype torch.bool, expected"),
]


@pytest.mark.filterwarnings("ignore::UserWarning")  # nested tensors are a prototype, torch says
@pytest.mark.parametrize(
    ("make", "error", "text"), [b[1:] for b in BAD_INPUTS], ids=[b[0] for b in BAD_INPUTS]
)
def test_bad_inputs(make: Callable[[], Any], error: type[Exception], text: str) -> None:
    bad = make()
    for name in NAMES:
        with pytest.raises(error, match=text):
            getattr(adapter, name)(bad, 1)
    with pytest.raises(error, match=text):
        adapter.cross_entropy(bad, Y)


@pytest.mark.parametrize("name", NAMES)
def test_bad_dimensions(name: str) -> None:
    function = getattr(adapter, name)
    for dim in (2, -3):
        with pytest.raises(IndexError, match=f"dim: axis {dim} is out of bounds"):
            function(X, dim)
    with pytest.raises(IndexError):
        function(torch.tensor(1.0), 1)
    for bad in (None, 1.0, "1", True):
        with pytest.raises(TypeError, match="dim is of type"):
            function(X, bad)
    if name == "logsumexp":
        with pytest.raises(ValueError, match="twice"):
            function(X, (1, -1))
        with pytest.raises(ValueError, match="dim is empty"):
            function(X, ())


@pytest.mark.parametrize("requires_grad", [False, True])
def test_bad_arguments_of_the_loss(requires_grad: bool) -> None:
    x = X.clone().requires_grad_(requires_grad)
    w = torch.ones(3)
    cases: list[tuple[tuple[Any, ...], dict[str, Any], type[Exception], str]] = [
        ((x, [0, 1]), {}, TypeError, "target is of type list, expected torch.Tensor"),
        ((x, Y.float()), {}, TypeError, "target has dtype torch.float32 and shape"),
        ((x, Y > 0), {}, TypeError, "target has dtype torch.bool"),
        ((x, X.clone().requires_grad_()), {}, TypeError, "target is a tensor that requires grad"),
        ((x, Y.to("meta")), {}, ValueError, "target is on device meta"),
        ((x, Y.to_sparse()), {}, TypeError, "target has layout"),
        (
            (x, Y[:1]),
            {},
            ValueError,
            r"target has shape \(1,\), expected \(2,\): input \(2, 3\) without dimension 1",
        ),
        ((x[0], Y), {}, ValueError, r"target has shape \(2,\), expected \(\)"),
        ((x[0, 0], Y), {}, ValueError, r"input has shape \(\), expected \(C,\)"),
        ((x, torch.tensor([0, 3])), {}, IndexError, r"\[1\] is 3, expected 0 <= target < 3"),
        ((x, torch.tensor([-1, 0])), {}, IndexError, r"\[0\] is -1"),
        ((x, Y, w[:2]), {}, ValueError, r"weight has shape \(2,\), expected \(3,\)"),
        ((x, Y, w.long()), {}, TypeError, "weight has dtype torch.int64"),
        ((x, Y, w.numpy()), {}, TypeError, "weight is of type ndarray"),
        ((x, Y, w.requires_grad_()), {}, TypeError, r"pass weight\.detach\(\)"),
        ((x, Y), {"reduction": "average"}, ValueError, "reduction is 'average'"),
        ((x, Y), {"reduction": None}, TypeError, "reduction is of type NoneType"),
        ((x, Y), {"ignore_index": 1.5}, TypeError, "ignore_index is of type float"),
        ((x, Y), {"label_smoothing": 1.5}, ValueError, "label_smoothing is 1.5"),
        ((x, Y), {"label_smoothing": "0"}, TypeError, "label_smoothing is of type str"),
    ]
    for arguments, options, error, text in cases:
        with pytest.raises(error, match=text):
            adapter.cross_entropy(*arguments, **options)


# ---- no copies ----------------------------------------------------------------------------------


def spy(monkeypatch: pytest.MonkeyPatch, name: str) -> list[list[int]]:
    """The addresses of the arrays that each call of a kernel gets."""
    calls: list[list[int]] = []
    kernel = getattr(_core, name)

    def spied(*arguments: Any) -> Any:
        arrays = [a for a in arguments if isinstance(a, np.ndarray)]
        calls.append([a.__array_interface__["data"][0] for a in arrays])
        return kernel(*arguments)

    monkeypatch.setattr(_core, name, spied)
    return calls


@pytest.mark.parametrize("dtype", FLOATS, ids=name_of)
def test_the_kernels_work_on_the_tensors_memory(
    monkeypatch: pytest.MonkeyPatch, dtype: Any
) -> None:
    calls = {name: spy(monkeypatch, name) for name in ("softmax", "logsumexp", "cross_entropy")}
    for x in (torch.randn(4, 6).to(dtype), torch.randn(6, 8).to(dtype).T[::2]):
        p = adapter.softmax(x, 1)
        assert calls["softmax"].pop() == [x.data_ptr(), p.data_ptr()]
        s = adapter.logsumexp(x, 1, keepdim=True)
        assert calls["logsumexp"].pop() == [x.data_ptr(), s.data_ptr()]
        y, w = torch.tensor([0, 1, 2, 3]), torch.ones(6).to(dtype)
        losses = adapter.cross_entropy(x, y, w, reduction="none")
        pointers = [t.data_ptr() for t in (x, y, w, losses)]
        assert calls["cross_entropy"].pop() == pointers


@pytest.mark.parametrize(
    ("dtype", "factor"), [(torch.float32, 1.0), (torch.float32, 3.0), (torch.bfloat16, 1.0)]
)
def test_the_gradient_is_handed_over(
    monkeypatch: pytest.MonkeyPatch, dtype: Any, factor: float
) -> None:
    calls = spy(monkeypatch, "cross_entropy")
    x = torch.randn(4, 6, dtype=dtype, requires_grad=True)
    (factor * adapter.cross_entropy(x, torch.tensor([0, 1, 2, 3]))).backward()
    ((*_, gradient),) = calls  # one call: loss and gradient
    assert x.grad.data_ptr() == gradient


# ---- CrossEntropyLoss ---------------------------------------------------------------------------


def test_the_module_is_a_drop_in() -> None:
    weight = torch.tensor([1.0, 2.0, 0.5])
    x, y = torch.randn(4, 3), torch.tensor([0, 1, 2, -1])
    for options in (
        {},
        {"weight": weight},
        {"reduction": "sum", "label_smoothing": 0.1},
        {"weight": weight, "ignore_index": 2, "reduction": "none"},
    ):
        options = {"ignore_index": -1} | options
        target = y.clamp_min(0) if options["ignore_index"] != -1 else y
        theirs, ours = torch.nn.CrossEntropyLoss(**options), adapter.CrossEntropyLoss(**options)
        assert isinstance(ours, torch.nn.Module)
        assert repr(ours) == repr(theirs)
        assert ours.state_dict().keys() == theirs.state_dict().keys()
        ours.load_state_dict(theirs.state_dict())
        torch.testing.assert_close(ours(x, target), theirs(x, target))
        again = pickle.loads(pickle.dumps(ours))
        assert torch.equal(again(x, target), ours(x, target))
    double = adapter.CrossEntropyLoss(weight).double()
    assert double.weight.dtype is torch.float64
    parameters = inspect.signature(adapter.CrossEntropyLoss).parameters
    assert parameters.keys() == inspect.signature(torch.nn.CrossEntropyLoss).parameters.keys()


def test_signatures_are_torchs() -> None:
    ours = inspect.signature(adapter.cross_entropy).parameters
    theirs = inspect.signature(F.cross_entropy).parameters
    deprecated = ("size_average", "reduce")
    assert [(p.name, p.default) for p in ours.values()] == [
        (p.name, p.default) for p in theirs.values() if p.name not in deprecated
    ]


# ---- training -----------------------------------------------------------------------------------


def test_training_on_digits() -> None:
    datasets = pytest.importorskip("sklearn.datasets", reason="scikit-learn is not installed")
    x, y = datasets.load_digits(return_X_y=True)
    x, y = torch.from_numpy(x).float() / 16, torch.from_numpy(y).long()
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(0))
    train, test = order[:1300], order[1300:]
    accuracy, losses = [], []
    for criterion in (torch.nn.CrossEntropyLoss(), adapter.CrossEntropyLoss()):
        torch.manual_seed(1)
        model = torch.nn.Sequential(
            torch.nn.Linear(64, 32), torch.nn.ReLU(), torch.nn.Linear(32, 10)
        )
        optimizer = torch.optim.SGD(model.parameters(), lr=0.2, momentum=0.9)
        generator = torch.Generator().manual_seed(2)
        for _ in range(12):
            for batch in train[torch.randperm(len(train), generator=generator)].split(100):
                optimizer.zero_grad()
                loss = criterion(model(x[batch]), y[batch])
                loss.backward()
                optimizer.step()
        losses.append(loss.item())
        accuracy.append(float((model(x[test]).argmax(1) == y[test]).double().mean()))
    assert min(accuracy) > 0.95, accuracy
    assert accuracy[1] >= accuracy[0] - 0.01, accuracy
    assert losses[1] == pytest.approx(losses[0], rel=0.05, abs=1e-3)


# ---- the module ---------------------------------------------------------------------------------


def test_import_and_attribute() -> None:
    code = """
import sys, softlane
assert "torch" not in sys.modules
assert softlane.torch.softmax is not None
from softlane.torch import CrossEntropyLoss
import torch
assert softlane.torch is sys.modules["softlane.torch"] is not torch
"""
    output_of(code)
    output_of("import softlane.torch; softlane.torch.logsumexp")


@pytest.mark.parametrize("statement", ["import softlane.torch", "softlane.torch"])
def test_without_torch(statement: str) -> None:
    done = run_python(f"import sys; sys.modules['torch'] = None; import softlane; {statement}")
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert re.fullmatch(r"ImportError: softlane\.torch needs torch: .*'softlane\[torch\]'", last)


def test_examples() -> None:
    result = doctest.testmod(adapter)
    assert result.failed == 0 and result.attempted >= 15


@pytest.mark.parametrize("name", ["softmax", "log_softmax", "logsumexp", "cross_entropy"])
def test_docstrings_are_numpydoc(name: str) -> None:
    function = getattr(adapter, name)
    text = inspect.getdoc(function) or ""
    for section in ("Parameters", "Returns", "Raises", "Examples"):
        assert f"{section}\n{'-' * len(section)}" in text
    for parameter in inspect.signature(function).parameters:
        assert re.search(rf"\b{parameter}\b", text)
