/* One chart: uPlot, a legend with the latest values, and the same figures as a table. */
"use strict";

/** Seconds between two rows of a chart's table. */
Pools.TABLE_STEP = 15;

/** A line: name of its column, label, colour, and a style that tells it apart without colour. */
Pools.line = (column, label, colour, more = {}) => ({ column, label, colour, width: 1.5, ...more });

Pools.Chart = class {
  /**
   * @param {HTMLElement} figure with .plot, and maybe .legend and .figures in it
   * @param {object} options lines; stacked: draw the first ones on top of each other; height;
   *     format: of a value; floor: of the highest value shown; log: from this value on; bars
   */
  constructor(figure, options) {
    this.figure = figure;
    this.options = options;
    this.box = figure.querySelector(".plot");
    // The least height: a chart grows with its panel, and panels in a row are equally high.
    this.box.style.minHeight = `${options.height}px`;
    this.values = new Map();
    this.drawLegend(figure.querySelector(".legend"));
    this.table = figure.querySelector(".figures");
    if (this.table) this.table.addEventListener("toggle", () => this.fillTable());
    this.plot = new uPlot(this.uplotOptions(), this.empty(), this.box);
    this.plot.root.setAttribute("aria-hidden", "true");
    this.observer = new ResizeObserver(() => {
      const { clientWidth: width, clientHeight: height } = this.box;
      if (!width || (width === this.plot.width && height === this.plot.height)) return;
      this.plot.setSize({ width, height });
    });
    this.observer.observe(this.box);
  }

  empty() {
    return [[], ...this.options.lines.map(() => [])];
  }

  remove() {
    this.observer.disconnect();
    this.plot.destroy();
    this.figure.remove();
  }

  /** Show the last `seconds` of a history, up to `now`. */
  show(history, now, seconds, ceiling = 0) {
    const { lines, stacked } = this.options;
    this.history = history;
    this.ceiling = ceiling;
    let first = history.times.findIndex((time) => time >= now - seconds);
    if (first < 0) first = history.times.length;
    this.first = Math.max(0, first - 1);
    const columns = lines.map((line) => history.column(line.column).slice(this.first));
    this.raw = columns;
    const drawn = stacked ? Pools.stack(columns, stacked) : columns;
    this.plot.batch(() => {
      this.plot.setData([history.times.slice(this.first), ...drawn], false);
      this.plot.setScale("x", { min: now - seconds, max: now });
    });
    this.tell(this.plot.cursor.idx);
    this.fillTable();
  }

  redraw() {
    this.plot.redraw(false, true);
  }

  /** Put values into the legend: those under the cursor, else the latest. */
  tell(index) {
    if (!this.raw) return;
    this.options.lines.forEach((line, i) => {
      const column = this.raw[i];
      const element = this.values.get(line.column);
      if (element) {
        const value = column[index ?? column.length - 1];
        Pools.text(element, this.options.format(value));
      }
    });
  }

  /** The lines in the order of the legend: those that are stacked from the bottom up. */
  get ordered() {
    const { lines, stacked = 0 } = this.options;
    return [...lines.slice(0, stacked).reverse(), ...lines.slice(stacked)];
  }

  drawLegend(list) {
    if (!list) return;
    for (const line of this.ordered) {
      const item = document.createElement("li");
      const swatch = document.createElement("span");
      swatch.className = `swatch ${line.dash ? "dashed" : ""} ${this.options.stacked ? "" : "thin"}`;
      swatch.style.setProperty("--colour", `var(--${line.colour})`);
      const value = document.createElement("b");
      item.append(swatch, ` ${line.label} `, value);
      this.values.set(line.column, value);
      list.append(item);
    }
  }

  /** The alternative to the canvas: a row for each quarter of a minute, while it is open. */
  fillTable() {
    if (!this.table || !this.table.open || !this.history) return;
    const { format } = this.options;
    const lines = this.ordered;
    const columns = lines.map((line) => this.raw[this.options.lines.indexOf(line)]);
    const newest = Math.floor((this.history.times.at(-1) || 0) / Pools.TABLE_STEP);
    if (this.tableOf === newest) return;
    this.tableOf = newest;
    const rows = new Map();
    this.history.times.slice(this.first).forEach((time, i) => {
      const step = Math.floor(time / Pools.TABLE_STEP);
      if (!rows.has(step)) rows.set(step, lines.map(() => null));
      lines.forEach((line, column) => {
        const value = columns[column][i];
        const cells = rows.get(step);
        if (value !== null && (cells[column] === null || value > cells[column])) cells[column] = value;
      });
    });
    const table = this.table.querySelector("table");
    table.replaceChildren(
      Pools.make("caption", "faint", `The highest value in each ${Pools.TABLE_STEP} seconds`),
      Pools.row(["from", ...lines.map((line) => line.label)], "th"),
      ...[...rows]
        .reverse()
        .map(([step, cells]) => Pools.row([Pools.format.clock(step * Pools.TABLE_STEP), ...cells.map(format)])),
    );
  }

  uplotOptions() {
    const { options } = this;
    const font = "11px system-ui, sans-serif";
    const axis = { stroke: Pools.palette.get("faint"), font, ticks: { show: false } };
    const decades = (plot, splits) => splits.map((value) => (Pools.isDecade(value) ? value : null));
    const filter = options.log ? { filter: decades } : {};
    const grid = { stroke: Pools.palette.get("line"), width: 1 };
    return {
      width: this.box.clientWidth || 300,
      height: options.height,
      padding: [10, options.small ? 0 : 28, options.small ? 2 : 0, options.small ? 0 : 4],
      legend: { show: false },
      cursor: {
        sync: { key: "pools" },
        drag: { x: false, y: false },
        y: false,
        points: { show: false },
      },
      scales: {
        x: { time: true },
        y: options.log
          ? { distr: 3, range: (plot, low, high) => [options.log, Pools.decade(high, options.log)] }
          : { range: (plot, low, high) => [0, Pools.headroom(high, options.floor, this.ceiling)] },
      },
      axes: [
        {
          ...axis,
          show: !options.small,
          size: 26,
          space: 70,
          grid: { show: false },
          values: (plot, times) => Pools.clocks(times),
        },
        {
          ...axis,
          show: !options.small,
          ...filter,
          grid: { ...grid, ...filter },
          size: options.log ? 50 : 34,
          space: 34,
          values: (plot, values) => values.map((value) => Pools.axisLabel(value, options)),
        },
      ],
      series: [{}, ...options.lines.map((line) => this.series(line))],
      hooks: {
        setCursor: [(plot) => this.tell(plot.cursor.idx)],
        draw: [(plot) => Pools.drawMarks(plot, this.history, options.small)],
      },
    };
  }

  series(line) {
    const { stacked, bars, log } = this.options;
    const filled = stacked && !line.dash;
    const stepped = uPlot.paths.stepped({ align: 1 });
    return {
      label: line.label,
      stroke: Pools.palette.get(line.colour),
      fill: filled ? Pools.palette.get(line.colour) : line.fill && Pools.palette.get(line.fill),
      width: filled ? 0 : line.width,
      dash: line.dash,
      points: { show: false },
      paths: bars ? uPlot.paths.bars({ size: [0.9, 12, 2] }) : stacked ? stepped : log ? stepped : undefined,
    };
  }
};

