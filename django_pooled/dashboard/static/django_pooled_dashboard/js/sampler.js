/* Turns snapshots into samples: sums over hosts, and differences between two answers. */
"use strict";

/** Seconds after which a host that no longer answers is forgotten. */
Pools.HOST_KEPT = 15;

/** Seconds of checkout waits that make a percentile. */
Pools.WAITS_OVER = 10;

/** Seconds over which failures are averaged: with a timeout of some seconds they come in bursts. */
Pools.FAILURES_OVER = 10;

Pools.Sampler = class {
  constructor() {
    this.hosts = new Map(); // name → {snapshot, received}
    this.before = new Map(); // pool's key → {counters, taken}
    this.waits = []; // {time, buckets} of the last seconds
    this.rates = []; // {time, failures} of the last seconds, as rates
    this.busy = new Map(); // pool's key → what it did in its last interval
    this.started = null;
  }

  /** Add an answer, and return the sample that it makes with those of other hosts. */
  take(snapshot, time) {
    const last = this.hosts.get(snapshot.host);
    const isNew = !last || last.snapshot.taken !== snapshot.taken;
    this.hosts.set(snapshot.host, { snapshot, received: time });
    for (const [host, known] of this.hosts) {
      if (time - known.received > Pools.HOST_KEPT) this.hosts.delete(host);
    }
    if (isNew) this.count(snapshot, last ? last.snapshot.taken : null, time);
    this.waits = this.waits.filter((entry) => time - entry.time < Pools.WAITS_OVER);
    return this.sample(snapshot, time);
  }

  /** What each pool of a snapshot did since the one before of the same host. */
  count(snapshot, before, time) {
    const seconds = before === null ? null : snapshot.taken - before;
    let waits = null;
    for (const { key, pool } of Pools.rows(snapshot)) {
      const counters = {
        checkouts: pool.checkouts || 0,
        failures: Pools.failed(pool),
        restarts: Pools.sum(pool.restarts),
        wait: pool.wait ? pool.wait.buckets : null,
      };
      const known = this.before.get(key);
      // A pid that is used again, or a pool that was opened again, begins at nothing; one that
      // was there before the page was opened does not.
      const isYoung = seconds !== null && pool.age !== undefined && pool.age <= seconds + 1;
      const nothing = { checkouts: 0, failures: 0, restarts: 0, wait: null };
      let base = known && known.checkouts <= counters.checkouts ? known : null;
      if (!base && (known || isYoung)) base = nothing;
      this.before.set(key, counters);
      if (!base || seconds === null) {
        this.busy.set(key, { checkouts: null, failures: null, restarts: null, wait: null });
        continue;
      }
      const wait = Pools.histogram.minus(counters.wait, base.wait);
      this.busy.set(key, {
        checkouts: (counters.checkouts - base.checkouts) / seconds,
        failures: (counters.failures - base.failures) / seconds,
        restarts: (counters.restarts - base.restarts) / seconds,
        wait,
      });
      waits = Pools.histogram.plus(waits, wait);
    }
    if (waits) this.waits.push({ time, buckets: waits });
  }

  sample(snapshot, time) {
    const total = { in_use: 0, idle: 0, waiting: 0, size: 0, max_size: 0 };
    let checkouts = null;
    let failures = null;
    let restarts = null;
    let longest = null;
    const present = new Set();
    for (const { snapshot: known } of this.hosts.values()) {
      for (const { key, pool } of Pools.rows(known)) {
        present.add(key);
        for (const gauge of Object.keys(total)) total[gauge] += pool[gauge] || 0;
        if (pool.waiting) longest = Math.max(longest || 0, pool.longest_waiting || 0);
        const did = this.busy.get(key);
        if (did && did.checkouts !== null) {
          checkouts = (checkouts || 0) + did.checkouts;
          failures = (failures || 0) + did.failures;
          restarts = (restarts || 0) + did.restarts;
        }
      }
    }
    for (const key of this.before.keys()) {
      if (!present.has(key)) {
        this.before.delete(key);
        this.busy.delete(key);
      }
    }
    if (failures !== null) this.rates.push({ time, failures });
    this.rates = this.rates.filter((entry) => time - entry.time < Pools.FAILURES_OVER);
    const failing = this.rates.reduce((sum, entry) => sum + entry.failures / this.rates.length, 0);
    const buckets = this.waits.reduce((sum, entry) => Pools.histogram.plus(sum, entry.buckets), null);
    const quantile = (share) => Pools.histogram.quantile(buckets, snapshot.bounds, share);
    return {
      time,
      ...total,
      longest,
      checkouts,
      failures,
      failing: failures === null ? null : failing,
      restarts,
      p50: quantile(0.5),
      p95: quantile(0.95),
      p99: quantile(0.99),
    };
  }

  /** The latest snapshot of each host. */
  get snapshots() {
    return [...this.hosts.values()].map((known) => known.snapshot);
  }
};

/** Every pool of a snapshot, with its process and its id, which no other pool has. */
Pools.rows = (snapshot) =>
  snapshot.processes.flatMap((process) =>
    process.pools.map((pool) => ({ key: pool.id, process, pool })),
  );

/** The sum of what is counted by kind. */
Pools.sum = (counts) => Object.values(counts || {}).reduce((sum, count) => sum + count, 0);

/** Checkouts of a pool that ended without a connection. */
Pools.failed = (pool) => (pool.timeouts || 0) + (pool.refused || 0) + (pool.exhausted || 0);
