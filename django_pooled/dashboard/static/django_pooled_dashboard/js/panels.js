/* The panels without a chart: the sentence, the key figures, the tables, the server's view. */
"use strict";

Pools.panels = {};

/** A finding with its code, under which it stands in the runbook. */
Pools.panels.told = ({ sentence, code }) => (code ? `${sentence} [${code}]` : sentence);

/** The sentence of the worst host, and the notes. */
Pools.panels.state = (snapshots) => {
  const order = ["critical", "unknown", "warning", "fine"];
  const sorted = [...snapshots].sort((a, b) => order.indexOf(a.status) - order.indexOf(b.status));
  const [worst, ...others] = sorted;
  const { told } = Pools.panels;
  const notes = worst.notes.map(told);
  for (const other of others) {
    if (other.status !== "fine") notes.push(`${other.host}: ${told(other)}`);
    notes.push(...other.notes.map((note) => `${other.host}: ${told(note)}`));
  }
  const many = snapshots.length > 1;
  return {
    status: worst.status,
    sentence: many ? `${worst.host}: ${told(worst)}` : told(worst),
    notes: [...new Set(notes)],
  };
};

Pools.panels.tiles = (root, sample, snapshots) => {
  const pools = snapshots.flatMap(Pools.rows).map((row) => row.pool);
  const restarts = pools.reduce((sum, pool) => sum + Pools.sum(pool.restarts), 0);
  const lost = pools.reduce((sum, pool) => sum + Pools.sum(pool.lost_commits), 0);
  const unresolved = pools.some((pool) => (pool.lost_commits || {}).unknown);
  const longest = Math.max(0, ...pools.map((pool) => pool.longest_waiting || 0));
  const figures = {
    longest: longest > 1 ? `for ${Pools.format.age(longest)}` : "",
    in_use: Pools.format.count(sample.in_use),
    max_size: Pools.format.count(sample.max_size),
    idle: Pools.format.count(sample.idle),
    waiting: Pools.format.count(sample.waiting),
    checkouts: Pools.format.rate(sample.checkouts),
    failures: Pools.format.rate(sample.failing),
    p95: Pools.format.duration(sample.p95),
    restarts: Pools.format.count(restarts),
    lost: Pools.format.count(lost),
  };
  for (const element of root.querySelectorAll("[data-figure]")) {
    Pools.text(element, figures[element.dataset.figure]);
  }
  root.querySelector('[data-tile="waiting"]').classList.toggle("alert", sample.waiting > 0);
  root.querySelector('[data-tile="failures"]').classList.toggle("alert", sample.failing > 0);
  root.querySelector('[data-tile="lost"]').classList.toggle("alert", unresolved);
};

/** The wait that 95 % of all checkouts of a pool stayed below, since it was opened. */
Pools.panels.p95 = (wait, bounds) =>
  wait ? Pools.histogram.quantile(wait.buckets, bounds, 0.95, wait.max) : null;

/** Each pool of each process, and the processes that did not answer. */
Pools.panels.processes = (table, snapshots, sampler) => {
  const { count, rate, duration } = Pools.format;
  const rows = [];
  for (const snapshot of snapshots) {
    for (const { key, process, pool } of Pools.rows(snapshot)) {
      const did = sampler.busy.get(key) || {};
      const row = Pools.row([
        Pools.make("span", "", String(process.pid)),
        process.command,
        pool.alias,
        count(pool.in_use),
        count(pool.idle),
        count(pool.waiting),
        `${pool.size} of ${pool.max_size}`,
        rate(did.checkouts),
        duration(Pools.panels.p95(pool.wait, snapshot.bounds)),
        count(Pools.failed(pool)),
        count(Pools.sum(pool.restarts)),
        duration(pool.age),
      ]);
      if (snapshots.length > 1) row.firstChild.append(` @ ${process.host || snapshot.host}`);
      row.children[5].classList.toggle("alert", pool.waiting > 0);
      rows.push(row);
    }
    for (const pid of snapshot.silent) {
      const row = Pools.row([String(pid), "does not answer: stopped, or too busy"]);
      row.children[1].colSpan = 11;
      row.className = "silent";
      rows.push(row);
    }
  }
  Pools.refill(table.tBodies[0], rows);
  table.hidden = !rows.length;
};

