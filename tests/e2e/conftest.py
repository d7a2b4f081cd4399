"""What tests of pages share: one browser a module, and that a page neither complains nor asks the network."""

from collections.abc import Iterator

import pytest
from tests.support.browser import Browser


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with Browser() as browser:
        yield browser


@pytest.fixture
def no_problems(browser: Browser) -> Iterator[None]:
    browser.problems.clear()
    browser.requests.clear()
    yield
    assert browser.problems == []
    assert [url for url in browser.requests if not url.startswith(("file:", "about:", "data:"))] == []
