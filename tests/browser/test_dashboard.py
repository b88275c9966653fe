"""The page of the pools in a real browser, served by gunicorn's workers from a real server."""

from __future__ import annotations

import os
import signal
import time
from typing import TYPE_CHECKING, Any

import pytest

from django_pooled.poolstats.processes.collect import collect
from django_pooled.stats.snapshot import BOUNDS, Histogram
from embedded_postgres import free_port
from tests.browser import chromium as browsers
from tests.browser.chromium import browser, wait_until
from tests.servers.fault_proxy import FaultProxy
from tests.sites.dashboard import running
from tests.support.publisher import Publisher

if TYPE_CHECKING:
    from collections.abc import Iterator

    from embedded_postgres import EmbeddedServer
    from tests.browser.chromium import Browser
    from tests.sites.dashboard.running import Site

__all__ = ["browser"]

pytestmark = pytest.mark.skipif(
    bool(browsers.missing()), reason=browsers.missing() or "there is one"
)


@pytest.fixture(scope="module")
def server(private_server: EmbeddedServer) -> EmbeddedServer:
    """A server on which nobody else has sessions, since they are counted."""
    return private_server


@pytest.fixture(scope="module")
def between(server: EmbeddedServer) -> Iterator[FaultProxy]:
    """The proxy through which the site reaches its server."""
    with FaultProxy(server.host, server.port, listen=free_port()) as made:
        yield made


@pytest.fixture(scope="module")
def url(server: EmbeddedServer, between: FaultProxy) -> Iterator[str]:
    """The address of the site's database, behind the proxy."""
    with running.database(server, "dashboard") as found:
        yield found.replace(f":{server.port}/", f":{between.port}/")


@pytest.fixture(scope="module")
def site(url: str) -> Iterator[Site]:
    """A site with two workers, each with a pool of two connections and threads to spare."""
    with running.serving(url) as made:
        yield made


@pytest.fixture(scope="module")
def signed_in(browser: Browser, site: Site) -> Browser:
    """The browser of somebody who is on the staff of the site."""
    browser.log_in(f"{site.address}/pools/", "ada", running.PASSWORD)
    # The login page is the admin's, and so is what the browser finds wrong with it.
    browser.complaints()
    return browser


@pytest.fixture
def page(signed_in: Browser, site: Site, between: FaultProxy) -> Iterator[Browser]:
    """The page, loaded anew in a wide window, with first figures; no complaint in the end."""
    signed_in.resize(1280)
    signed_in.prefer()
    load(signed_in, site)
    yield signed_in
    between.forward()
    assert signed_in.complaints() == []


def load(browser: Browser, site: Site) -> None:
    browser.open(f"{site.address}/pools/")
    wait_until(lambda: "empty" not in classes(browser))


def classes(page: Browser) -> list[str]:
    return str(page.find("#pools").get_attribute("class")).split()


def sentence(page: Browser) -> str:
    return page.text(".sentence")


def status(page: Browser) -> str:
    return str(page.find(".state").get_attribute("data-status"))


def figure(page: Browser, name: str) -> str:
    return page.text(f'[data-figure="{name}"]')


def picture(page: Browser, chart: str) -> str:
    """Return what a chart's canvas shows."""
    script = "return document.querySelector(arguments[0]).toDataURL()"
    return str(page.run(script, f'[data-chart="{chart}"] canvas'))


def highest(page: Browser, column: str) -> float:
    script = "return Math.max(...Pools.page.history.column(arguments[0]))"
    return float(page.run(script, column))


# What it shows.


def test_the_policy_of_the_site_is_strict_and_the_browser_keeps_to_it(
    page: Browser, site: Site
) -> None:
    assert "default-src 'self'" in page.run(
        "return fetch(location).then(answer => answer.headers.get('Content-Security-Policy'))"
    )
    page.run(
        "const script = document.createElement('script');"
        "script.textContent = 'window.broken = true'; document.head.append(script)"
    )
    assert page.run("return window.broken === undefined")
    [complaint] = page.complaints()
    assert "Content Security Policy" in complaint


