"""Random parameters against torch, SciPy, JAX, optax and ONNX's reference evaluator; each skipped if absent.

In float64, to what that leaves there; the contract in ulp is tested elsewhere. DIFFERENTIAL_EXAMPLES in the
environment is the number of examples of the tests against torch; the others take a part of it.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import softlane
from softlane import _core
from support import INTEGERS, Array, using

EXAMPLES = int(os.environ.get("DIFFERENTIAL_EXAMPLES", "500"))  # on each instruction set
EPSILON = 2.0**-52
SIGNED = [d for d in INTEGERS if d.kind == "i"]
seeds = st.integers(0, 2**32 - 1)


def examples(share: float) -> settings:
    """A share of the number of examples, the same ones in every run."""
    count = max(1, round(EXAMPLES * share))
    return settings(max_examples=count, derandomize=True, deadline=None, database=None)


def imported(name: str) -> Any:
    return pytest.importorskip(name, reason=f"{name} is not installed")


@pytest.fixture(scope="module", params=_core.isas_usable(), autouse=True)
def instruction_set(request: pytest.FixtureRequest) -> Iterator[None]:
    """Each usable one in turn; of the module, as hypothesis wants it."""
    with using(request.param):
        yield


@pytest.fixture(scope="module")
def torch() -> Any:
    return imported("torch")


@pytest.fixture(scope="module")
def special() -> Any:
    return imported("scipy.special")


@pytest.fixture(scope="module")
def jax() -> Any:
    return imported("jax")


@pytest.fixture(scope="module")
def optax() -> Any:
    return imported("optax")


@pytest.fixture(scope="module")
def onnx() -> Any:
    imported("onnx.reference")
    return imported("onnx")


def agree(got: Any, expected: Any, scale: Any, label: Any = "") -> None:
    """Within 64 float64 spacings of `scale`, the size of what was rounded on the other side; NaN and inf alike."""
    got, expected = np.asarray(got), np.asarray(expected)
    assert got.shape == expected.shape, f"{label}: {got.shape}, {expected.shape}"
    with np.errstate(all="ignore"):
        near = np.abs(got - expected) <= 64 * EPSILON * np.asarray(scale)
    near |= (got == expected) | (np.isnan(got) & np.isnan(expected))
    if not near.all():
        at = tuple(int(i[0]) for i in np.nonzero(~near)) if got.ndim else ()
        raise AssertionError(f"{label}: {got[at]!r}, expected {expected[at]!r} at {at}")


# cross_entropy against torch


class Problem:
    """Logits, targets and options of cross_entropy, drawn from a seed; what torch has, and with `more` the rest."""

    def __init__(self, seed: int, *, more: bool) -> None:
        rng = np.random.default_rng(seed)
        self.rng = rng
        samples = tuple(int(n) for n in rng.integers(1, 6, rng.integers(0, 4)))
        if samples and rng.random() < 0.03:
            samples = (0, *samples[1:])
        classes = int(rng.choice([1, 2, 3, 5, 9, 17, 40]))
        ndim = len(samples) + 1
        self.axis = int(rng.integers(-ndim, ndim))
        place = self.axis % ndim
        shape = (*samples[:place], classes, *samples[place:])
        scale, offset = 10.0 ** rng.uniform(-1, 1.6), rng.choice([0.0, 0.0, 50.0, -300.0])
        self.logits = scale * rng.standard_normal(shape) + offset
        self.options: dict[str, Any] = {"reduction": str(rng.choice(["none", "mean", "sum"]))}
        self.given = bool(rng.random() < 0.4)  # probabilities
        self.targets: Array
        if self.given:
            self.targets = rng.random(shape) * 10.0 ** rng.uniform(-1, 1)
        else:
            self.targets = rng.integers(0, classes, samples).astype(rng.choice(np.array(SIGNED)))
            if rng.random() < 0.5:
                ignored = int(rng.choice([-100, -1, int(rng.integers(0, classes)), 99]))
                self.options["ignore_index"] = ignored
                self.targets = np.where(rng.random(samples) < 0.3, ignored, self.targets)
        if rng.random() < 0.5:
            self.options["weight"] = rng.uniform(0, 3, classes) * (rng.random(classes) < 0.9)
        if rng.random() < 0.5:
            self.options["label_smoothing"] = float(rng.choice([0.05, 0.1, 0.5, 1.0]))
        if more:
            self.draw_more(samples, classes)

    def draw_more(self, samples: tuple[int, ...], classes: int) -> None:
        rng = self.rng
        if rng.random() < 0.5:
            shape = tuple(n if rng.random() < 0.7 else 1 for n in samples)
            self.options["sample_weight"] = np.asarray(rng.uniform(0.1, 3, shape))
        if rng.random() < 0.5:
            self.options["temperature"] = float(rng.uniform(0.3, 3))
        if rng.random() < 0.4:
            self.options["softcap"] = float(rng.uniform(1, 60))
        if rng.random() < 0.5:
            self.options["z_loss"] = float(rng.choice([1e-4, 0.01, 0.5, -0.1]))
        if rng.random() < 0.4:
            inside = rng.random(classes) < 0.7
            used = self.targets.reshape(-1)
            if self.given:
                inside[int(rng.integers(0, classes))] = True
            else:
                counted = used[used != self.options.get("ignore_index", -100)].astype(int)
                inside[counted] = True
                inside[0] |= not inside.any()
            broad = [1] * self.logits.ndim
            broad[self.axis] = classes
            self.options["where"] = inside.reshape(broad)

    @property
    def place(self) -> int:
        """Where torch wants the classes."""
        return 1 if self.logits.ndim > 1 else 0

    def scale(self) -> float:
        """The largest number that is rounded on the way to a loss or gradient of one sample, over its divisor."""
        o = self.options
        divided = min(1.0, o.get("temperature", 1.0))
        size = 1 + float(np.max(np.abs(self.logits), initial=1)) / divided
        size += math.log(self.logits.shape[self.axis] + 1)
        mass = self.logits.shape[self.axis] * max(1.0, float(np.max(o.get("weight", 1.0))))
        mass *= max(1.0, float(np.max(np.abs(self.targets), initial=1))) if self.given else 1
        size = (mass * size + abs(o.get("z_loss", 0.0)) * size**2) / divided
        samples = self.logits.size / max(1, self.logits.shape[self.axis])
        weights = float(np.max(o.get("sample_weight", 1.0), initial=1))
        return float(size * weights * (max(1.0, samples) if o["reduction"] == "sum" else 1))


def numbers_of(p: Problem, torch: Any, loss: Any, z: Any, divisor: float) -> None:
    """Compares with a torch loss of the leaf z: values and gradients."""
    got, grad = softlane.cross_entropy_with_grad(p.logits, p.targets, p.axis, **p.options)
    alone = softlane.cross_entropy(p.logits, p.targets, p.axis, **p.options)
    names = {k: v for k, v in p.options.items() if not isinstance(v, np.ndarray)}
    label = f"logits {p.logits.shape}, axis {p.axis}, {names}, {list(p.options)}"
    scale = p.scale() / (divisor if divisor > 0 else 1)
    loss.sum().backward()
    agree(got, loss.detach().numpy(), scale, label)
    agree(alone, loss.detach().numpy(), scale, label)
    expected = np.moveaxis(z.grad.numpy(), p.place, p.axis)
    if (
        divisor == 0
    ):  # a mean over nothing: torch has NaN in the gradient too, we have 0 where ignored
        return
    agree(grad, expected, scale, f"gradient, {label}")


def weights_of_targets(p: Problem) -> Array:
    """What the mean divides by the sum of."""
    samples = tuple(np.delete(p.logits.shape, p.axis % p.logits.ndim))
    factors: Array = np.broadcast_to(p.options.get("sample_weight", 1.0), samples)
    if p.given:
        return factors
    counted = p.targets != p.options.get("ignore_index", -100)
    weight = p.options.get("weight", np.ones(p.logits.shape[p.axis]))
    return np.asarray(np.where(counted, weight[np.where(counted, p.targets, 0)], 0) * factors)


@given(seeds)
@examples(1)
def test_cross_entropy_as_torch_has_it(torch: Any, seed: int) -> None:
    """Classes and probabilities, weight, smoothing, ignore_index, reduction, any axis: torch's own parameters."""
    p = Problem(seed, more=False)
    z = torch.tensor(np.moveaxis(p.logits, p.axis, p.place).copy())
    z.requires_grad_(True)
    t = np.moveaxis(p.targets, p.axis, p.place) if p.given else p.targets.astype(np.int64)
    options = dict(p.options)
    if "weight" in options:
        options["weight"] = torch.tensor(options["weight"])
    loss = torch.nn.functional.cross_entropy(z, torch.tensor(t.copy()), **options)
    mean = p.options["reduction"] == "mean"
    numbers_of(p, torch, loss, z, float(np.sum(weights_of_targets(p))) if mean else 1.0)


