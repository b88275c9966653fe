// Sends a vote until it is answered: with one Idempotency-Key, so that it counts once.
"use strict";

{
  const form = document.querySelector("form[data-resend]");
  const status = document.querySelector("[data-sending]");
  const notice = document.querySelector("[data-sent]");
  const PATIENCE = 10_000; // milliseconds for one answer
  const LONGEST = 5; // seconds between two requests
  const keys = {}; // by candidate: a vote that is sent again is the same vote
  let sending = false;

  const sent = sessionStorage.getItem("sent");
  sessionStorage.removeItem("sent");
  if (notice && sent) {
    notice.textContent = ` It was sent ${sent}, and counted once.`;
  }

  // Such errors pass, and an answer that names a time is an invitation.
  const passes = (response) => response.status >= 500 || response.headers.has("Retry-After");

  async function send(body, key) {
    for (let count = 1, wait = 0.25; ; count += 1, wait = Math.min(2 * wait, LONGEST)) {
      try {
        const response = await fetch(form.action, {
          method: "POST",
          headers: { Accept: "application/json", "Idempotency-Key": `"${key}"` },
          body,
          signal: AbortSignal.timeout(PATIENCE),
        });
        const answer = passes(response) ? null : await response.json();
        // Browsers, too, send a request again whose connection was lost, and tell nobody.
        const replayed = response.headers.get("Idempotency-Replayed") === "true";
        const sent = count > 1 ? `${count} times` : replayed ? "again" : "";
        if (answer !== null) return { sent, ok: response.ok, answer };
      } catch {
        // No answer: the vote is counted, or not. Sent again, it will be.
      }
      status.textContent = `No answer yet. Sending the vote again (${count + 1}) …`;
      await new Promise((done) => setTimeout(done, 1000 * wait * (0.5 + Math.random())));
    }
  }

  form?.addEventListener("submit", async (event) => {
    const candidate = event.submitter?.value;
    // Without a secure context there are no UUIDs: the form works by itself.
    if (!candidate || !globalThis.crypto?.randomUUID) return;
    event.preventDefault();
    if (sending) return;
    sending = true;
    keys[candidate] ??= crypto.randomUUID();
    const body = new URLSearchParams(new FormData(form, event.submitter));
    const { sent, ok, answer } = await send(body, keys[candidate]);
    sending = false;
    if (ok) {
      sessionStorage.setItem("sent", sent);
      location.assign(`?vote=${answer.token}`);
    } else {
      status.textContent = answer.error ?? answer.detail;
    }
  });
}
