"""Casts many votes over HTTP, repeats none of them, and looks what became of each."""

from __future__ import annotations

import http.client
import json
import secrets
import threading
import time
from collections import Counter
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode
from uuid import UUID, uuid4

import psycopg

from . import audit

if TYPE_CHECKING:
    from collections.abc import Callable

    from tabs_vs_spaces.address import Address

VOTES = 500
AT_ONCE = 16
ANSWERED_WITHIN = 60.0
"""Seconds after which a vote counts as unanswered; the site itself gives up before."""
LOOK_EVERY = 0.5


class Burst:
    """Votes for tabs and for spaces in turn, each with a token and a connection of its own.

    Args:
        address: Where the site listens.
        url: The site's database, to look into.
        at_once: How many votes may wait for their answers at the same time.
        seconds: Over how long they are spread, so that there is time to do harm meanwhile.
        ended: Called when the last look has been taken.
    """

    def __init__(
        self,
        address: Address,
        url: str,
        *,
        at_once: int,
        seconds: float,
        ended: Callable[[Burst], None],
    ) -> None:
        self._address = address
        self._url = url
        self._ended = ended
        self._apart = seconds / VOTES
        self._ballots = iter([(number, uuid4()) for number in range(VOTES)])
        self._changing = threading.Lock()
        self._sent: set[UUID] = set()
        self._answers: dict[UUID, str] = {}
        self._lost: int | None = None
        self._found: audit.Findings | None = None
        self._found_at = 0.0
        self._began = self._confirmed = self._answered = time.monotonic()
        self._pause = 0.0
        self._over = False
        self._stopped = threading.Event()
        # "serve" ends without waiting for an answer that may not come for a minute.
        senders = [
            threading.Thread(target=self._send_all, name="voter", daemon=True)
            for _ in range(at_once)
        ]
        for sender in senders:
            sender.start()
        threading.Thread(target=self._watch, args=[senders], name="auditor", daemon=True).start()

    @property
    def running(self) -> bool:
        """Whether votes are still sent or looked for."""
        return not self._over and not self._stopped.is_set()

    def stop(self) -> None:
        """Send no more votes."""
        self._stopped.set()

    def figures(self) -> dict[str, Any]:
        """Return what is known by now.

        Of the votes sent, each is ``confirmed`` (answered 200), ``refused`` (503), ``unknown``
        (anything else, or no answer at all) or ``under_way``. ``in_table``, ``lost``, ``doubled``
        and the tallies are from the last look at the table, ``looked`` seconds ago. ``lost`` are
        those that had been confirmed before that look and were not there.
        """
        with self._changing:
            answers = Counter(self._answers.values())
            found, now = self._found, time.monotonic()
            until = self._answered if self._over else now
            return {
                "total": VOTES,
                "sent": len(self._sent),
                "under_way": len(self._sent) - len(self._answers),
                "confirmed": answers["confirmed"],
                "refused": answers["refused"],
                "unknown": answers["unknown"],
                "in_table": len(found.rows) if found else None,
                "lost": self._lost,
                "doubled": found.doubled if found else None,
                "tallies": found.tallies if found else {},
                "counted": found.counted if found else {},
                "looked": now - self._found_at if found else None,
                "seconds": until - self._began,
                "longest_pause": max(self._pause, until - self._confirmed),
                "over": self._over,
            }

    def _send_all(self) -> None:
        while True:
            with self._changing:
                number, token = next(self._ballots, (None, None))
            if number is None or token is None:
                return
            due = self._began + number * self._apart
            if self._stopped.wait(max(0.0, due - time.monotonic())):
                return
            with self._changing:
                self._sent.add(token)
            answer = self._send(token, ["tabs", "spaces"][number % 2])
            with self._changing:
                self._answers[token] = answer
                self._answered = time.monotonic()
                if answer == "confirmed":
                    self._pause = max(self._pause, self._answered - self._confirmed)
                    self._confirmed = self._answered

    def _send(self, token: UUID, candidate: str) -> str:
        # What the cookie and the field have in common is all that the protection asks for, and
        # so no page has to be loaded first.
        secret = secrets.token_hex(16)
        fields = {"token": token, "candidate": candidate, "csrfmiddlewaretoken": secret}
        headers = {
            "Host": "localhost",
            "Accept": "application/json",
            "Content-Type": "application/x-www-form-urlencoded",
            "Cookie": f"csrftoken={secret}",
        }
        connection = self._address.connect(ANSWERED_WITHIN)
        try:
            connection.request("POST", "/vote/", urlencode(fields), headers)
            response = connection.getresponse()
            body = response.read()
        except (OSError, http.client.HTTPException):
            return "unknown"
        finally:
            connection.close()
        if response.status == 503:
            return "refused"
        confirmed = response.status == 200 and json.loads(body)["token"] == str(token)
        return "confirmed" if confirmed else "unknown"

    def _watch(self, senders: list[threading.Thread]) -> None:
        while not self._over and not self._stopped.is_set():
            # Asked before the look, which is then the last one.
            all_answered = not any(sender.is_alive() for sender in senders)
            self._over = self._look() and all_answered
            self._stopped.wait(0 if self._over else LOOK_EVERY)
        if self._over:
            self._ended(self)

    def _look(self) -> bool:
        with self._changing:
            sent = set(self._sent)
            confirmed = {token for token, answer in self._answers.items() if answer == "confirmed"}
        try:
            with audit.connect(self._url) as connection:
                found = audit.look(connection, sent)
        except psycopg.Error:
            # Being away is what this is about; the figures keep their age.
            return False
        with self._changing:
            self._found, self._found_at = found, time.monotonic()
            self._lost = len(confirmed - found.rows.keys())
        return True
