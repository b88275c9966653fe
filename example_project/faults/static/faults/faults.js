// Presses the buttons without leaving the page, and shows what comes of it, twice a second.
"use strict";

(() => {
  const EVERY = 500; // milliseconds
  const PATIENCE = 4000; // milliseconds, after which an answer is not waited for any longer
  const TO_THE_SERVER = ["freeze", "thaw", "restart", "kill"];
  const SHOWN = 6; // events
  const panel = document.querySelector("[data-state]");
  const stateLine = document.querySelector("[data-faults-state]");
  const leftLine = document.querySelector("[data-faults-left]");
  const refusal = document.querySelector("[data-faults-refusal]");
  const eventList = document.querySelector("[data-events]");
  const tallyLine = document.querySelector("[data-tallies]");
  const progress = document.querySelector(".drill-progress");
  const buttons = new Map(
    [...document.querySelectorAll("[data-order]")].map((b) => [b.dataset.order, b]),
  );
  const number = new Intl.NumberFormat("en");
  let lastEvent = null; // the time of the newest one that is shown

  async function ask(address, options = {}) {
    const headers = { Accept: "application/json", ...options.headers };
    const response = await fetch(address, {
      ...options,
      headers,
      cache: "no-store",
      signal: AbortSignal.timeout(PATIENCE),
    });
    const answer = await response.json();
    if (!response.ok) throw new Error(answer.error);
    return answer;
  }

  function show(state) {
    const frozen = state.server === "frozen";
    const voting = state.votes !== null && !state.votes.over;
    const held = state.held_left !== null;
    const hostages = held ? `, ${state.held} connections held` : "";
    tell(state.server, `PostgreSQL is ${state.server}${hostages}`);
    // Apart from what is read aloud when it changes.
    const left = Math.ceil(Math.max(state.frozen_left ?? 0, state.held_left ?? 0));
    leftLine.textContent = left > 0 ? `${left} s` : "";
    document.querySelector("[data-not-ours]").hidden = state.ours;
    for (const order of TO_THE_SERVER) buttons.get(order).hidden = !state.ours;
    enable("freeze", state.ours && !frozen);
    enable("thaw", state.ours && frozen);
    enable("restart", state.ours);
    enable("kill", state.ours);
    enable("backends", !frozen);
    enable("hostage", !held);
    enable("release", held);
    enable("cast", !voting);
    if (state.votes !== null) showVotes(state.votes);
    showEvents(state.events);
  }

  function tell(server, text) {
    if (stateLine.textContent !== text) stateLine.textContent = text;
    stateLine.parentElement.dataset.server = server;
  }

  // Not "disabled", which would take the focus away from whoever uses the keyboard.
  function enable(order, possible) {
    buttons.get(order).setAttribute("aria-disabled", String(!possible));
  }

  function showVotes(votes) {
    for (const cell of document.querySelectorAll("[data-votes]")) {
      const value = votes[cell.dataset.votes];
      const isTime = cell.dataset.votes === "longest_pause";
      cell.textContent =
        value === null ? "–" : isTime ? `${value.toFixed(1)} s` : number.format(value);
      cell.parentElement.classList.toggle("is-zero", value === 0);
      cell.parentElement.classList.toggle("is-open", value === null);
    }
    for (const bar of document.querySelectorAll("[data-share]")) {
      bar.style.width = `${(100 * votes[bar.dataset.share]) / votes.total}%`;
    }
    progress.setAttribute("aria-label", `${votes.confirmed} of ${votes.total} votes confirmed`);
    showTallies(votes);
  }

  function showTallies(votes) {
    const names = Object.keys(votes.tallies).sort().reverse();
    if (names.length === 0) return;
    const right = names.every((name) => votes.tallies[name] === votes.counted[name]);
    const pairs = names.map((name) => {
      const [tally, rows] = [votes.tallies[name], votes.counted[name]];
      return `${name} ${number.format(tally)} ${tally === rows ? "=" : "≠"} ${number.format(rows)} rows`;
    });
    const age = votes.over || votes.looked < 2 ? "" : ` (${Math.floor(votes.looked)} s ago)`;
    tallyLine.textContent = `The tallies are ${right ? "right" : "wrong"}${age}: ${pairs.join(", ")}.`;
    tallyLine.dataset.right = String(right);
    tallyLine.dataset.over = String(votes.over);
  }

  function showEvents(events) {
    const newest = events.length ? events[events.length - 1].at : 0;
    if ((lastEvent ?? 0) === newest) {
      lastEvent = newest;
      return;
    }
    for (const event of events) {
      if (lastEvent !== null && event.at > lastEvent && event.mark) {
        document.dispatchEvent(new CustomEvent("pools:mark", { detail: { label: event.mark } }));
      }
    }
    lastEvent = newest;
    eventList.replaceChildren(
      ...events
        .slice(-SHOWN)
        .reverse()
        .map((event) => {
          const item = document.createElement("li");
          const time = document.createElement("time");
          const at = new Date(event.at * 1000);
          time.dateTime = at.toISOString();
          time.textContent = at.toLocaleTimeString("en-GB");
          item.append(time, event.text);
          return item;
        }),
    );
  }

  function wordsOf(error) {
    const silent = error instanceof TypeError || error.name === "TimeoutError";
    return silent ? "The site does not answer" : error.message;
  }

  for (const form of document.querySelectorAll("[data-orders]")) {
    form.addEventListener("submit", async (event) => {
      event.preventDefault();
      const button = event.submitter;
      if (button.getAttribute("aria-disabled") === "true") return;
      const body = new URLSearchParams(new FormData(form));
      refusal.textContent = "";
      try {
        show(await ask(button.formAction, { method: "POST", body }));
      } catch (error) {
        refusal.textContent = `${button.textContent}: ${wordsOf(error)}`;
      }
    });
  }

  async function watch() {
    try {
      show(await ask(panel.dataset.state));
    } catch (error) {
      tell("silent", wordsOf(error));
    }
    setTimeout(watch, EVERY);
  }
  watch();
})();