@given(seeds)
@examples(1)
def test_cross_entropy_with_what_torch_composes(torch: Any, seed: int) -> None:
    """Also sample_weight, temperature, softcap, z_loss and where, each written out in torch, gradients by autograd."""
    p = Problem(seed, more=True)
    o = p.options
    z = torch.tensor(np.moveaxis(p.logits, p.axis, p.place).copy())
    z.requires_grad_(True)
    capped = o["softcap"] * torch.tanh(z / o["softcap"]) if "softcap" in o else z
    capped = capped / o.get("temperature", 1.0)
    weight = torch.tensor(o["weight"]) if "weight" in o else None
    t = p.targets
    ignored = o.get("ignore_index", -100)
    if "where" in o:  # classes outside are taken away, those inside counted anew
        kept = np.flatnonzero(o["where"])
        capped = capped.index_select(p.place, torch.tensor(kept))
        weight = None if weight is None else weight[kept]
        if p.given:
            t = np.take(t, kept, p.axis)
        else:
            t = np.where(t == ignored, -100, np.searchsorted(kept, t))
            ignored = -100
    t = np.moveaxis(t, p.axis, p.place) if p.given else t.astype(np.int64)
    loss = torch.nn.functional.cross_entropy(
        capped,
        torch.tensor(t.copy()),
        weight=weight,
        label_smoothing=o.get("label_smoothing", 0.0),
        reduction="none",
        **({} if p.given else {"ignore_index": ignored}),
    )
    penalty = o.get("z_loss", 0.0) * torch.logsumexp(capped, p.place) ** 2
    if not p.given:
        penalty = torch.where(torch.tensor(t != ignored), penalty, 0.0)
    loss = loss + penalty
    if "sample_weight" in o:
        loss = loss * torch.tensor(o["sample_weight"])
    divisor = 1.0
    if o["reduction"] == "mean":
        divisor = float(np.sum(weights_of_targets(p)))
        loss = loss.sum() / divisor if divisor else loss.sum() * math.nan
    elif o["reduction"] == "sum":
        loss = loss.sum()
    numbers_of(p, torch, loss, z, divisor)


