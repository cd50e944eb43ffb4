"""Headers that tell browsers what our pages never do: run inline scripts, sit in frames, leak addresses.

Owns the content security policy. Pictures may come from the store that presigned addresses lead to.
"""

from collections.abc import Mapping
from urllib.parse import urlsplit

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from orchestrator.settings import Settings


def security_headers(settings: Settings) -> Mapping[str, str]:
    """The headers of every answer."""
    stores = "https:"
    if settings.local_s3_url:
        parts = urlsplit(settings.local_s3_url)
        stores += f" http://{parts.hostname}:{parts.port}"
    policy = (
        "default-src 'none'; script-src 'self'; style-src 'self'; font-src 'self'; connect-src 'self'; "
        f"img-src 'self' data: blob: {stores}; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    )
    return {
        "content-security-policy": policy,
        "x-content-type-options": "nosniff",
        "x-frame-options": "DENY",
        "referrer-policy": "same-origin",
        "cross-origin-opener-policy": "same-origin",
        "permissions-policy": "camera=(), microphone=(), geolocation=()",
    }


class SecurityHeaders:
    """ASGI: adds the headers to every answer that does not set them itself; what is not said to be kept is not kept."""

    def __init__(self, app: ASGIApp, headers: Mapping[str, str]) -> None:
        self._app, self._headers = app, {"cache-control": "no-store", **headers}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in self._headers.items():
                    headers.setdefault(name, value)
            await send(message)

        await self._app(scope, receive, send_with_headers)