def test_a_calm_site_is_told_so(page: Browser, site: Site) -> None:
    wait_until(lambda: sentence(page).startswith("All is well"))
    assert status(page) == "fine"
    assert page.driver.title == "Pools"
    assert "PostgreSQL" in page.text(".servers")
    assert "connections used" in page.text(".servers")


def has(text: str, words: str) -> bool:
    """Tell whether the words are there; where they are not, a failure shows the whole text."""
    assert words in text
    return True


def test_charts_and_figures_move_when_load_is_put_on(page: Browser, site: Site) -> None:
    before = {chart: picture(page, chart) for chart in ("connections", "waits", "checkouts")}
    with site.load("/hold/0.05", clients=3):
        wait_until(lambda: float(figure(page, "checkouts")) > 5)
        wait_until(lambda: figure(page, "p95").endswith("s"))
        wait_until(lambda: highest(page, "in_use") >= 1)
        wait_until(lambda: len(page.find_all(".worker canvas")) == 2)
        wait_until(lambda: has(page.text(".servers"), "in 2 processes on"))
    for chart, seen in before.items():
        assert picture(page, chart) != seen
    rows = page.run(
        "return [...document.querySelectorAll('.processes tbody tr')]"
        ".map(row => [...row.cells].map(cell => cell.textContent))"
    )
    assert [row[1:3] for row in rows] == [["gunicorn", "default"]] * 2
    assert page.text(".hosts") != ""


def test_the_sentence_changes_when_the_pool_is_saturated_and_back(
    page: Browser, site: Site
) -> None:
    with site.load("/hold/1", clients=10):
        wait_until(lambda: "waiter" in sentence(page) and status(page) == "critical")
        assert page.driver.title == "● Pools"
        wait_until(lambda: int(figure(page, "waiting")) > 0)
        assert "waiter" in page.text(".announcement")
        # The cause stands by itself, below what it causes.
        wait_until(lambda: page.text(".why").startswith("The trouble is the"))
        assert sentence(page).endswith(page.text(".why"))
        assert "stale" not in classes(page)
    wait_until(lambda: sentence(page).startswith("All is well"))
    assert highest(page, "waiting") > 0


def test_opened_after_an_incident_the_page_shows_it(page: Browser, site: Site) -> None:
    page.open("about:blank")
    with site.load("/hold/1", clients=10):
        time.sleep(8)  # An interval of five seconds with waiters from its begin to its end.
    load(page, site)

    def told() -> str:
        return page.text(".incidents")

    wait_until(lambda: 'waiters for "default"' in told())
    assert told().startswith("critical")
    assert " · waiting" in told()
    assert highest(page, "waiting") > 0
    # More of the past than the page is old.
    assert page.run("return Date.now() / 1e3 - Pools.page.history.times[0]") > 5
    wait_until(lambda: ".hold" in page.text(".holders"))


def test_restarts_and_lost_commits_are_counted(page: Browser, site: Site) -> None:
    site.text("/conflict")
    site.text("/lost")
    wait_until(lambda: int(figure(page, "restarts")) >= 1)
    wait_until(lambda: int(figure(page, "lost")) >= 1)
    told = page.text(".counts")
    assert "x serialization failure (40001)" in told
    assert "_again restarted" in told
    assert "COMMIT answer lost, found" in told


# Trouble.


def test_a_process_that_does_not_answer_is_listed(page: Browser, site: Site) -> None:
    # One more of this site's, and one of another's, which is none of this page's business.
    known = collect(site.stats_dir).reports[0].pools[0]
    own = {"server": known.server, "site": known.site}
    publisher = Publisher(site.stats_dir, own)
    stranger = Publisher(site.stats_dir, {**own, "site": "0dd51de5"})
    try:
        wait_until(lambda: str(publisher.pid) in page.text(".processes"))
        assert str(stranger.pid) not in page.text(".processes")
        publisher.freeze()
        wait_until(lambda: f"{publisher.pid}does not answer" in page.text(".processes"))
        assert status(page) == "warning"
        assert f"Process {publisher.pid} does not answer" in page.text(".state")
        assert "stale" not in classes(page)
    finally:
        publisher.close()
        stranger.close()