@given(seeds)
@examples(0.2)
def test_the_other_functions_as_torch_has_them(torch: Any, seed: int) -> None:
    """softmax, log_softmax, logsumexp and the gradients through them."""
    rng = np.random.default_rng(seed)
    shape = tuple(int(n) for n in rng.integers(1, 7, rng.integers(1, 5)))
    axis = int(rng.integers(-len(shape), len(shape)))
    x = 10.0 ** rng.uniform(-1, 2) * rng.standard_normal(shape)
    g = rng.standard_normal(shape)
    scale = 1 + float(np.max(np.abs(x))) + shape[axis]
    z = torch.tensor(x, requires_grad=True)
    for name, backward in (
        ("softmax", softlane.softmax_backward),
        ("log_softmax", softlane.log_softmax_backward),
    ):
        z.grad = None
        y = getattr(torch, name)(z, axis)
        y.backward(torch.tensor(g))
        got = getattr(softlane, name)(x, axis)
        agree(got, y.detach().numpy(), scale, name)
        agree(backward(g, got, axis), z.grad.numpy(), scale * (1 + np.abs(g).sum()), name)
    agree(softlane.logsumexp(x, axis), torch.logsumexp(z, axis).detach().numpy(), scale)


# SciPy


def drawn(rng: np.random.Generator, specials: list[float]) -> tuple[Array, Any]:
    """An array of up to four axes with some specials, and an axis: one, several or all."""
    shape = tuple(int(n) for n in rng.integers(1, 6, rng.integers(1, 5)))
    x = 10.0 ** rng.uniform(-1, 2.5) * rng.standard_normal(shape) + rng.choice([0.0, 1e3, -1e5])
    if rng.random() < 0.4:
        x[rng.random(shape) < 0.2] = rng.choice(specials)
    kind = rng.integers(4)
    if kind == 0:
        return x, None
    if kind == 1:
        chosen = rng.permutation(len(shape))[: rng.integers(1, len(shape) + 1)]
        return x, tuple(int(a) - len(shape) * int(rng.integers(2)) for a in chosen)
    return x, int(rng.integers(-len(shape), len(shape)))


