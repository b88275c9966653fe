"""The example in a real browser: votes by clicking, and the buttons while somebody watches."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple

import pytest
from selenium.webdriver.common.keys import Keys

from tests.browser.chromium import browser
from tests.sites.example import Site, Visitor, descendants, new_folder, serving
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.browser.chromium import Browser
    from tests.servers.fault_proxy import FaultProxy

__all__ = ["browser"]


class Address(NamedTuple):
    """Where a proxy leads."""

    host: str
    port: int


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    with new_folder() as folder, serving(folder, DJANGO_DEBUG="1") as running:
        yield running


@pytest.fixture
def voter(browser: Browser, site: Site) -> Browser:
    """A browser with the voting page open."""
    browser.resize(1280)
    browser.open(f"http://127.0.0.1:{site.port}/")
    return browser


@pytest.fixture
def operator(browser: Browser, site: Site) -> Browser:
    """A browser that came in by the address that ``serve`` printed."""
    browser.resize(1280)
    browser.open(site.entrance)
    soon(lambda: state(browser) == "PostgreSQL is running")
    return browser


def soon(condition: Callable[[], object]) -> None:
    """Wait for a condition, with patience for a machine that has much else to do."""
    wait_until(condition, 30)


def state(browser: Browser) -> str:
    return browser.text("[data-faults-state]")


def events(browser: Browser) -> str:
    return browser.text("[data-events]")


def figure(browser: Browser, name: str) -> int:
    """Return one of the figures of the votes, 0 while it is not known."""
    shown = browser.text(f"[data-votes={name}]").replace(",", "")
    return int(shown) if shown.isdigit() else 0


def press(browser: Browser, order: str) -> None:
    """Press a button with the keyboard, once it can be pressed."""
    button = browser.find(f"[data-order={order}]")
    soon(lambda: button.get_attribute("aria-disabled") == "false")
    button.send_keys(Keys.ENTER)


def picture(browser: Browser) -> str:
    """Return what the chart of the connections looks like."""
    script = "return document.querySelector('[data-chart=connections] canvas').toDataURL()"
    return str(browser.run(script))


def test_click_on_a_button_of_the_voting_page_is_a_vote(voter: Browser) -> None:
    before = int(str(voter.find("[data-tally=tabs]").get_attribute("data-count")))

    voter.find("button[value=tabs]").click()

    soon(lambda: "Your vote for tabs is counted" in voter.text("main"))
    assert voter.find("[data-tally=tabs]").get_attribute("data-count") == str(before + 1)
    assert voter.complaints() == []


def test_vote_whose_answer_is_lost_is_sent_again_and_counted_once(
    browser: Browser, site: Site, make_proxy: Callable[[Address], FaultProxy]
) -> None:
    proxy = make_proxy(Address("127.0.0.1", site.port))
    browser.resize(1280)
    browser.open(f"http://127.0.0.1:{proxy.port}/")
    before = count(site, "tabs")
    proxy.delay(2.0)

    browser.find("button[value=tabs]").click()
    # It is counted, and the answer is still on its way.
    soon(lambda: count(site, "tabs") == before + 1)
    # Chromium itself sends a request again whose connection is lost, if it gets another one.
    proxy.down()
    proxy.cut()
    soon(lambda: "Sending the vote again" in browser.text("[data-sending]"))
    proxy.delay(0.0)
    proxy.forward()

    soon(lambda: "Your vote for tabs is counted." in browser.text("main"))
    assert re.search(r"It was sent \d+ times, and counted once\.", browser.text(".notice"))
    assert count(site, "tabs") == before + 1
    assert all("net::ERR_CONNECTION" in complaint for complaint in browser.complaints())


def count(site: Site, candidate: str) -> int:
    """Return the tally of a candidate, as the site itself has it."""
    with Visitor(site.port) as someone:
        return someone.open().tallies[candidate]


def test_no_vote_is_lost_or_doubled_while_everything_breaks(operator: Browser, site: Site) -> None:
    still = picture(operator)

    press(operator, "cast")
    soon(lambda: figure(operator, "confirmed") > 20)
    press(operator, "backends")
    soon(lambda: "backends of the site" in events(operator))
    press(operator, "freeze")
    soon(lambda: state(operator) == "PostgreSQL is frozen")
    press(operator, "thaw")
    soon(lambda: state(operator) == "PostgreSQL is running")
    press(operator, "restart")
    soon(lambda: "PostgreSQL is back" in events(operator))
    press(operator, "freeze")
    soon(lambda: state(operator) == "PostgreSQL is frozen")
    # Nothing comes to its end now, so there are transactions that have to be restarted.
    soon(lambda: float(operator.text("[data-figure=in_use]")) > 0)
    press(operator, "kill")
    soon(lambda: re.search("is back.*SIGKILL", events(operator)))
    soon(lambda: state(operator) == "PostgreSQL is running")
    press(operator, "hostage")
    soon(lambda: "8 connections held" in state(operator))
    moved = picture(operator)
    press(operator, "release")
    wait_until(lambda: "Votes: " in events(operator), 60)

    assert figure(operator, "sent") == 500
    assert figure(operator, "confirmed") == figure(operator, "in_table") == 500
    for name in ("lost", "doubled", "refused", "unknown"):
        assert figure(operator, name) == 0
    assert operator.text("[data-tallies]").startswith("The tallies are right: tabs ")
    assert moved != still
    asked = operator.text(".processes tbody")
    assert sum(str(pid) in asked for pid in descendants(site.process.pid)) == 2
    assert float(operator.text("[data-figure=restarts]")) > 0
    assert operator.complaints() == []


def test_button_that_makes_no_sense_now_does_nothing(operator: Browser) -> None:
    before = events(operator)

    operator.find("[data-order=thaw]").click()

    assert operator.find("[data-order=thaw]").get_attribute("aria-disabled") == "true"
    assert operator.text("[data-faults-refusal]") == ""
    assert events(operator) == before


def test_what_the_site_refuses_is_said_beside_the_buttons(operator: Browser) -> None:
    operator.run("document.querySelector('[data-order=thaw]').ariaDisabled = 'false'")

    operator.find("[data-order=thaw]").click()

    soon(lambda: operator.text("[data-faults-refusal]") == "Thaw: PostgreSQL is not frozen.")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_buttons_fit_a_telephone(operator: Browser, scheme: str) -> None:
    operator.prefer(color_scheme=scheme)
    operator.resize(390)

    assert operator.run("return document.documentElement.scrollWidth") <= 390
    for order in ("cast", "freeze", "thaw", "kill", "release"):
        button = operator.find(f"[data-order={order}]")
        assert button.size["height"] >= 32
        assert button.rect["x"] + button.rect["width"] <= 390


def test_page_says_so_when_its_pass_is_gone(operator: Browser) -> None:
    operator.driver.delete_all_cookies()

    soon(lambda: "as staff" in state(operator))