/** Views and tasks by the time for which they held connections, on all hosts. */
Pools.panels.holders = (table, snapshots) => {
  const { count, duration, age } = Pools.format;
  const holders = new Map();
  for (const { name, seconds, in_use, longest, statements } of snapshots.flatMap((it) => it.holders || [])) {
    const known = holders.get(name) || { seconds: 0, in_use: 0, longest: 0, statements: [] };
    known.seconds += seconds;
    known.in_use += in_use;
    known.longest = Math.max(known.longest, longest || 0);
    known.statements.push(...Object.keys(statements));
    holders.set(name, known);
  }
  const sorted = [...holders].sort((a, b) => b[1].seconds - a[1].seconds).slice(0, 10);
  const rows = sorted.map(([name, holder]) => {
    const what = Pools.make("span", "", name);
    for (const text of new Set(holder.statements)) what.append(Pools.make("code", "statement", text));
    const now = holder.in_use ? `${count(holder.in_use)}, for ${age(holder.longest)}` : Pools.format.NONE;
    return Pools.row([what, duration(holder.seconds), now]);
  });
  Pools.refill(table.tBodies[0], rows);
  table.hidden = !rows.length;
};

/** Restarts by SQLSTATE and outcome, the functions with most of them, and lost COMMITs. */
Pools.panels.restarts = (list, snapshots) => {
  const pools = snapshots.flatMap(Pools.rows).map((row) => row.pool);
  const items = [];
  const names = Object.assign({}, ...snapshots.map((snapshot) => snapshot.failures));
  const found = { committed: "found committed", failed: "found not committed", unknown: "outcome unknown" };
  const states = Pools.panels.added(pools.map((pool) => pool.restarts));
  for (const [state, many] of states) {
    const ended = Pools.panels.added(pools.map((pool) => (pool.restarted || {})[state]));
    const outcomes = ended.map(([outcome, number]) => `${Pools.format.count(number)} ${outcome}`);
    items.push([`x ${names[state] || state}`, "", many, outcomes.join(", ")]);
  }
  const functions = Pools.panels.added(pools.map((pool) => pool.restarts_of));
  for (const [name, many] of functions.slice(0, 5)) {
    items.push([`x ${name}`, "restarted", many, ""]);
  }
  const refused = Pools.panels.added(pools.map((pool) => pool.refused_restarts));
  for (const [reason, many] of refused) {
    items.push(["not restarted", `${reason} spent`, many, ""]);
  }
  for (const [outcome, many] of Pools.panels.added(pools.map((pool) => pool.lost_commits))) {
    items.push([many === 1 ? "COMMIT" : "COMMITs", `answer lost, ${found[outcome] || outcome}`, many, ""]);
  }
  Pools.refill(
    list,
    items.length
      ? items.map(([name, meaning, many, outcomes]) =>
          Pools.make(
            "li",
            "",
            Pools.make("b", "", Pools.format.count(many)),
            ` ${name} `,
            Pools.make("span", "faint", [meaning, outcomes].filter(Boolean).join(" · ")),
          ),
        )
      : [Pools.make("li", "faint", "No transaction was restarted, and no COMMIT was lost.")],
  );
};

/** Sums of counts by kind, without those that are 0. */
Pools.panels.added = (many) => {
  const sums = new Map();
  for (const counts of many) {
    for (const [kind, count] of Object.entries(counts || {})) {
      if (count) sums.set(kind, (sums.get(kind) || 0) + count);
    }
  }
  return [...sums].sort((a, b) => b[1] - a[1]);
};