def size_of(x: Any) -> float:
    return float(np.max(np.abs(x), initial=1, where=np.isfinite(x)))


@given(seeds)
@examples(0.5)
def test_softmax_and_log_softmax_as_scipy_has_them(special: Any, seed: int) -> None:
    rng = np.random.default_rng(seed)
    x, axis = drawn(rng, [-math.inf, math.nan])
    with np.errstate(all="ignore"):
        agree(softlane.softmax(x, axis), special.softmax(x, axis), 1 + size_of(x), f"axis {axis}")
        expected = special.log_softmax(x, axis)
    agree(softlane.log_softmax(x, axis), expected, 1 + size_of(x), f"axis {axis}")


@given(seeds)
@examples(1)
def test_logsumexp_as_scipy_has_it(special: Any, seed: int) -> None:
    """b of either sign or 0, broadcast in both directions, return_sign, keepdims, one axis, several, all."""
    rng = np.random.default_rng(seed)
    x, axis = drawn(rng, [-math.inf, math.nan, math.inf])
    if np.any(x == math.inf):  # which SciPy adds up as it is, so that nothing else must overflow
        x = np.where(x == math.inf, x, np.minimum(x, 600))
    options: dict[str, Any] = {"keepdims": bool(rng.random() < 0.5)}
    b: Any = np.ones(())
    if rng.random() < 0.6:
        shape = tuple(n if rng.random() < 0.7 else 1 for n in x.shape)[int(rng.integers(0, 2)) :]
        b = rng.standard_normal(shape) if rng.random() < 0.5 else rng.uniform(0.1, 9, shape)
        b[rng.random(shape) < 0.15] = 0
        if axis is None and rng.random() < 0.5:
            b = np.broadcast_to(b, (2, *x.shape)) * np.array(0.5)  # x is broadcast upward
        options["b"] = b
    if rng.random() < 0.5:
        options["return_sign"] = True
    with np.errstate(all="ignore"):
        removed = np.where(b == 0, -math.inf, x)  # where SciPy can meet 0 times inf
        expected = special.logsumexp(removed, axis, **options)
        if "return_sign" not in options:
            # A negative sum is NaN, also where SciPy's terms all underflow and it gives -inf.
            _, sign = special.logsumexp(removed, axis, **options, return_sign=True)
            expected = np.where(sign < 0, math.nan, expected)[()]
        larger = np.broadcast_to(x, np.broadcast_shapes(x.shape, np.shape(b)))
        top = np.max(np.where(np.isfinite(larger), larger, -1e300), axis=axis, keepdims=True)
        parts = b * np.exp(larger - top)
        total = np.abs(np.sum(parts, axis=axis, keepdims=options["keepdims"]))
        condition = np.sum(np.abs(parts), axis=axis, keepdims=options["keepdims"]) / total
    got = softlane.logsumexp(x, axis, **options)
    scale = (1 + size_of(x)) * np.where(np.isfinite(condition), condition, 1)
    clear = ~(np.asarray(condition) > 1e12)  # else the sign is that of rounding errors
    pairs = (
        [(np.asarray(a), np.asarray(b)) for a, b in zip(got, expected, strict=True)]
        if ("return_sign" in options)
        else [(np.asarray(got), np.asarray(expected))]
    )
    for a, wanted in pairs:
        assert a.shape == wanted.shape
        agree(a[clear], wanted[clear], np.asarray(scale)[clear], f"axis {axis}, {list(options)}")