def test_an_outage_shows_in_the_tile_and_the_chart_of_failures(
    page: Browser, site: Site, between: FaultProxy
) -> None:
    before = picture(page, "failures")
    between.down()
    between.cut()
    with site.load("/hold/0", 3):
        # Checkouts of this site have 20 seconds.
        wait_until(lambda: float(figure(page, "failures")) > 0, timeout=90)
        assert "alert" in str(page.find('[data-tile="failures"]').get_attribute("class"))
        wait_until(lambda: status(page) == "critical")
    assert picture(page, "failures") != before
    between.forward()
    with site.load("/hold/0", 1):
        wait_until(lambda: figure(page, "failures") == "0")
        wait_until(lambda: "connected again since" in page.text(".notes"))


def test_waiters_show_in_the_chart_of_waits_while_they_wait(page: Browser, site: Site) -> None:
    with site.load("/hold/3", 12):
        wait_until(lambda: highest(page, "longest") > 1.0)
        assert page.text('[data-chart="waits"] .legend li:last-child').startswith("waiting now")
    wait_until(lambda: figure(page, "waiting") == "0")
    latest = "return Pools.page.history.column('longest').at(-1)"
    wait_until(lambda: page.run(latest) is None)


def test_the_page_goes_on_while_the_server_is_frozen(
    page: Browser, site: Site, between: FaultProxy
) -> None:
    between.freeze()
    # Of a connection that is there no answer comes; one that has to be opened times out.
    wait_until(lambda: has(page.text(".servers"), "does not answer: "))
    clock = page.text(".clock")
    wait_until(lambda: page.text(".clock") not in ("", clock))
    assert status(page) == "critical"
    assert "stale" not in classes(page)
    between.forward()
    wait_until(lambda: "connections used" in page.text(".servers"))
    wait_until(lambda: sentence(page).startswith("All is well"))


def test_figures_are_called_old_while_the_site_is_stopped_and_when_it_is_gone(
    browser: Browser, page: Browser, url: str
) -> None:
    with running.serving(url) as site:
        # A cookie knows no ports: whoever is signed in there is signed in here.
        load(browser, site)
        browser.run("Pools.Poll.PATIENCE = 500; Pools.STALE = 1500")
        group = os.getpgid(site.pid)
        os.killpg(group, signal.SIGSTOP)
        try:
            wait_until(lambda: "stale" in classes(browser))
            notice = browser.find(".stale-notice")
            assert notice.is_displayed()
            assert "does not answer" in notice.text
            assert "What is shown is of" in notice.text
            assert not browser.find(".state").is_displayed()
            assert "does not answer" in browser.text(".announcement")
        finally:
            os.killpg(group, signal.SIGCONT)
        wait_until(lambda: "stale" not in classes(browser))
        assert browser.find(".state").is_displayed()
        assert not notice.is_displayed()
    wait_until(lambda: "cannot be reached" in browser.text(".stale-notice"))
    # The gap is one, however long it lasts.
    ends = "return Pools.page.history.column('size').slice(-2).map(size => size === null)"
    assert browser.run(ends) == [False, True]
    browser.open("about:blank")
    assert all("ERR_" in complaint for complaint in browser.complaints())


def test_a_pass_that_is_refused_is_renewed_and_who_is_signed_out_is_told(page: Browser) -> None:
    page.run("Pools.page.poll.pass = 'none'")
    wait_until(lambda: page.run("return Pools.page.poll.pass") != "none")
    clock = page.text(".clock")
    wait_until(lambda: page.text(".clock") != clock)
    assert "stale" not in classes(page)
    kept = page.driver.get_cookies()
    page.driver.delete_all_cookies()
    try:
        page.run("Pools.page.poll.pass = 'none'")
        wait_until(lambda: "You are signed out" in page.text(".stale-notice"))
    finally:
        for cookie in kept:
            page.driver.add_cookie(cookie)
    page.open("about:blank")
    refused = [complaint for complaint in page.complaints() if "403" not in complaint]
    assert refused == []


