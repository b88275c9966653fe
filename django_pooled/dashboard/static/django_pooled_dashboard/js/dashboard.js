/* The page: asks for figures, keeps them, shows them. */
"use strict";

Pools.REASONS = {
  unreachable: "The site cannot be reached.",
  slow: "The site does not answer: it is stopped, or all its threads are busy.",
  failing: "The site answers with an error.",
  late: "No answer has come.",
  "signed out": "You are signed out, or no longer allowed to watch. Load the page again to sign in.",
};

/** Milliseconds without an answer after which the figures are called old. */
Pools.STALE = 3000;

Pools.Dashboard = class {
  constructor(root) {
    this.root = root;
    this.title = document.title;
    this.sampler = new Pools.Sampler();
    this.history = new Pools.History();
    this.heardAt = null;
    this.reason = null;
    this.paused = false;
    this.find = (selector) => root.querySelector(selector);
    this.charts = this.makeCharts();
    this.workers = new Pools.Workers(this.find(".workers"));
    this.poll = new Pools.Poll(
      { snapshot: root.dataset.snapshot, pass: root.dataset.passes },
      root.dataset.pass,
      { heard: (snapshot) => this.heard(snapshot), missed: (reason) => this.missed(reason) },
    );
    this.past = new Pools.Past(this.poll, root.dataset.past, this.find(".incidents"));
    Pools.palette.listeners.push(() => {
      for (const chart of this.charts) chart.redraw();
      this.workers.redraw();
    });
    this.find(".pause").addEventListener("click", () => this.pause(!this.paused));
    for (const radio of root.querySelectorAll('[name="window"]')) {
      radio.addEventListener("change", () => this.draw());
    }
    document.addEventListener("pools:mark", (event) => {
      this.history.mark(Date.now() / 1e3, String(event.detail.label));
      this.draw();
    });
  }

  get window() {
    return Number(this.find('[name="window"]:checked').value);
  }

  start() {
    this.poll.run();
    this.past.load(this.history).then(() => this.draw());
    setInterval(() => this.past.refresh(), Pools.Past.EVERY);
    setInterval(() => this.tellAge(), 1000);
  }

  makeCharts() {
    const chart = (name, options) => new Pools.Chart(this.find(`[data-chart="${name}"]`), options);
    return [
      chart("connections", {
        lines: Pools.connectionLines(),
        stacked: 3,
        height: 240,
        whole: true,
        floor: 2,
        format: Pools.format.count,
      }),
      chart("waits", {
        lines: [
          Pools.line("p99", "p99", "p99", { width: 2 }),
          Pools.line("p95", "p95", "p95", { width: 2, dash: [7, 3] }),
          Pools.line("p50", "p50", "p50", { width: 2, dash: [2, 3] }),
          Pools.line("longest", "waiting now", "waiting", { width: 2, dash: [10, 3, 2, 3] }),
        ],
        height: 170,
        log: 0.00003,
        format: Pools.format.duration,
      }),
      chart("checkouts", {
        lines: [Pools.line("checkouts", "checkouts a second", "flow", { fill: "flow-fill", width: 2 })],
        height: 170,
        floor: 5,
        format: Pools.format.rate,
      }),
      chart("failures", {
        lines: [Pools.line("failures", "failed a second", "waiting", { fill: "waiting" })],
        bars: true,
        height: 170,
        floor: 1,
        format: Pools.format.rate,
      }),
      chart("restarts", {
        lines: [Pools.line("restarts", "restarts a second", "restarts", { fill: "restarts" })],
        bars: true,
        height: 110,
        floor: 1,
        format: Pools.format.rate,
      }),
    ];
  }

  heard(snapshot) {
    const now = Date.now() / 1e3;
    const sample = this.sampler.take(snapshot, now);
    const { time, ...columns } = sample;
    this.history.push(time, { ...columns, ...Pools.Workers.columns(this.sampler.snapshots) });
    this.sample = sample;
    this.poll.calm = snapshot.status !== "critical";
    if (!this.paused) this.show();
    this.heardAt = now;
    this.reason = null;
    this.root.classList.remove("empty");
    this.tellAge();
    document.dispatchEvent(new CustomEvent("pools:snapshot", { detail: { snapshot, sample } }));
  }

  missed(reason) {
    if (this.reason !== reason) {
      document.dispatchEvent(new CustomEvent("pools:stale", { detail: { reason } }));
    }
    this.reason = reason;
    this.history.gap(Date.now() / 1e3);
    if (!this.paused) this.draw();
    this.tellAge();
  }

  show() {
    const { snapshots } = this.sampler;
    const state = Pools.panels.state(snapshots);
    this.tellState(state);
    Pools.panels.tiles(this.root, this.sample, snapshots);
    Pools.panels.servers(this.find(".servers"), snapshots);
    Pools.panels.restarts(this.find(".counts"), snapshots);
    Pools.panels.holders(this.find(".holders"), snapshots);
    Pools.panels.processes(this.find(".processes"), snapshots, this.sampler);
    Pools.text(this.find(".hosts"), snapshots.map((snapshot) => snapshot.host).sort().join(", "));
    this.draw();
  }

  draw() {
    const now = Date.now() / 1e3;
    for (const chart of this.charts) chart.show(this.history, now, this.window);
    this.workers.show(this.sampler.snapshots, this.history, now, this.window);
  }

  tellState({ status, sentence, notes }) {
    const state = this.find(".state");
    state.dataset.status = status;
    // The fault in large letters, its cause in smaller ones.
    const end = sentence.search(/(?<=\.) (?=[A-Z])/);
    const [what, why] = end < 0 ? [sentence, ""] : [sentence.slice(0, end), sentence.slice(end)];
    const box = this.find(".sentence");
    box.classList.toggle("long", what.length > 90);
    Pools.refill(box, [what, Pools.make("span", "why", why)]);
    Pools.refill(this.find(".notes"), notes.map((note) => Pools.make("li", "", note)));
    document.title = `${status === "fine" ? "" : "● "}${this.title}`;
    this.announce(sentence);
  }

  /** Have it read out, unless only its numbers differ from what was read out last. */
  announce(sentence) {
    const shape = sentence.replace(/[\d.,]+/g, "#");
    if (shape === this.announced) return;
    this.announced = shape;
    Pools.text(this.find(".announcement"), sentence);
  }

  /** Say how old the figures are; the charts' edge moves on while answers stay away. */
  tellAge() {
    const age = this.heardAt === null ? null : Date.now() / 1e3 - this.heardAt;
    const old = age === null ? this.reason !== null : age * 1e3 > Pools.STALE;
    const stale = old || this.reason === "signed out";
    this.root.classList.toggle("stale", stale);
    const notice = this.find(".stale-notice");
    notice.hidden = !stale;
    if (stale) {
      const reason = Pools.REASONS[this.reason || "late"];
      const since = this.heardAt === null ? "" : ` What is shown is of ${Pools.format.clock(this.heardAt)}, `;
      const ago = this.heardAt === null ? "" : `${Pools.format.age(age)} ago.`;
      Pools.text(notice, `${reason}${since}${ago}`);
      this.announce(reason);
    }
    const clock = this.heardAt === null ? Pools.format.NONE : Pools.format.clock(this.heardAt);
    Pools.text(this.find(".clock"), clock);
    Pools.text(this.find(".live"), stale ? "no answer since" : this.paused ? "paused, last answer" : "live");
  }

  /** Hold the picture still, and go on collecting figures. */
  pause(paused) {
    this.paused = paused;
    const button = this.find(".pause");
    button.setAttribute("aria-pressed", String(paused));
    this.root.classList.toggle("paused", paused);
    this.tellAge();
    if (!paused && this.sample) this.show();
  }
};

Pools.palette.follow();
Pools.page = new Pools.Dashboard(document.getElementById("pools"));
Pools.page.start();
