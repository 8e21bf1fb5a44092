"""Refusal of requests that pages of other sites make through the browser of a person here.

Browsers say where a request comes from: in `Sec-Fetch-Site`, or, where they do not trust the
connection, in `Origin`, which they never leave out of a POST. Programs say nothing.
"""

from __future__ import annotations

from fastapi import Request

from workers.serving.requests import content_type, refuse

_FOREIGN = "the request must come from this service's own page, not from another site's"


async def refuse_foreign_posts(request: Request) -> None:
    """Refuse what another site's page posts; programs may post. Raises HTTPException: 403."""
    if request.method == "POST" and _is_own(request) is False:
        refuse(403, _FOREIGN)


async def require_own_page(request: Request) -> None:
    """Refuse what another site's page asks. Raises HTTPException: 403, 415.

    A POST must say that it comes from here, and be JSON, which a page can send to another site only
    if that site allows it; this one never does.
    """
    changes = request.method != "GET"
    own = _is_own(request)
    if own is False or (changes and own is None):
        refuse(403, _FOREIGN)
    kind = content_type(request)
    if changes and kind != "application/json":
        refuse(415, f"content type must be application/json (got {kind or 'none'})")


def _is_own(request: Request) -> bool | None:
    """Whether a page of this service made the request; None when nothing says so."""
    site, origin = (request.headers.get(name) for name in ("sec-fetch-site", "origin"))
    if site is not None:
        # "none" is a person who typed the address, which no POST does.
        return site == "same-origin" or (site == "none" and request.method == "GET")
    if origin is not None:
        return origin.partition("://")[2] == request.headers.get("host")
    return None