def test_a_pass_is_renewed_before_it_ends_and_later_in_trouble(page: Browser) -> None:
    first = page.run("return Pools.page.poll.pass")
    page.run("Pools.Poll.RENEW = 500; Pools.page.poll.renewed = performance.now()")
    second = wait_until(lambda: page.run("return Pools.page.poll.pass") != first and "another")
    assert second
    page.run("Pools.Poll.RENEW = 20000; Pools.page.poll.renewed = performance.now() - 30000")
    page.run("Object.defineProperty(Pools.page.poll, 'calm', {get: () => false, set() {}})")
    third = page.run("return Pools.page.poll.pass")
    many = page.run("return Pools.page.history.times.length")
    wait_until(lambda: page.run("return Pools.page.history.times.length") > many + 1)
    assert page.run("return Pools.page.poll.pass") == third


def test_a_proxy_that_wants_cookies_gets_them(page: Browser) -> None:
    # The site itself wants none: the browser stands in for the proxy before it.
    page.run(
        "const real = window.fetch; window.asked = [];"
        "window.fetch = (url, options) => { window.asked.push(options.credentials);"
        " return options.credentials === 'omit'"
        " ? Promise.resolve(new Response('', {status: 401})) : real(url, options) }"
    )
    wait_until(lambda: page.run("return window.asked.length") > 2)
    assert page.run("return window.asked.slice(0, 3)") == ["omit", "same-origin", "same-origin"]
    clock = page.text(".clock")
    wait_until(lambda: page.text(".clock") != clock)
    assert "stale" not in classes(page)


def test_an_answer_that_breaks_the_script_does_not_end_the_polling(page: Browser) -> None:
    page.run("Pools.page.sampler.take = () => { throw new Error('broken') }")
    wait_until(lambda: "No answer has come." in page.text(".stale-notice"))
    page.run("delete Pools.page.sampler.take")
    wait_until(lambda: "stale" not in classes(page))
    assert all("broken" in complaint for complaint in page.complaints())


# Whoever looks.


def test_everything_can_be_done_by_keyboard(page: Browser) -> None:
    def focused() -> str:
        script = "const it = document.activeElement; return it.className || it.value || it.tagName"
        return str(page.run(script))

    page.press("Tab")
    assert focused() == "120"
    page.press("ArrowRight")
    assert page.run("return Pools.page.window") == 300
    page.press("Tab")
    assert focused() == "pause"
    page.press(" ")
    assert page.find(".pause").get_attribute("aria-pressed") == "true"
    assert "paused" in page.text(".live")
    page.press(" ")
    assert page.find(".pause").get_attribute("aria-pressed") == "false"
    page.press("Tab")
    assert focused() == "SUMMARY"
    page.press("Enter")
    table = '[data-chart="connections"] table'
    wait_until(lambda: "from" in page.text(table))
    assert page.find(table).is_displayed()
    heads = [cell.text for cell in page.find_all(f"{table} [scope=col]")]
    assert heads == ["from", "in use", "idle", "waiting", "limit"]
    assert len(page.find_all(f"{table} [scope=row]")) >= 1
    page.press("Tab")
    assert focused() == "scroll"


def test_a_paused_page_stands_still_and_goes_on_collecting(page: Browser) -> None:
    page.find(".pause").click()
    before = picture(page, "connections")
    many = page.run("return Pools.page.history.times.length")
    wait_until(lambda: page.run("return Pools.page.history.times.length") > many + 1)
    assert picture(page, "connections") == before
    page.find(".pause").click()
    assert picture(page, "connections") != before


