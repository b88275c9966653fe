"""The page that shows the vote, the form that takes part in it, and the pages for mistakes."""

from __future__ import annotations

from uuid import UUID, uuid4

from django.http import HttpRequest, HttpResponse, HttpResponseRedirect, JsonResponse
from django.shortcuts import render
from django.urls import reverse
from django.views.decorators.cache import never_cache
from django.views.decorators.csrf import ensure_csrf_cookie

from django_pooled import retry_transaction

from .forms import BallotForm
from .models import Candidate, Tally, Vote

LATEST = 10


class HttpResponseSeeOther(HttpResponseRedirect):
    """After a POST: fetch the page with GET, whatever the client is."""

    status_code = 303


@never_cache  # Back shows a new ballot, not the one that was just used.
@ensure_csrf_cookie
def page(request: HttpRequest) -> HttpResponse:
    """Both tallies and the latest votes; the URLconf has them read from one snapshot."""
    tallies = dict(Tally.objects.values_list("candidate", "count"))
    latest = list(Vote.objects.order_by("-id")[:LATEST])
    if _wants_json(request):
        votes = [
            {"id": vote.pk, "candidate": vote.candidate, "cast_at": vote.cast_at} for vote in latest
        ]
        return JsonResponse({"tallies": tallies, "latest": votes})
    tabs, spaces = tallies[Candidate.TABS], tallies[Candidate.SPACES]
    share = round(100 * tabs / (tabs + spaces)) if tabs + spaces else 50
    context = {
        "candidates": [
            {"value": "tabs", "label": "Tabs", "count": tabs, "share": share},
            {"value": "spaces", "label": "Spaces", "count": spaces, "share": 100 - share},
        ],
        "lead": abs(tabs - spaces),
        "leader": "Tabs" if tabs > spaces else "Spaces",
        "total": tabs + spaces,
        "latest": latest,
        "own": _vote_of(request.GET.get("vote", "")),
        "token": uuid4(),
    }
    return render(request, "votes/page.html", context)


# The page's script sends a vote again until it is answered, with the same key: the answer is stored
# together with the vote. Without the script there is no key. Then the token counts once, so after
# a crash a COMMIT that the server never answered may be done again.
@never_cache
@retry_transaction(idempotency_key="Idempotency-Key", commit_check="idempotent")
def vote(request: HttpRequest) -> HttpResponse:
    """Cast one vote; repeated with the same token, the answer is the same and the count too."""
    if request.method != "POST":
        return problem(request, 405, "Votes are cast with the form on the page.", allow="POST")
    ballot = BallotForm(request.POST)
    if not ballot.is_valid():
        sentences = [str(error) for errors in ballot.errors.values() for error in errors]
        return problem(request, 400, *sentences)
    receipt = Vote.objects.cast(**ballot.cleaned_data)
    if receipt.candidate != ballot.cleaned_data["candidate"]:
        return problem(
            request,
            409,
            f"This ballot has already been counted, for {receipt.candidate}. "
            "Load the page again for a new one.",
        )
    if _wants_json(request):
        return JsonResponse(receipt._asdict())
    return HttpResponseSeeOther(f"{reverse('page')}?vote={receipt.token}")


def problem(
    request: HttpRequest, status: int, *sentences: str, allow: str | None = None
) -> HttpResponse:
    """Answer with what went wrong, as a page or as JSON."""
    response: HttpResponse
    if _wants_json(request):
        response = JsonResponse({"error": " ".join(sentences)}, status=status)
    else:
        response = render(
            request, "votes/problem.html", {"status": status, "sentences": sentences}, status=status
        )
    if allow:
        response["Allow"] = allow
    return response


def bad_request(request: HttpRequest, exception: Exception) -> HttpResponse:
    """Handle what Django itself refuses: an unknown host name, a body that is no form."""
    return problem(request, 400, "The server could not make sense of this request.")


def forbidden(request: HttpRequest, exception: Exception) -> HttpResponse:
    """Handle PermissionDenied."""
    return problem(request, 403, "This is not allowed.")


def csrf_failure(request: HttpRequest, reason: str = "") -> HttpResponse:
    """Handle a form that does not come from our page, or a browser that keeps no cookies."""
    return problem(
        request,
        403,
        "The vote did not come with this site's cookie, so it was not counted.",
        "Allow cookies for this site, load the page again and vote there.",
    )


def not_found(request: HttpRequest, exception: Exception) -> HttpResponse:
    """Handle addresses that lead nowhere."""
    return problem(request, 404, "There is no page at this address.")


def _wants_json(request: HttpRequest) -> bool:
    return request.get_preferred_type(["text/html", "application/json"]) == "application/json"


def _vote_of(token: str) -> Vote | None:
    try:
        found: Vote | None = Vote.objects.filter(token=UUID(token)).first()
    except ValueError:
        return None
    return found
