"""The voting page, driven over HTTP as a visitor's browser or another program would."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING
from uuid import UUID, uuid4

import psycopg
import pytest

from tests.sites.example import FORM, Site, Visitor

if TYPE_CHECKING:
    from collections.abc import Iterator

JSON = "application/json"


@pytest.fixture
def visitor(site: Site) -> Iterator[Visitor]:
    with Visitor(site.port) as someone:
        yield someone


def rows(site: Site) -> tuple[dict[str, int], dict[str, int]]:
    """Return the tallies, and what they should be: the votes counted one by one."""
    url = site.connection_url()
    with psycopg.connect(url) as connection:
        tallies = connection.execute("SELECT candidate, count FROM votes_tally").fetchall()
        counted = connection.execute(
            "SELECT t.candidate, count(v.id) FROM votes_tally t LEFT JOIN votes_vote v "
            "USING (candidate) GROUP BY 1"
        ).fetchall()
    return dict(tallies), dict(counted)


def test_page_shows_both_tallies_and_a_form_that_works_without_scripts(visitor: Visitor) -> None:
    page = visitor.open()

    assert set(page.tallies) == {"tabs", "spaces"}
    assert (page.form.method, page.form.action) == ("post", "/vote/")
    assert page.form.buttons == [("candidate", "tabs"), ("candidate", "spaces")]
    assert UUID(page.form.fields["token"])
    assert "Vote for tabs" in page.text
    assert "Vote for spaces" in page.text
    assert "csrftoken" in visitor.cookies


def test_vote_is_counted_and_leads_back_to_the_page_that_says_so(visitor: Visitor) -> None:
    before = visitor.open().tallies

    answer = visitor.vote("spaces")

    assert answer.status == 303
    page = visitor.open(answer.headers["Location"])
    assert page.tallies == {"tabs": before["tabs"], "spaces": before["spaces"] + 1}
    assert "Your vote for spaces is counted." in page.text
    assert "Spaces yours" in page.text


def test_latest_votes_come_first_and_the_list_stays_short(visitor: Visitor) -> None:
    for candidate in ["tabs"] * 11 + ["spaces"]:
        assert visitor.vote(candidate).status == 303

    latest = [vote["candidate"] for vote in visitor.results()["latest"]]

    assert latest == ["spaces"] + ["tabs"] * 9


def test_every_page_comes_with_a_ballot_of_its_own_that_is_not_cached(visitor: Visitor) -> None:
    answer = visitor.send("GET", "/")

    assert "no-store" in answer.headers["Cache-Control"]
    assert visitor.open().form.fields["token"] != visitor.open().form.fields["token"]


def test_ballot_sent_twice_counts_once_and_is_answered_the_same(
    visitor: Visitor, site: Site
) -> None:
    page = visitor.open()
    page.form.fields["candidate"] = "tabs"

    first, second = visitor.submit(page.form), visitor.submit(page.form)

    assert (first.status, second.status) == (303, 303)
    assert first.headers["Location"] == second.headers["Location"]
    assert visitor.open().tallies["tabs"] == page.tallies["tabs"] + 1
    tallies, counted = rows(site)
    assert tallies == counted


def test_ballot_sent_many_times_at_once_counts_once(site: Site, visitor: Visitor) -> None:
    form = visitor.open().form
    form.fields["candidate"] = "tabs"
    ready = threading.Barrier(12)

    def send(_: int) -> bool:
        with Visitor(site.port) as impatient:
            impatient.cookies = visitor.cookies
            ready.wait()
            answer = impatient.submit(form, Accept=JSON)
            assert answer.status == 200, answer.text
            assert answer.json["token"] == form.fields["token"]
            return bool(answer.json["counted"])

    with ThreadPoolExecutor(12) as threads:
        outcomes = list(threads.map(send, range(12)))

    assert sorted(outcomes) == [False] * 11 + [True]
    tallies, counted = rows(site)
    assert tallies == counted


def test_ballot_used_again_for_the_other_candidate_is_refused_truthfully(visitor: Visitor) -> None:
    form = visitor.open().form
    form.fields["candidate"] = "tabs"
    visitor.submit(form)
    before = visitor.open().tallies

    form.fields["candidate"] = "spaces"
    answer = visitor.submit(form)

    assert answer.status == 409
    assert "already been counted, for tabs" in answer.text
    assert visitor.open().tallies == before


def test_json_client_learns_whether_its_vote_was_counted_now(visitor: Visitor) -> None:
    form = visitor.open().form
    token = form.fields["token"] = str(uuid4())
    form.fields["candidate"] = "spaces"

    first, second = visitor.submit(form, Accept=JSON), visitor.submit(form, Accept=JSON)

    assert (first.status, second.status) == (200, 200)
    assert first.json == {"candidate": "spaces", "token": token, "counted": True}
    assert second.json == {"candidate": "spaces", "token": token, "counted": False}


def test_json_client_reads_the_tallies_that_the_page_shows(visitor: Visitor) -> None:
    assert visitor.results()["tallies"] == visitor.open().tallies


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"candidate": "newlines"}, "Nobody of that name is standing"),
        ({"candidate": "ta\0bs"}, "Nobody of that name is standing"),
        ({"candidate": ""}, "names no candidate"),
        ({"token": ""}, "has no token"),
        ({"token": "1"}, "not a UUID"),
        ({"token": "🗳" * 36}, "not a UUID"),
    ],
)
def test_bad_ballot_is_answered_with_a_readable_400(
    visitor: Visitor, changes: dict[str, str], words: str
) -> None:
    page = visitor.open()
    page.form.fields |= {"candidate": "tabs"} | changes

    answer, as_json = visitor.submit(page.form), visitor.submit(page.form, Accept=JSON)

    assert answer.status == as_json.status == 400
    assert words in answer.text
    assert words in as_json.json["error"]
    assert "Back to the vote" in answer.text
    assert "Traceback" not in answer.text
    assert visitor.open().tallies == page.tallies


def test_empty_ballot_is_answered_with_everything_that_is_missing(visitor: Visitor) -> None:
    form = visitor.open().form
    form.fields = {"csrfmiddlewaretoken": form.fields["csrfmiddlewaretoken"]}

    answer = visitor.submit(form, Accept=JSON)

    assert answer.status == 400
    assert "has no token" in answer.json["error"]
    assert "names no candidate" in answer.json["error"]


@pytest.mark.parametrize("content_type", [FORM, "multipart/form-data; boundary=x", JSON])
def test_body_that_is_no_form_is_answered_with_a_400(visitor: Visitor, content_type: str) -> None:
    visitor.open()
    csrf = visitor.cookies["csrftoken"].value

    answer = visitor.send(
        "POST", "/vote/", b"\xff\xfe{%", Content_Type=content_type, X_CSRFToken=csrf
    )

    assert answer.status == 400
    assert "Traceback" not in answer.text


@pytest.mark.parametrize("without", ["cookie", "field"])
def test_vote_without_csrf_is_refused_with_what_to_do(visitor: Visitor, without: str) -> None:
    page = visitor.open()
    page.form.fields["candidate"] = "tabs"
    if without == "cookie":
        visitor.cookies.clear()
    else:
        del page.form.fields["csrfmiddlewaretoken"]

    answer = visitor.submit(page.form)

    assert answer.status == 403
    assert "load the page again" in answer.text
    assert visitor.open().tallies == page.tallies


def test_vote_by_get_is_refused_and_says_which_method_is_right(visitor: Visitor) -> None:
    answer = visitor.send("GET", "/vote/")

    assert (answer.status, answer.headers["Allow"]) == (405, "POST")
    assert "with the form on the page" in answer.text


def test_unknown_address_and_unknown_host_get_pages_of_the_same_look(visitor: Visitor) -> None:
    elsewhere = visitor.send("GET", "/nowhere")
    stranger = visitor.send("GET", "/", Host="example.com")

    assert (elsewhere.status, stranger.status) == (404, 400)
    assert "Back to the vote" in elsewhere.text
    assert "Back to the vote" in stranger.text


@pytest.mark.parametrize("claim", ["", "?vote=", "?vote=1", f"?vote={UUID(int=1)}"])
def test_page_confirms_no_vote_that_it_does_not_find(visitor: Visitor, claim: str) -> None:
    assert "is counted" not in visitor.open("/" + claim).text


def test_votes_of_many_visitors_at_once_are_all_in_the_tallies(site: Site) -> None:
    before, _ = rows(site)

    def vote(number: int) -> None:
        with Visitor(site.port) as someone:
            for _ in range(5):
                answer = someone.vote(["tabs", "spaces"][number % 2], Accept=JSON)
                assert answer.json["counted"], answer.text

    with ThreadPoolExecutor(16) as threads:
        list(threads.map(vote, range(16)))

    tallies, counted = rows(site)
    assert tallies == counted
    assert tallies == {name: count + 40 for name, count in before.items()}


def test_no_request_fails_when_every_backend_is_ended_under_load(site: Site) -> None:
    before, _ = rows(site)
    over = threading.Event()

    def vote(number: int) -> int:
        cast = 0
        with Visitor(site.port) as someone:
            while not over.is_set():
                answer = someone.vote(["tabs", "spaces"][number % 2], Accept=JSON)
                assert answer.status == 200, answer.text
                cast += answer.json["token"] is not None
        return cast

    with (
        psycopg.connect(site.connection_url(), autocommit=True) as operator,
        ThreadPoolExecutor(8) as threads,
    ):
        voters = [threads.submit(vote, number) for number in range(8)]
        try:
            for _ in range(4):
                ended = 0
                while not ended:
                    ended = operator.execute(
                        "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity "
                        "WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()"
                    ).fetchall()[0][0]
                over.wait(0.5)
        finally:
            over.set()
        acknowledged = sum(voter.result() for voter in voters)

    tallies, counted = rows(site)
    assert tallies == counted
    assert sum(tallies.values()) == sum(before.values()) + acknowledged
