"""A page in Chromium that may talk to its own service only, and log no error."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

# Of a busy machine; Playwright's own 5 s were too few.
_MOST_MS = 60_000


@contextmanager
def watched_page(browser: Any, service: str, **options: Any) -> Iterator[Any]:
    """An empty page; `service`: the only address that it may ask. `options`: of its context."""
    pytest.importorskip("playwright.sync_api").expect.set_options(timeout=_MOST_MS)
    context = browser.new_context(**{"viewport": {"width": 1200, "height": 900}, **options})
    context.set_default_timeout(_MOST_MS)
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
