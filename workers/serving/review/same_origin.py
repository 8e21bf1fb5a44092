"""Refusal of requests that pages of other sites make through the browser of a person here."""

from __future__ import annotations

from urllib.parse import urlsplit

from fastapi import Request

from workers.serving.requests import refuse


def check_same_origin(request: Request) -> None:
    """Refuse a request that another site's page made. Raises HTTPException: 403, 415.

    Browsers say where a request comes from: in `Sec-Fetch-Site`, or, where they do not trust the
    connection, in `Origin`, which they never leave out of a POST. A POST must say it, and be JSON,
    which a page can send to another site only if that site allows it; this one never does.
    """
    site, origin = (request.headers.get(name) for name in ("sec-fetch-site", "origin"))
    changes = request.method != "GET"
    if site is not None:
        same = site == "same-origin" or (site == "none" and not changes)
    elif origin is not None:
        same = urlsplit(origin).netloc == request.headers.get("host")
    else:
        same = not changes
    if not same:
        refuse(403, "the request must come from this service's own page")
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if changes and kind != "application/json":
        refuse(415, f"content type must be application/json (got {kind or 'none'})")