@given(seeds)
@examples(0.3)
def test_complex_logsumexp_as_scipy_has_it(special: Any, seed: int) -> None:
    rng = np.random.default_rng(seed)
    x, axis = drawn(rng, [-math.inf])
    z = x + 1j * rng.uniform(-10, 10, x.shape)
    options: dict[str, Any] = {"keepdims": bool(rng.random() < 0.5)}
    if rng.random() < 0.5:
        options["b"] = rng.uniform(0.5, 2, x.shape) * np.exp(1j * rng.uniform(-3, 3, x.shape))
    with np.errstate(all="ignore"):
        expected = np.asarray(special.logsumexp(z, axis, **options))
        top = np.max(np.where(np.isfinite(x), x, -1e300), axis=axis, keepdims=True)
        parts = options.get("b", 1) * np.exp(z - top)
        keep = options["keepdims"]
        condition = np.sum(np.abs(parts), axis=axis, keepdims=keep)
        condition = condition / np.abs(np.sum(parts, axis=axis, keepdims=keep))
    got = np.asarray(softlane.logsumexp(z, axis, **options))
    scale = (20 + size_of(x)) * np.where(np.isfinite(condition), condition, 1)
    agree(got.real, expected.real, scale, f"axis {axis}")
    live = np.isfinite(expected.real)
    turn = np.exp(1j * (got.imag - expected.imag))[live]  # the branch is a test of its own
    agree(turn.real, np.ones_like(turn.real), np.asarray(scale)[live] if np.ndim(scale) else scale)
    agree(turn.imag, np.zeros_like(turn.imag), np.asarray(scale)[live] if np.ndim(scale) else scale)


# JAX and optax. Shapes and axes are few, as each is compiled.

PLACES = st.sampled_from([((20, 7), 1), ((20, 7), 0), ((3, 4, 5), 1)])


@pytest.fixture(scope="module")
def masked_by_jax(jax: Any) -> Any:
    def compute(x: Any, mask: Any, b: Any, axis: int) -> Any:
        return (
            jax.nn.softmax(x, axis=axis, where=mask),
            jax.nn.log_softmax(x, axis=axis, where=mask),
            jax.nn.logsumexp(x, axis=axis, b=b, where=mask, return_sign=True),
        )

    return jax.jit(compute, static_argnames="axis")


@given(PLACES, seeds)
@examples(0.1)
def test_masked_functions_as_jax_has_them(
    jax: Any, masked_by_jax: Any, place: tuple[tuple[int, ...], int], seed: int
) -> None:
    """softmax, log_softmax and logsumexp with where, b and return_sign."""
    shape, axis = place
    rng = np.random.default_rng(seed)
    x, mask, b = (
        10 * rng.standard_normal(shape),
        rng.random(shape) < 0.7,
        rng.standard_normal(shape),
    )
    np.moveaxis(mask, axis, 0)[0] = True
    with jax.enable_x64(True):
        soft, log, (value, sign) = masked_by_jax(x, mask, b, axis=axis)
        assert value.dtype == np.float64
        agree(softlane.softmax(x, axis, where=mask), soft, 1 + size_of(x))
        agree(
            softlane.log_softmax(x, axis, where=mask), np.where(mask, log, -np.inf), 1 + size_of(x)
        )
    got, got_sign = softlane.logsumexp(x, axis, b=b, where=mask, return_sign=True)
    top = np.exp(x - np.max(np.where(mask, x, -np.inf), axis=axis, keepdims=True)) * b * mask
    condition = np.abs(top).sum(axis=axis) / np.abs(top.sum(axis=axis))
    agree(got, value, (1 + size_of(x)) * condition)
    assert np.array_equal(got_sign, sign)


@pytest.fixture(scope="module")
def loss_by_optax(jax: Any, optax: Any) -> Any:
    """Losses, and the gradient of their sum: of classes as such, of classes and of probabilities with smoothing."""

    def total(z: Any, y: Any, t: Any, mask: Any, smoothing: Any, z_loss: Any, axis: int) -> Any:
        if t is None:
            loss = optax.losses.softmax_cross_entropy_with_integer_labels(z, y, axis, where=mask)
        else:
            labels = optax.losses.smooth_labels(t, smoothing, axis=axis, where=mask)
            loss = optax.losses.softmax_cross_entropy(z, labels * mask, axis, where=mask)
        loss = loss + z_loss * jax.nn.logsumexp(z, axis=axis, where=mask) ** 2
        return loss.sum(), loss

    return jax.jit(jax.grad(total, has_aux=True), static_argnames="axis")