@pytest.mark.parametrize("width", [390, 768, 1180, 1280, 2560])
def test_no_row_of_tiles_is_shorter_than_the_others(page: Browser, width: int) -> None:
    page.resize(width)
    tops = page.run(
        "return [...document.querySelectorAll('.tiles > div')].map(tile => tile.offsetTop)"
    )
    assert len({tops.count(top) for top in tops}) == 1, tops


@pytest.mark.parametrize("width", [320, 390, 768, 1280, 2560])
def test_nothing_has_to_be_scrolled_sideways(page: Browser, width: int) -> None:
    page.resize(width)
    wait_until(lambda: page.run("return document.documentElement.scrollWidth <= window.innerWidth"))
    # A chart follows the width of its panel.
    wait_until(
        lambda: page.run(
            "return Pools.page.charts.every(chart => chart.plot.width === chart.box.clientWidth)"
        )
    )


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_texts_stand_out_from_what_is_behind_them(page: Browser, scheme: str) -> None:
    page.prefer(color_scheme=scheme)
    colours = page.run(
        "const style = getComputedStyle(document.documentElement);"
        "return Object.fromEntries(arguments[0].map(name =>"
        " [name, style.getPropertyValue('--' + name).trim()]))",
        [*BEHIND, *TEXTS, *DRAWN],
    )
    assert (luminance(colours["paper"]) < 0.1) == (scheme == "dark")
    # https://www.w3.org/TR/WCAG22/#contrast-minimum and #non-text-contrast
    for behind in BEHIND:
        for text in TEXTS:
            assert contrast(colours[text], colours[behind]) >= 4.5, (text, behind)
    for drawn in DRAWN:
        assert contrast(colours[drawn], colours["panel"]) >= 3.0, drawn


BEHIND = ("paper", "panel")
TEXTS = ("ink", "faint", "fine", "warning", "critical")
DRAWN = ("in-use", "waiting", "limit", "p50", "p95", "p99", "flow", "restarts")


def luminance(colour: str) -> float:
    def linear(value: int) -> float:
        share = value / 255
        return share / 12.92 if share <= 0.04045 else ((share + 0.055) / 1.055) ** 2.4

    red, green, blue = (linear(int(colour[i : i + 2], 16)) for i in (1, 3, 5))
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one: str, other: str) -> float:
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def test_the_charts_turn_dark_while_the_page_is_open(page: Browser) -> None:
    page.prefer(color_scheme="light")
    wait_until(lambda: page.run("return Pools.palette.colours.panel") == "#ffffff")
    page.prefer(color_scheme="dark")
    wait_until(lambda: page.run("return Pools.palette.colours.panel") == "#181c23")


def test_nothing_moves_by_itself_for_whoever_wants_it_so(page: Browser) -> None:
    animations = "return document.getAnimations().length"
    page.prefer(reduced_motion="no-preference")
    assert page.run(animations) > 0
    page.prefer(reduced_motion="reduce")
    wait_until(lambda: page.run(animations) == 0)


def test_numbers_alone_are_not_read_out_again(page: Browser) -> None:
    said = page.run(
        "return ['3 waiters', '4 waiters', 'All is well'].map(sentence => {"
        " Pools.page.announce(sentence);"
        " return document.querySelector('.announcement').textContent })"
    )
    assert said == ["3 waiters", "3 waiters", "All is well"]


# Extensions.


def test_an_extension_hears_of_each_snapshot_and_can_mark_a_moment(page: Browser) -> None:
    page.run(
        "window.heard = [];"
        "document.addEventListener('pools:snapshot', event => window.heard.push(event.detail))"
    )
    wait_until(lambda: page.run("return window.heard.length") > 1)
    detail = page.run("return window.heard[1]")
    snapshot = {"host", "taken", "status", "sentence", "processes", "servers"}
    assert snapshot <= set(detail["snapshot"])
    assert set(detail["sample"]) == {
        *("time", "in_use", "idle", "waiting", "size", "max_size"),
        *("longest", "checkouts", "failures", "failing", "restarts", "p50", "p95", "p99"),
    }
    page.run("document.dispatchEvent(new CustomEvent('pools:mark', {detail: {label: 'restart'}}))")
    assert page.run("return Pools.page.history.marks[0].label") == "restart"


