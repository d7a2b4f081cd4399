"""The engine's own page, by the name that the collector still uses."""

import ssl

from pinchpoint.catalog import Catalog
from pinchpoint.telemetry.page import Page


class EnginePage(Page):
    def __init__(
        self, url: str, catalog: Catalog, api_key: str | None = None, tls: ssl.SSLContext | None = None
    ) -> None:
        super().__init__(url, "engine", catalog, api_key=api_key, tls=tls)
