/* Figures and texts for people. */
"use strict";

const Pools = { format: {} };

Pools.format.NONE = "–";

/** A count, shortened from 100,000 on. */
Pools.format.count = (number) => {
  if (number === null || number === undefined) return Pools.format.NONE;
  if (number < 1e5) return Math.round(number).toLocaleString("en");
  return number < 1e6 ? `${Math.round(number / 1e3)}k` : `${(number / 1e6).toFixed(1)}M`;
};

/** A rate per second. */
Pools.format.rate = (number) => {
  if (number === null || number === undefined) return Pools.format.NONE;
  return number === 0 || number >= 100 ? Pools.format.count(number) : number.toFixed(1);
};

/** Seconds, in the unit that suits them. */
Pools.format.duration = (seconds) => {
  if (seconds === null || seconds === undefined) return Pools.format.NONE;
  if (seconds < 0.001) return `${(seconds * 1e3).toFixed(2)} ms`;
  if (seconds < 0.01) return `${(seconds * 1e3).toFixed(1)} ms`;
  if (seconds < 1) return `${Math.round(seconds * 1e3)} ms`;
  if (seconds < 10) return `${seconds.toFixed(1)} s`;
  if (seconds < 120) return `${Math.floor(seconds)} s`;
  if (seconds < 7200) return `${Math.round(seconds / 60)} min`;
  return seconds < 172800 ? `${Math.round(seconds / 3600)} h` : `${Math.round(seconds / 86400)} days`;
};

/** Seconds that go on counting on the page. */
Pools.format.age = (seconds) =>
  seconds < 120 ? `${Math.floor(seconds)} s` : Pools.format.duration(seconds);

/** The time of day of a moment in seconds since 1970. */
Pools.format.clock = (time, seconds = true) =>
  new Date(time * 1e3).toLocaleTimeString("en-GB", {
    hour: "2-digit",
    minute: "2-digit",
    ...(seconds ? { second: "2-digit" } : {}),
  });

Pools.format.plural = (number, one, many = `${one}s`) =>
  `${Pools.format.count(number)} ${number === 1 ? one : many}`;
