/* A small chart for each pool of each process, all to the same scale. */
"use strict";

/** Beyond this many, only the busiest are drawn; the table has them all. */
Pools.WORKERS_DRAWN = 24;

Pools.Workers = class {
  constructor(box) {
    this.box = box;
    this.rest = box.parentElement.querySelector(".rest");
    this.charts = new Map();
  }

  /** The columns that a sample adds to the history. */
  static columns(snapshots) {
    const values = {};
    for (const { key, pool } of snapshots.flatMap(Pools.rows)) {
      for (const gauge of ["in_use", "idle", "waiting", "max_size"]) {
        values[`${key} ${gauge}`] = pool[gauge] || 0;
      }
    }
    return values;
  }

  show(snapshots, history, now, seconds) {
    const rows = snapshots.flatMap(Pools.rows);
    const drawn = Pools.Workers.busiest(rows);
    const keys = new Set(drawn.map((row) => row.key));
    for (const [key, chart] of this.charts) {
      if (!keys.has(key)) {
        chart.remove();
        this.charts.delete(key);
      }
    }
    const several = new Set(rows.map((row) => row.pool.alias)).size > 1;
    const ceiling = Math.max(0, ...drawn.map(({ key }) => this.peak(key, history, now - seconds)));
    for (const { key, process, pool } of drawn) {
      if (!this.charts.has(key)) this.charts.set(key, this.make(key));
      const chart = this.charts.get(key);
      const where = snapshots.length > 1 ? ` @ ${process.host}` : "";
      const name = `${process.command} ${process.pid}${where}${several ? ` · ${pool.alias}` : ""}`;
      Pools.text(chart.figure.querySelector(".name"), name);
      const waiting = pool.waiting ? `, ${pool.waiting} waiting` : "";
      Pools.text(chart.figure.querySelector(".now"), `${pool.in_use} of ${pool.max_size} in use${waiting}`);
      chart.figure.classList.toggle("alert", pool.waiting > 0);
      chart.show(history, now, seconds, ceiling);
    }
    const more = rows.length - drawn.length;
    Pools.text(this.rest, more ? `and ${Pools.format.plural(more, "pool")} more, less busy: see the table.` : "");
  }

  redraw() {
    for (const chart of this.charts.values()) chart.redraw();
  }

  static busiest(rows) {
    if (rows.length <= Pools.WORKERS_DRAWN) return rows;
    const load = (row) => row.pool.waiting * 1000 + row.pool.in_use;
    const kept = new Set([...rows].sort((a, b) => load(b) - load(a)).slice(0, Pools.WORKERS_DRAWN));
    return rows.filter((row) => kept.has(row));
  }

  peak(key, history, since) {
    let peak = 0;
    const columns = ["in_use", "waiting", "max_size"].map((gauge) => history.column(`${key} ${gauge}`));
    for (let i = history.times.length - 1; i >= 0 && history.times[i] >= since; i -= 1) {
      peak = Math.max(peak, columns[0][i] + columns[1][i], columns[2][i]);
    }
    return peak;
  }

  make(key) {
    const figure = Pools.make(
      "figure",
      "worker",
      Pools.make("figcaption", "", Pools.make("span", "name"), Pools.make("span", "now")),
      Pools.make("div", "plot"),
    );
    this.box.append(figure);
    return new Pools.Chart(figure, {
      lines: Pools.connectionLines((gauge) => `${key} ${gauge}`),
      stacked: 3,
      height: 72,
      small: true,
      format: Pools.format.count,
    });
  }
};

/** In use at the bottom, idle above, waiters on top: the demand against max_size. */
Pools.connectionLines = (column = (gauge) => gauge) => [
  Pools.line(column("waiting"), "waiting", "waiting"),
  Pools.line(column("idle"), "idle", "idle"),
  Pools.line(column("in_use"), "in use", "in-use"),
  Pools.line(column("max_size"), "limit", "limit", { dash: [4, 4] }),
];
