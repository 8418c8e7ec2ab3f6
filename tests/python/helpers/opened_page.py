"""Opens a page in a browser and records its errors and requests."""

from __future__ import annotations

from typing import Any

from playwright.sync_api import Browser, Page


class OpenedPage:
    """A page, its errors and its network requests. A subclass opens it."""

    def __init__(self, browser: Browser, width: int, scheme: Any = "light") -> None:
        self.errors: list[str] = []
        self.requests: list[str] = []
        self.page: Page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
        self.page.on("console", lambda message: self.errors.append(message.text))
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("request", lambda request: self.requests.append(request.url))
