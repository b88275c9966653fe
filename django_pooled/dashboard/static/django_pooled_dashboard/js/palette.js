/* The style sheet's colours, for drawing on a canvas. */
"use strict";

Pools.palette = {
  colours: {},
  listeners: [],

  /** A function that returns the colour of now, as uPlot wants it. */
  get(name) {
    return () => Pools.palette.colours[name];
  },

  read() {
    const style = getComputedStyle(document.documentElement);
    for (const name of [
      ...["ink", "faint", "line", "panel", "in-use", "idle", "waiting", "limit"],
      ...["p50", "p95", "p99", "flow", "flow-fill", "restarts"],
    ]) {
      Pools.palette.colours[name] = style.getPropertyValue(`--${name}`).trim();
    }
  },

  /** Read them again whenever the browser turns light or dark. */
  follow() {
    Pools.palette.read();
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
      Pools.palette.read();
      for (const listener of Pools.palette.listeners) listener();
    });
  },
};