/** Stack the first columns; the last one drawn is at the bottom. */
Pools.stack = (columns, many) => {
  const stacked = columns.map((column) => [...column]);
  for (let i = many - 2; i >= 0; i -= 1) {
    stacked[i] = columns[i].map((value, at) => (value === null ? null : value + (stacked[i + 1][at] || 0)));
  }
  return stacked;
};

/** The upper end of a scale that starts at 0. */
Pools.headroom = (high, floor = 1, ceiling = 0) => Math.max((high || 0) * 1.1, floor, ceiling * 1.1);

/** The upper end of a logarithmic scale: a whole decade, with two at least below it. */
Pools.decade = (high, low) => 10 ** Math.ceil(Math.log10(Math.max(high || 0, low * 100)) - 1e-9);

Pools.isDecade = (value) => Math.abs(Math.log10(value) - Math.round(Math.log10(value))) < 1e-6;

Pools.axisLabel = (value, options) => {
  if (value === null) return "";
  if (options.log) return value >= 1 ? `${value.toFixed(0)} s` : `${+(value * 1e3).toPrecision(1)} ms`;
  if (options.whole && value % 1) return "";
  return Pools.format.count(value) === "0" && value ? value.toPrecision(1) : `${+value.toPrecision(6)}`;
};

/** Times of day along the axis, with seconds only where minutes don't tell them apart. */
Pools.clocks = (times) => {
  const fine = times.some((time) => time % 60);
  return times.map((time) => Pools.format.clock(time, fine));
};

/** A line with its label where an extension has set a mark. */
Pools.drawMarks = (plot, history, small) => {
  if (!history) return;
  const { ctx, bbox } = plot;
  const ratio = devicePixelRatio || 1;
  ctx.save();
  ctx.beginPath();
  ctx.rect(bbox.left, bbox.top - 10 * ratio, bbox.width, bbox.height + 10 * ratio);
  ctx.clip();
  ctx.strokeStyle = ctx.fillStyle = Pools.palette.colours.ink;
  ctx.lineWidth = ratio;
  ctx.setLineDash([2 * ratio, 3 * ratio]);
  ctx.font = `${11 * ratio}px system-ui, sans-serif`;
  const taken = [[], [], []];
  // The latest first: where marks crowd, the latest get a label.
  for (const { time, label } of [...history.marks].reverse()) {
    const x = plot.valToPos(time, "x", true);
    if (x < bbox.left) continue;
    ctx.beginPath();
    ctx.moveTo(x, bbox.top);
    ctx.lineTo(x, bbox.top + bbox.height);
    ctx.stroke();
    if (small) continue;
    const width = ctx.measureText(label).width;
    const roomRight = bbox.left + bbox.width - x > width + 8 * ratio;
    const left = roomRight ? x + 4 * ratio : x - 4 * ratio - width;
    const free = ([from, to]) => left > to + 4 * ratio || left + width + 4 * ratio < from;
    const row = taken.findIndex((labels) => labels.every(free));
    if (row < 0) continue;
    taken[row].push([left, left + width]);
    ctx.fillText(label, left, bbox.top + (10 + 13 * row) * ratio);
  }
  ctx.restore();
};
