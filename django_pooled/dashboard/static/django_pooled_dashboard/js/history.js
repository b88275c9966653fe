/* The history of figures: columns of equal length, as the charts want them. */
"use strict";

/** Seconds that are kept. */
Pools.REMEMBERED = 15 * 60;

Pools.History = class {
  constructor() {
    this.times = [];
    this.columns = new Map();
    this.marks = []; // {time, label}
  }

  /** Append a row; columns that it lacks get a gap. */
  push(time, values) {
    for (const name of Object.keys(values)) {
      if (!this.columns.has(name)) this.columns.set(name, new Array(this.times.length).fill(null));
    }
    this.times.push(time);
    for (const [name, column] of this.columns) column.push(values[name] ?? null);
    this.forget(time - Pools.REMEMBERED);
  }

  /** Put what was before the first row in front of it. */
  prepend(times, columns) {
    const first = this.times.length ? this.times[0] : Infinity;
    const earlier = times.filter((time) => time < first);
    const nothing = (many) => new Array(many).fill(null);
    for (const name of new Set([...this.columns.keys(), ...Object.keys(columns)])) {
      const before = columns[name] ? columns[name].slice(0, earlier.length) : nothing(earlier.length);
      this.columns.set(name, [...before, ...(this.columns.get(name) || nothing(this.times.length))]);
    }
    this.times = [...earlier, ...this.times];
  }

  /** Leave a gap, once, however long it lasts. */
  gap(time) {
    const last = this.times.length - 1;
    if (last >= 0 && [...this.columns.values()].some((column) => column[last] !== null)) {
      this.push(time, {});
    }
  }

  mark(time, label) {
    this.marks.push({ time, label });
  }

  column(name) {
    return this.columns.get(name) || new Array(this.times.length).fill(null);
  }

  forget(before) {
    // Rarely and many at once: cutting the head off an array moves all the rest.
    if (this.times.length < 60 || this.times[59] >= before) return;
    const old = this.times.findIndex((time) => time >= before);
    this.times.splice(0, old);
    for (const [name, column] of this.columns) {
      column.splice(0, old);
      if (column.every((value) => value === null)) this.columns.delete(name);
    }
    this.marks = this.marks.filter((mark) => mark.time >= before);
  }
};
