"""Lets threadpoolctl, where it is installed, see and limit softlane's threads."""

from __future__ import annotations

import os
from typing import Any

from softlane import _core


def register() -> None:
    """Make ``threadpoolctl.threadpool_limits(n)`` limit the calling thread's calls of softlane.

    Without threadpoolctl, or with one before 3.2, nothing happens.
    """
    try:
        import threadpoolctl

        base: Any = threadpoolctl.LibController
    except (ImportError, AttributeError):
        return

    class Controller(base):  # type: ignore[misc]
        """threadpoolctl finds libraries by how their file name begins, and makes sure by a symbol."""

        user_api = "softlane"
        internal_api = "softlane"
        filename_prefixes = ("_core.",)
        check_symbols = ("PyInit__core",)

        def set_additional_attributes(self) -> None:
            """Leave the extension modules alone that other packages have under the same name."""
            if not os.path.samefile(self.filepath, str(_core.__file__)):
                self.dynlib = None  # which has no symbols

        def get_version(self) -> str:
            return _core.__version__

        def get_num_threads(self) -> int:
            return _core.get_num_threads()

        def set_num_threads(self, num_threads: int) -> None:
            """Limit this thread; what is no limit, as when they are restored, leaves no trace."""
            _core.set_thread_limit(0)
            if num_threads < _core.get_num_threads():
                _core.set_thread_limit(num_threads)

    threadpoolctl.register(Controller)