# What is computed of the answers.


def test_quantiles_are_those_of_the_reports(page: Browser) -> None:
    histogram = Histogram()
    for seconds in (0.00005, 0.0002, 0.0002, 0.003, 0.04, 0.5, 6.0, 70.0, 101.0):
        histogram.record(seconds)
    for share in (0.01, 0.5, 0.75, 0.95, 1.0):
        found = page.run(
            "return Pools.histogram.quantile(...arguments)",
            histogram.buckets,
            list(BOUNDS),
            share,
            histogram.longest,
        )
        assert found == pytest.approx(histogram.quantile(share))
    assert page.run("return Pools.histogram.quantile([0, 0], [1], 0.5)") is None


def samples(page: Browser, *answers: tuple[float, dict[str, Any]]) -> list[dict[str, Any]]:
    """Return what the page makes of answers that come at these times."""
    script = (
        "const sampler = new Pools.Sampler();"
        "return arguments[0].map(([time, snapshot]) => sampler.take(snapshot, time))"
    )
    found: list[dict[str, Any]] = page.run(script, [list(answer) for answer in answers])
    return found


def answer(host: str, taken: float, **pids: int) -> dict[str, Any]:
    """Return a snapshot of processes that have made so many checkouts."""
    processes = [
        {
            "pid": int(pid[1:]),
            "host": host,
            "command": "gunicorn",
            "pools": [
                {
                    "id": f"{host} {pid}",
                    "alias": "default",
                    "server": "db",
                    "age": 500.0,
                    "checkouts": checkouts,
                    "in_use": 1,
                    "idle": 2,
                    "waiting": 0,
                    "size": 3,
                    "max_size": 4,
                }
            ],
        }
        for pid, checkouts in pids.items()
    ]
    return {"host": host, "taken": taken, "bounds": [1.0], "processes": processes}


def test_rates_are_those_between_two_answers_of_the_same_process(page: Browser) -> None:
    found = samples(
        page,
        (10.0, answer("a", 10.0, p1=100)),
        (12.0, answer("a", 12.0, p1=120)),
        # The same look once more, from the worker's memory.
        (12.5, answer("a", 12.0, p1=120)),
        # Another process has its pid, and one that has been there for long was silent so far.
        (14.0, answer("a", 14.0, p1=6, p2=1000)),
        (16.0, answer("a", 16.0, p1=6, p2=1010)),
    )
    assert [sample["checkouts"] for sample in found] == [None, 10, 10, 3, 5]
    assert [sample["in_use"] for sample in found] == [1, 1, 1, 2, 2]


def test_hosts_that_answer_in_turn_are_added_up_and_let_go_of(page: Browser) -> None:
    found = samples(
        page,
        (10.0, answer("a", 10.0, p1=0)),
        (11.0, answer("b", 11.0, p1=0)),
        (12.0, answer("a", 12.0, p1=20)),
        (13.0, answer("b", 13.0, p1=10)),
        (28.5, answer("b", 28.5, p1=10)),
    )
    assert [sample["size"] for sample in found] == [3, 6, 6, 6, 3]
    assert [sample["checkouts"] for sample in found] == [None, None, 10, 15, 0]


def test_what_is_older_than_a_quarter_of_an_hour_is_forgotten(page: Browser) -> None:
    found = page.run(
        "const history = new Pools.History();"
        "history.mark(5, 'old');"
        "for (let time = 0; time < 2000; time += 1)"
        " history.push(time, time < 500 ? {x: time, gone: 1} : {x: time});"
        "return [history.times.length, history.times[0], history.column('x')[0],"
        " history.columns.has('gone'), history.marks.length]"
    )
    assert 900 <= found[0] <= 961
    assert found[1] == found[2] == 2000 - found[0]
    assert found[3:] == [False, 0]
