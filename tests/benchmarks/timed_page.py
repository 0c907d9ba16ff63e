"""The page with a clock on it: `python -m tests.benchmarks.timed_page FILE ...` is `python -m webui ...`.

Each handler's name and CPU seconds go to FILE, one JSON line a call: those of its own thread, and those of the whole
process meanwhile, in which threads that it started count and other requests at the same time do, too.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from webui import __main__ as page
from webui import context, news


def main() -> int:
    """Put the clock on, then serve."""
    told = Path(sys.argv.pop(1))
    plain, now = context._errors_as_messages, news.News.now

    @contextmanager
    def clocked(name: str) -> Iterator[None]:
        own, whole = time.thread_time(), time.process_time()
        try:
            yield
        finally:
            used = [name, time.thread_time() - own, time.process_time() - whole]
            with told.open("a", encoding="utf-8") as lines:
                lines.write(json.dumps(used) + "\n")

    @contextmanager
    def handled(name: str) -> Iterator[None]:
        with clocked(name), plain(name):
            yield

    def asked(self: Any, tab: str) -> Any:
        with clocked(f"news/{tab}"):
            return now(self, tab)

    context._errors_as_messages = handled
    news.News.now = asked  # type: ignore[method-assign]
    return page.main()


if __name__ == "__main__":
    sys.exit(main())
