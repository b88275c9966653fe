"""A real browser without a window: Chromium, driven through its own driver."""

from __future__ import annotations

import contextlib
import inspect
import os
import shutil
import tempfile
import time
from typing import TYPE_CHECKING, Any, TypeVar

import pytest
from selenium.webdriver import ActionChains, Chrome, ChromeOptions, ChromeService
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from tests.support import waiting

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from selenium.webdriver.remote.webelement import WebElement

__all__ = ["Browser", "browser", "chromium", "missing", "wait_until"]

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
DRIVER = shutil.which("chromedriver")


def wait_until(condition: Callable[[], T], timeout: float = 30.0) -> T:
    """Wait as ``waiting.wait_until`` does, looking less often: each look makes the browser work."""

    def look() -> T:
        time.sleep(0.05)
        return condition()

    return waiting.wait_until(look, timeout, inspect.getsource(condition).strip())


def missing() -> str:
    """Return what there is no browser for want of; nothing if there is one."""
    if CHROMIUM is None or DRIVER is None:
        return "Chromium and its driver are not installed (chromium, chromium-driver)"
    return ""


T = TypeVar("T")

_KEYS = {"Tab": Keys.TAB, "Enter": Keys.ENTER, "ArrowRight": Keys.ARROW_RIGHT}


class Browser:
    """A browser with one page, as somebody who looks at it and presses keys has it."""

    def __init__(self, driver: Chrome) -> None:
        self.driver = driver

    def open(self, address: str) -> None:
        """Load a page."""
        self.driver.get(address)

    def find(self, selector: str) -> WebElement:
        """Return the first element of a CSS selector."""
        return self.driver.find_element(By.CSS_SELECTOR, selector)

    def find_all(self, selector: str) -> list[WebElement]:
        """Return all elements of a CSS selector."""
        return self.driver.find_elements(By.CSS_SELECTOR, selector)

    def text(self, selector: str) -> str:
        """Return what the first element of a CSS selector says, seen or not."""
        return str(self.find(selector).get_property("textContent")).strip()

    def press(self, key: str) -> None:
        """Press a key, by the name that JavaScript has for it, with the focus where it is."""
        ActionChains(self.driver).send_keys(_KEYS.get(key, key)).perform()

    def run(self, script: str, *arguments: Any) -> Any:
        """Return what a function body of JavaScript returns."""
        return self.driver.execute_script(script, *arguments)

    def log_in(self, address: str, name: str, password: str) -> None:
        """Open a page that wants staff, and go through the admin's form to it."""
        self.open(address)
        self.find("#id_username").send_keys(name)
        self.find("#id_password").send_keys(password)
        self.find("[type=submit]").click()
        wait_until(lambda: self.driver.current_url == address)

    def resize(self, width: int, height: int = 900) -> None:
        """Make the visible part of the page so wide and high, in CSS pixels."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)

    def prefer(self, **features: str) -> None:
        """Set what a style sheet sees of the user's wishes, as ``color_scheme="dark"``."""
        found = [
            {"name": f"prefers-{name.replace('_', '-')}", "value": value}
            for name, value in features.items()
        ]
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": found})

    def complaints(self) -> list[str]:
        """Return what the browser has complained of since it was asked last: errors, violations."""
        found: list[dict[str, Any]] = self.driver.get_log("browser")  # type: ignore[no-untyped-call]
        return [entry["message"] for entry in found]


@contextlib.contextmanager
def chromium() -> Iterator[Browser]:
    """Run a browser with a profile of its own until the end of the block."""
    assert CHROMIUM is not None
    options = ChromeOptions()
    options.binary_location = CHROMIUM
    with tempfile.TemporaryDirectory(prefix="browser-", ignore_cleanup_errors=True) as profile:
        for argument in (
            "--headless=new",
            f"--user-data-dir={profile}",
            "--window-size=1280,900",
            # /dev/shm is small in containers.
            "--disable-dev-shm-usage",
            "--disable-gpu",
            "--no-first-run",
            "--disable-background-networking",
            "--disable-component-update",
            # Chromium's sandbox refuses to be set up by root.
            *(["--no-sandbox"] if os.geteuid() == 0 else []),
        ):
            options.add_argument(argument)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
        driver = Chrome(options=options, service=ChromeService(DRIVER))
        try:
            yield Browser(driver)
        finally:
            driver.quit()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """A browser for the tests of a module."""
    if reason := missing():
        pytest.skip(reason)
    with chromium() as started:
        yield started
