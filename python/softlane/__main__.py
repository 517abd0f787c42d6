"""The command line, ``softlane`` or ``python -m softlane``; info and demo. `_cli` has the others."""

from __future__ import annotations

import argparse
import csv
import signal
import sys
import threading
import timeit
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.resources import files
from typing import Any

import numpy as np

import softlane
from softlane import _cli, reference


def info(_arguments: argparse.Namespace) -> int:
    """Print the version, the instruction sets, the threads and the compiler."""
    softlane.show_config()
    return 0


def demo(_arguments: argparse.Namespace) -> int:
    """Compute the textbook examples, train a classifier on Fisher's irises, measure the speed."""
    show_textbook()
    show_training()
    show_machine()
    return 0


Command = Callable[[argparse.Namespace], int]
AddArguments = Callable[[argparse.ArgumentParser], None]
COMMANDS: dict[str, tuple[Command, AddArguments | None]] = {
    "info": (info, None),
    "demo": (demo, None),
    "score": (_cli.score, _cli.add_score_arguments),
    "softmax": (_cli.softmax, _cli.add_softmax_arguments),
    "log-softmax": (_cli.log_softmax, _cli.add_softmax_arguments),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; return the exit status: 2 for input that cannot be worked on, 130 after Ctrl-C."""
    parser = argparse.ArgumentParser("softlane", description="The softmax family on CPU arrays.")
    parser.add_argument("--version", action="version", version=softlane.__version__)
    commands = parser.add_subparsers(title="commands", metavar="command", required=True)
    for name, (run, add_arguments) in COMMANDS.items():
        summary = (run.__doc__ or "").splitlines()[0]
        command = commands.add_parser(name, help=summary, description=summary)
        command.set_defaults(run=run)
        if add_arguments is not None:
            add_arguments(command)
    parsed = parser.parse_args(arguments)
    try:
        with ending_on_signals():
            status: int = parsed.run(parsed)
    except KeyboardInterrupt:
        refuse("interrupted")
        return 130
    except OSError as error:
        refuse(f"{error.filename}: {error.strerror}" if error.filename else str(error))
    except MemoryError as error:
        refuse(f"not enough memory. {error}")
    except (ImportError, IndexError, TypeError, ValueError) as error:
        refuse(str(error))
    else:
        return status
    return 2


@contextmanager
def ending_on_signals() -> Iterator[None]:
    """Let SIGTERM and SIGHUP raise SystemExit, so that no unfinished output stays behind."""
    signals = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    if threading.current_thread() is not threading.main_thread():
        signals = []

    def end(number: int, _frame: Any) -> None:
        sys.exit(128 + number)

    before = {s: signal.signal(s, end) for s in signals if signal.getsignal(s) == signal.SIG_DFL}
    try:
        yield
    finally:
        for s, handler in before.items():
            signal.signal(s, handler)


def refuse(text: str) -> None:
    """Say on standard error, in one line, why a command did not do its work."""
    print("softlane: " + " ".join(text.split()), file=sys.stderr)


# ---- the parts of the demo ----------------------------------------------------------------------


def show_textbook() -> None:
    """The textbook's inputs through softlane, and beside it through the NumPy reference."""

    def show(name: str, ours: Any, plain: Any) -> None:
        left, right = (np.array2string(np.asarray(v), precision=8) for v in (ours, plain))
        print(f"  {name:<15}{left:<40}{right}")

    print("Textbook examples")
    print(f"{'':<17}{'softlane':<40}NumPy reference")
    for x in ([1.0, 2.0, 3.0], [1000.0, 1001.0, 1002.0]):
        print(f"x = {x}")
        print(f"  {'softmax_naive':<55}{reference.softmax_naive(x)}")
        show("softmax", softlane.softmax(x), reference.softmax(x))
        show("log_softmax", softlane.log_softmax(x), reference.log_softmax(x))
    logits = np.array([[2.0, 1.0, 0.1], [0.5, 2.5, 0.3]], np.float32)
    labels = np.array([0, 2])
    print("logits = [[2.0, 1.0, 0.1], [0.5, 2.5, 0.3]] in float32, labels = [0, 2]")
    show(
        "cross_entropy",
        softlane.cross_entropy(logits, labels, dtype=np.float64),
        reference.cross_entropy(logits, labels, dtype=np.float64),
    )


def read_iris() -> tuple[Any, Any]:
    """Fisher's irises: measurements in cm, of shape (150, 4), and species 0 to 2."""
    text = (files("softlane") / "data" / "iris.csv").read_text(encoding="utf-8")
    _names, *flowers = csv.reader(line for line in text.splitlines() if line[0] != "#")
    *measurements, species = zip(*flowers, strict=True)
    _, numbers = np.unique(species, return_inverse=True)
    return np.array(measurements, np.float64).T, numbers


def show_training(steps: int = 400, rate: float = 1.0) -> None:
    """Multinomial logistic regression on the irises by gradient descent."""
    measurements, species = read_iris()
    held_out = np.arange(len(species)) % 5 == 4
    mean, scale = measurements[~held_out].mean(axis=0), measurements[~held_out].std(axis=0)
    features = np.column_stack([(measurements - mean) / scale, np.ones(len(species))])
    x, y = features[~held_out], species[~held_out]

    print("\nLogistic regression on Fisher's irises (4 measurements, 3 species)")
    coefficients = np.zeros((features.shape[1], 3))
    for step in range(steps + 1):
        loss, grad = softlane.cross_entropy_with_grad(x @ coefficients, y)
        if step in (0, 1, 3, 10, 30, 100, 200, steps):
            print(f"  step {step:3}  loss {loss:.6f}")
        coefficients -= rate * (x.T @ grad)

    hits = np.argmax(features @ coefficients, axis=1) == species
    print(
        f"  accuracy  {hits[~held_out].mean():.1%} of the {len(y)} flowers trained on, "
        f"{hits[held_out].mean():.1%} of the {held_out.sum()} held out"
    )


def show_machine() -> None:
    """Instruction set, threads and speed, a line each."""
    config = softlane.show_config("dict")
    x = np.random.default_rng(0).standard_normal((512, 1000), np.float32)
    ours = min(timeit.repeat(lambda: softlane.softmax(x), number=1, repeat=20))
    plain = min(timeit.repeat(lambda: reference.softmax(x), number=1, repeat=20))
    print(f"\nInstruction set: {config['isa']}")
    print(f"Threads: {config['threads']}")
    print(
        f"Speed: softmax of 512 x 1000 float32 takes {ours * 1e3:.3f} ms, the NumPy reference "
        f"{plain * 1e3:.3f} ms, {plain / ours:.1f} times as long"
    )


if __name__ == "__main__":
    sys.exit(main())
