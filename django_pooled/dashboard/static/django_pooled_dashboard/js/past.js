/* What the processes remember from before the page was opened: figures, and what was wrong. */
"use strict";

Pools.Past = class {
  /**
   * @param {Pools.Poll} poll whose pass is used
   * @param {string} url
   * @param {Element} list shows the incidents
   */
  constructor(poll, url, list) {
    this.poll = poll;
    this.url = url;
    this.list = list;
  }

  /** Ask for the past; null without an answer. */
  async ask() {
    try {
      const answer = await this.poll.fetch(this.url, Pools.Poll.PATIENCE, this.poll.credentials);
      return answer.ok ? await answer.json() : null;
    } catch {
      return null;
    }
  }

  /** Put the past in front of the history, and show the incidents. */
  async load(history) {
    const past = await this.ask();
    if (past === null) return;
    // The browser's clock may be another.
    const shift = Date.now() / 1e3 - past.until;
    history.prepend(past.times.map((time) => time + shift), past.columns);
    this.tell(past, shift);
  }

  async refresh() {
    const past = await this.ask();
    if (past !== null) this.tell(past, Date.now() / 1e3 - past.until);
  }

  tell(past, shift) {
    const { make, format } = Pools;
    const clock = (time) => format.clock(time + shift);
    const items = past.incidents.map(({ begin, end, level, sentence, code }) => {
      const span = end === null ? `${clock(begin)} until now` : `${clock(begin)} to ${clock(end)}`;
      const lasted = end === null ? "" : `, ${format.duration(end - begin)}`;
      const head = make("p", "faint", make("b", level, level), ` ${span}${lasted} · ${code}`);
      return make("li", "", head, make("p", "", sentence));
    });
    const known = `Nothing was wrong with the pools since ${clock(past.begin)}.`;
    Pools.refill(this.list, items.length ? items : [make("li", "faint", known)]);
  }
};

/** Milliseconds after which incidents are asked for again. */
Pools.Past.EVERY = 15 * 1000;