/** Each server: used connections, sessions by state. */
Pools.panels.servers = (box, snapshots) => {
  const servers = new Map();
  for (const snapshot of snapshots) {
    for (const server of snapshot.servers) {
      const known = servers.get(server.names);
      if (!known || (server.age ?? Infinity) < (known.age ?? Infinity)) servers.set(server.names, server);
    }
  }
  Pools.refill(box, [...servers.values()].map(Pools.panels.server));
  // Through the style object: strict policies forbid style attributes in markup.
  for (const part of box.querySelectorAll("[data-share]")) part.style.flexGrow = part.dataset.share;
};

Pools.panels.server = (server) => {
  const { make } = Pools;
  const title = make("h3", "", server.names);
  const box = make("div", "server", title);
  if (server.age === null) {
    box.append(make("p", "faint", "is being asked."));
    return box;
  }
  if (server.queue) box.append(Pools.panels.queue(server.queue));
  if (server.waits_in_pooler) {
    box.append(make("p", "alert", "has no free connection behind its pooler."));
    return box;
  }
  if (server.error) {
    box.append(make("p", "alert", `${server.failure}: ${server.error}`));
    if (server.used) {
      const { used, max_connections: most, reserved, seen_by: by } = server;
      const kept = reserved ? `, ${reserved} reserved` : "";
      box.append(make("p", "", make("b", "", String(used)), ` of ${most} connections used${kept}, seen by ${by}`));
      box.append(make("ul", "places", ...Pools.panels.places(server)));
    }
    return box;
  }
  title.append(make("span", "faint", ` PostgreSQL ${server.version}${server.standby ? ", a standby" : ""}`));
  const part = (name, share) => {
    const element = make("span", name);
    element.dataset.share = share;
    return element;
  };
  const bar = make("div", "bar", part("used", server.used), part("free", server.free), part("reserved", server.reserved));
  bar.setAttribute("aria-hidden", "true");
  const room = make(
    "p",
    "",
    make("b", "", String(server.used)),
    ` of ${server.max_connections} connections used, `,
    make("b", "", String(server.free)),
    ` free${server.reserved ? `, ${server.reserved} reserved` : ""}`,
  );
  // Notes that come and go have room of their own, so that the page does not move.
  const states = Object.entries({ active: 0, idle: 0, "idle in transaction": 0, ...server.states });
  const list = make("ul", "states", ...states.map(([state, many]) => make("li", "", make("b", "", String(many)), ` ${state}`)));
  const longest = server.longest_idle_in_transaction;
  if (longest > 1) list.append(make("li", longest > 60 ? "alert" : "", `idles in its transaction for ${Pools.format.age(longest)}`));
  list.append(make("li", server.blocked ? "alert" : "", make("b", "", String(server.blocked)), " waiting for a lock"));
  box.append(bar, room, list);
  box.append(make("ul", "places", ...Pools.panels.places(server)));
  if (server.age > 2.5) box.append(make("p", "alert", `as of ${Pools.format.age(server.age)} ago`));
  return box;
};

/** PgBouncer's own figures: its connections to the server, and the clients that wait for one. */
Pools.panels.queue = ({ active, idle, pool_size, waiting, longest_waiting }) => {
  const { make } = Pools;
  const box = make("p", waiting && longest_waiting > 0.1 ? "alert" : "");
  box.append(make("b", "", String(active)), ` of ${pool_size} in use in PgBouncer, ${idle} idle, `);
  box.append(make("b", "", String(waiting)), waiting === 1 ? " client waits" : " clients wait");
  if (waiting) box.append(` for ${Pools.format.age(longest_waiting)}`);
  return box;
};

/** The owners of sessions: processes by host, and other programs. */
Pools.panels.places = (server) => {
  const rows = Object.entries(server.hosts).sort((a, b) => b[1].sessions - a[1].sessions);
  let others = server.used;
  const items = rows.slice(0, 6).map(([host, { sessions, processes }]) => {
    others -= sessions;
    const who = ` in ${Pools.format.plural(processes, "process", "processes")} on ${host}`;
    return Pools.make("li", "", Pools.make("b", "", String(sessions)), who);
  });
  if (others > 0) items.push(Pools.make("li", "", Pools.make("b", "", String(others)), " of others"));
  return items;
};
