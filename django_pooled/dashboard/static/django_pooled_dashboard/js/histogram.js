/* Histograms: buckets of counts below upper bounds; the last bucket holds longer times. */
"use strict";

Pools.histogram = {};

/** Buckets of `now` less those of `before`; null where there is nothing to subtract from. */
Pools.histogram.minus = (now, before) => {
  if (!now) return null;
  return before && before.length === now.length ? now.map((count, i) => count - before[i]) : [...now];
};

Pools.histogram.plus = (one, other) => {
  if (!one || !other) return one || other || null;
  return one.map((count, i) => count + (other[i] || 0));
};

/** The value that a share of all stays below, by interpolation in its bucket; null without any. */
Pools.histogram.quantile = (buckets, bounds, share, longest = Infinity) => {
  const total = (buckets || []).reduce((sum, count) => sum + count, 0);
  if (!total || !bounds.length) return null;
  let left = share * total;
  for (let i = 0; i < buckets.length; i += 1) {
    if (buckets[i] && left <= buckets[i]) {
      if (i >= bounds.length) break;
      const lower = i ? bounds[i - 1] : 0;
      return Math.min(longest, lower + (bounds[i] - lower) * (left / buckets[i]));
    }
    left -= buckets[i];
  }
  return Math.max(bounds[bounds.length - 1], Number.isFinite(longest) ? longest : 0);
};
