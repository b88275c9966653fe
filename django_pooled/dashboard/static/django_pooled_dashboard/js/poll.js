/* Polling: once a second, with a pass that is renewed while the page is watched. */
"use strict";

Pools.Poll = class {
  /**
   * @param {object} urls snapshot and pass
   * @param {string} pass the first one
   * @param {object} hear heard(snapshot), missed(reason)
   */
  constructor(urls, pass, hear) {
    this.urls = urls;
    this.pass = pass;
    this.hear = hear;
    this.renewed = performance.now();
    // A renewal needs the database, and is tried again later.
    this.calm = true;
    // Without cookies no middleware looks a user up in a database that may be away.
    this.credentials = "omit";
    this.every = Pools.Poll.EVERY;
  }

  /** Poll from now on; the next one is due a second after the last has begun. */
  async run() {
    const begun = performance.now();
    try {
      await this.poll();
    } finally {
      const left = this.every - (performance.now() - begun);
      setTimeout(() => this.run(), Math.max(100, left));
    }
    const age = performance.now() - this.renewed;
    if (age > Pools.Poll.RENEW * (this.calm ? 1 : 3)) await this.renew();
  }

  async poll() {
    let answer;
    let snapshot;
    try {
      answer = await this.ask();
      if (answer.ok) snapshot = await answer.json();
    } catch (error) {
      this.hear.missed(error.name === "TimeoutError" ? "slow" : "unreachable");
      return;
    }
    this.every = Pools.Poll.EVERY;
    if (answer.ok) {
      this.hear.heard(snapshot);
    } else if (!Pools.Poll.refuses(answer)) {
      this.hear.missed("failing");
    } else {
      const outcome = await this.renew();
      if (outcome === "refused") this.every = Pools.Poll.RARELY;
      if (outcome !== "renewed") this.hear.missed(outcome === "refused" ? "signed out" : "failing");
    }
  }

  async ask() {
    const answer = await this.fetch(this.urls.snapshot, Pools.Poll.PATIENCE, this.credentials);
    if (this.credentials !== "omit" || !Pools.Poll.refuses(answer)) return answer;
    // A proxy may want a password or a cookie of its own.
    this.credentials = "same-origin";
    return this.fetch(this.urls.snapshot, Pools.Poll.PATIENCE, this.credentials);
  }

  /** Ask for a new pass; with the database away, the old one goes on being used. */
  async renew() {
    this.renewed = performance.now();
    try {
      const answer = await this.fetch(this.urls.pass, Pools.Poll.PATIENCE_FOR_A_PASS, "same-origin");
      if (answer.ok) {
        this.pass = (await answer.json()).pass;
        return "renewed";
      }
      return Pools.Poll.refuses(answer) ? "refused" : "failed";
    } catch {
      return "failed";
    }
  }

  fetch(url, patience, credentials) {
    return fetch(url, {
      headers: { "X-Pools-Pass": this.pass, Accept: "application/json" },
      credentials,
      cache: "no-store",
      redirect: "manual",
      signal: AbortSignal.timeout(patience),
    });
  }
};

/** Whether an answer is a refusal; a redirection leads to a login page. */
Pools.Poll.refuses = (answer) => answer.type === "opaqueredirect" || [401, 403].includes(answer.status);

/** Milliseconds. */
Pools.Poll.EVERY = 1000;
Pools.Poll.RARELY = 10000;
Pools.Poll.PATIENCE = 3000;
Pools.Poll.PATIENCE_FOR_A_PASS = 15000;
Pools.Poll.RENEW = 5 * 60 * 1000;