@given(PLACES, seeds)
@examples(0.2)
def test_cross_entropy_as_optax_has_it(
    jax: Any, loss_by_optax: Any, place: tuple[tuple[int, ...], int], seed: int
) -> None:
    """Classes or probabilities, where, smooth_labels, and a z-loss; gradients by jax.grad."""
    shape, axis = place
    rng = np.random.default_rng(seed)
    x = 10.0 ** rng.uniform(-1, 1.3) * rng.standard_normal(shape)
    classes = shape[axis]
    y = rng.integers(0, classes, tuple(np.delete(shape, axis)))
    one_hot = np.moveaxis(np.eye(classes)[y], -1, axis)
    as_classes = bool(rng.random() < 0.5)
    masked = bool(rng.random() < 0.5)
    mask = (rng.random(shape) < 0.7) | (one_hot == 1) if masked else np.ones(shape, bool)
    smoothing = float(rng.choice([0.0, 0.1, 0.5, 1.0]))
    z_loss = float(rng.choice([0.0, 0.01, 0.5]))
    t = one_hot if as_classes else rng.random(shape)
    with jax.enable_x64(True):
        labels = None if as_classes and smoothing == 0 else t
        expected_grad, expected = loss_by_optax(x, y, labels, mask, smoothing, z_loss, axis=axis)
        assert expected.dtype == np.float64
    options: dict[str, Any] = {"where": mask} if masked else {}
    got, grad = softlane.cross_entropy_with_grad(
        x, y if as_classes else t, axis, label_smoothing=smoothing, z_loss=z_loss,
        reduction="none", **options,
    )  # fmt: skip
    label = f"{shape}, axis {axis}, classes {as_classes}, smoothing {smoothing}, where {masked}"
    size = 4 + size_of(x)
    scale = classes * size + z_loss * size**2
    agree(got, expected, scale, label)
    agree(grad, expected_grad, scale, label)


# ONNX's reference evaluator


def evaluated(onnx: Any, operator: str, inputs: list[Any], outputs: int, **attributes: Any) -> Any:
    """One operator over arrays, of float64 and int64, some of them None."""
    helper, types = onnx.helper, onnx.TensorProto
    names = [f"x{i}" if a is not None else "" for i, a in enumerate(inputs)]
    while names and not names[-1]:
        names.pop()
    results = [f"y{i}" for i in range(outputs)]
    node = helper.make_node(operator, names, results, **attributes)
    kinds = {"f": types.DOUBLE, "i": types.INT64}
    graph = helper.make_graph(
        [node],
        "one",
        [
            helper.make_tensor_value_info(name, kinds[a.dtype.kind], None)
            for name, a in zip(names, inputs, strict=False)
            if name
        ],
        [helper.make_tensor_value_info(name, types.DOUBLE, None) for name in results],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)])
    evaluator = onnx.reference.ReferenceEvaluator(model)
    feeds = {name: a for name, a in zip(names, inputs, strict=False) if name}
    return evaluator.run(None, feeds)


@given(seeds)
@examples(0.15)
def test_softmax_and_log_softmax_as_onnx_has_them(onnx: Any, seed: int) -> None:
    rng = np.random.default_rng(seed)
    shape = tuple(int(n) for n in rng.integers(1, 6, rng.integers(1, 5)))
    x = 3 * rng.standard_normal(shape)
    axis = int(rng.integers(-len(shape), len(shape)))
    agree(softlane.softmax(x, axis), evaluated(onnx, "Softmax", [x], 1, axis=axis)[0], 30)
    agree(softlane.log_softmax(x, axis), evaluated(onnx, "LogSoftmax", [x], 1, axis=axis)[0], 30)


@given(seeds)
@examples(0.15)
def test_cross_entropy_as_onnx_has_it(onnx: Any, seed: int) -> None:
    """SoftmaxCrossEntropyLoss: weights, ignore_index, reduction; its second output is log_softmax."""
    rng = np.random.default_rng(seed)
    batch, *more = (int(n) for n in rng.integers(1, 5, rng.integers(1, 4)))
    classes = int(rng.integers(2, 7))
    x = 3 * rng.standard_normal((batch, classes, *more))
    y = rng.integers(0, classes, (batch, *more))
    attributes: dict[str, Any] = {"reduction": str(rng.choice(["none", "mean", "sum"]))}
    if rng.random() < 0.5:
        attributes["ignore_index"] = int(rng.integers(0, classes))
        y.flat[0] = (attributes["ignore_index"] + 1) % classes  # a mean over nothing is 0 there
    weight = rng.uniform(0.1, 2, classes) if rng.random() < 0.5 else None
    loss, log_prob = evaluated(onnx, "SoftmaxCrossEntropyLoss", [x, y, weight], 2, **attributes)
    got = softlane.cross_entropy(x, y, 1, weight=weight, **attributes)
    agree(got, np.asarray(loss), 30 * y.size, f"{attributes}, weight {weight is not None}")
    agree(softlane.log_softmax(x, 1), log_prob, 30)
