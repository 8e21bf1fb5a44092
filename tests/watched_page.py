"""A page in Chromium that may talk to its own service only, and log no error."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def watched_page(browser: Any, service: str, timeout_ms: int, **options: Any) -> Iterator[Any]:
    """An empty page; `service`: the only address that it may ask. `options`: of its context."""
    context = browser.new_context(**{"viewport": {"width": 1200, "height": 900}, **options})
    context.set_default_timeout(timeout_ms)
    page = context.new_page()
    asked: list[str] = []
    errors: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.on("pageerror", lambda error: errors.append(str(error)))
    # The browser itself logs a refused request to the console.
    page.on(
        "console",
        lambda logged: (
            errors.append(logged.text)
            if logged.type == "error" and not logged.text.startswith("Failed to load resource")
            else None
        ),
    )
    yield page
    context.close()
    assert errors == []
    assert [url for url in asked if not url.startswith((service, "blob:", "data:"))] == []
