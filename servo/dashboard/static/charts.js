// The charts of the last 10 minutes, drawn by uPlot. Each has a legend with the values, a summary for
// screen readers, and a table of its figures.

import { byId, element, fill, setText } from "./dom.js";
import { bytes, clock, clockSeconds, count, latency, percent, rate } from "./format.js";
import { isUnexpectedExit } from "./timeline.js";
import uPlot from "./uplot.js";

const SPAN_S = 600;
// Between samples further apart than this, the lines have a gap.
const GAP_S = 2.5;
// A server that has just started has few samples. The charts show at least this time.
const LEAST_SPAN_S = 60;
const HEIGHT = 190;
// The table of a chart has a row for each of so many seconds.
const ROW_S = 60;
const FONT = "11px system-ui, sans-serif";

/**
 * A line of a chart.
 *
 * label   its name
 * color   the CSS variable of its colour
 * value   takes a sample and returns the value, or null
 * options more: `scale`, `dash`, `format` (else the chart's)
 */
const line = (label, color, value, options = {}) => ({ label, color, value, ...options });

const queueLength = (sample) => sum(sample.accept_queue, (queue) => queue.length);
const queueLimit = (sample) => sum(sample.accept_queue, (queue) => queue.limit);
const mebibytes = (number) => number * (1 << 20);
const statusClass = (name) => (sample) => sample.classes?.[name] ?? null;

// The palette is that of Okabe and Ito, which colour-blind people can tell apart.
const CHARTS = [
  {
    title: "Requests per second",
    format: rate,
    stacked: true,
    // The last line is the lowest layer: even a few errors are seen at the chart's foot.
    lines: [
      line("1xx", "--purple", statusClass("1xx")),
      line("2xx", "--blue", statusClass("2xx")),
      line("3xx", "--green", statusClass("3xx")),
      line("4xx", "--orange", statusClass("4xx")),
      line("5xx", "--vermillion", statusClass("5xx")),
    ],
  },
  {
    title: "Latency",
    format: latency,
    logarithmic: true,
    lines: [
      line("p50", "--blue", (sample) => sample.p50),
      line("p99", "--orange", (sample) => sample.p99),
      line("p99.9", "--vermillion", (sample) => sample.p999),
    ],
  },
  {
    title: "Utilisation",
    format: percent,
    least: 1,
    lines: [line("busy share of the workers", "--blue", (sample) => sample.use, { area: true })],
  },
  {
    title: "CPU and memory",
    format: percent,
    least: 1,
    lines: [
      line("CPU (of one core)", "--blue", (sample) => sample.cpu),
      line("memory", "--orange", (sample) => sample.memory, { scale: "right", format: bytes }),
    ],
    right: { format: bytes, steps: [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 5000, 20_000].map(mebibytes) },
  },
  {
    title: "Accept queue",
    format: count,
    least: 4,
    lines: [
      line("waiting connections", "--vermillion", queueLength, { area: true }),
      line("limit", "--gray", queueLimit, { isHidden: true }),
    ],
  },
  {
    title: "Waiting times",
    format: latency,
    least: 0.01,
    lines: [
      line("loop lag", "--blue", (sample) => sample.loop_lag),
      line("thread wait p99", "--orange", (sample) => sample.thread_wait_p99, { dash: [4, 3] }),
      line("queue time p99", "--purple", (sample) => sample.queue_time_p99),
    ],
  },
];

/** All charts; `root` is the element that they go into. */
export class Charts {
  constructor(root) {
    this.charts = CHARTS.map((spec) => new Chart(spec, this));
    root.append(...this.charts.map((chart) => chart.figure));
    this.marks = [];
    // The colours of a canvas do not follow the page's.
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
      for (const chart of this.charts) chart.rebuild();
    });
  }

  draw(samples, events) {
    const padded = withGaps(samples);
    this.marks = marksOf(events);
    byId("marks").hidden = this.marks.length === 0;
    for (const chart of this.charts) chart.draw(padded);
  }
}

/** One chart: a figure with caption, legend, picture and table. */
class Chart {
  constructor(spec, owner) {
    this.spec = spec;
    this.owner = owner;
    this.samples = [];
    this.plot = null;
    this.title = element("h3", {}, spec.title);
    this.moment = element("span", { class: "quiet moment" });
    this.legend = element("ul", { class: "legend" });
    this.values = spec.lines.map(() => element("b"));
    this.legend.append(...spec.lines.map((each, index) => this.legendEntry(each, index)));
    this.canvas = element("div", { class: "plot", role: "img" });
    this.table = element("table");
    this.details = element("details", {}, element("summary", {}, "Figures"), this.table);
    this.details.firstChild.append(element("span", { class: "hidden" }, ` of ${spec.title}`));
    this.details.addEventListener("toggle", () => this.drawTable());
    this.figure = element("figure", { class: "card chart" });
    const caption = element("figcaption", {}, this.title, this.moment);
    this.figure.append(caption, this.legend, this.canvas, this.details);
    new ResizeObserver(() => this.resize()).observe(this.canvas);
  }

  legendEntry(each, index) {
    const swatch = element("span", { class: `swatch ${each.color.slice(2)}` });
    if (each.dash) swatch.classList.add("dashed");
    return element("li", {}, swatch, `${each.label} `, this.values[index]);
  }

  draw(samples) {
    this.samples = samples;
    if (this.plot === null) this.rebuild();
    else {
      this.plot.batch(() => {
        this.plot.setData(this.data(), false);
        this.plot.setScale("x", span(samples));
      });
    }
    this.showValues();
    this.canvas.setAttribute("aria-label", this.summary());
    if (this.details.open) this.drawTable();
  }

  /** The columns for uPlot: times, and the values of each line. */
  data() {
    const columns = this.shown.map((each) => this.samples.map((sample) => valueOf(each, sample)));
    if (this.spec.stacked) stack(columns);
    if (this.spec.logarithmic) {
      // A logarithm needs a positive number.
      for (const column of columns) column.forEach((value, i) => (column[i] = value || null));
    }
    const times = this.samples.map((sample) => sample.time);
    return [times, ...columns];
  }

  get shown() {
    return this.spec.lines.filter((each) => !each.isHidden);
  }

  rebuild() {
    this.plot?.destroy();
    this.plot = null;
    const width = this.canvas.clientWidth;
    if (width > 0 && this.samples.length > 0) {
      this.plot = new uPlot(this.options(width), this.data(), this.canvas);
    }
  }

  resize() {
    const width = this.canvas.clientWidth;
    if (this.plot === null) this.rebuild();
    else if (width > 0 && width !== this.plot.width) this.plot.setSize({ width, height: HEIGHT });
  }

  options(width) {
    return {
      width,
      height: HEIGHT,
      padding: [8, this.spec.right ? 0 : 10, 0, 0],
      legend: { show: false },
      cursor: {
        sync: { key: "servo" },
        drag: { x: false, y: false },
        y: false,
        points: { size: 6 },
      },
      series: [{}, ...this.shown.map((each) => this.seriesOptions(each))],
      scales: {
        x: { time: true, auto: false, ...span(this.samples) },
        y: this.spec.logarithmic ? logarithmicScale() : linearScale(this.spec.least ?? 1),
        right: memoryScale(),
      },
      axes: this.axes(),
      hooks: { setCursor: [() => this.showValues()], draw: [(plot) => this.drawMarks(plot)] },
    };
  }

  seriesOptions(each) {
    const color = variable(each.color);
    const isArea = this.spec.stacked || each.area;
    return {
      label: each.label,
      scale: each.scale ?? "y",
      stroke: color,
      width: 1.5,
      dash: each.dash,
      // The layers of a stack cover each other, so they have to be opaque.
      fill: isArea ? variable(`${each.color}-fill`) : undefined,
      points: { show: false },
    };
  }

  axes() {
    const common = {
      stroke: variable("--quiet"),
      font: FONT,
      grid: { stroke: variable("--grid"), width: 1 },
      ticks: { show: false },
    };
    const labels = (format) => (plot, splits) =>
      splits.map((value) => (value === null ? "" : format(value)));
    const times = { ...common, space: 70, size: 26, values: timeLabels };
    const left = { ...common, size: 58, space: 28, gap: 4, values: labels(this.spec.format) };
    if (this.spec.logarithmic) left.splits = decades;
    if (!this.spec.right) return [times, left];
    const right = { ...common, scale: "right", side: 1, size: 58, gap: 4, grid: { show: false } };
    const { format, steps } = this.spec.right;
    return [times, left, { ...right, incrs: steps, values: labels(format) }];
  }

  /** Lines for reloads and for workers that ended unexpectedly. */
  drawMarks(plot) {
    const { ctx, bbox } = plot;
    ctx.save();
    ctx.lineWidth = devicePixelRatio;
    for (const mark of this.owner.marks) {
      if (mark.time < plot.scales.x.min || mark.time > plot.scales.x.max) continue;
      const x = Math.round(plot.valToPos(mark.time, "x", true));
      ctx.strokeStyle = variable(mark.isTrouble ? "--bad" : "--quiet");
      ctx.setLineDash((mark.isTrouble ? [2, 3] : [6, 4]).map((each) => each * devicePixelRatio));
      ctx.beginPath();
      ctx.moveTo(x, bbox.top);
      ctx.lineTo(x, bbox.top + bbox.height);
      ctx.stroke();
    }
    ctx.restore();
  }

  /** Show the values under the cursor, or else the latest ones. */
  showValues() {
    const index = this.plot?.cursor.idx ?? null;
    const sample = index === null ? this.samples.at(-1) : this.samples[index];
    if (sample === undefined) return;
    setText(this.moment, index === null ? "now" : clockSeconds(sample.time));
    this.spec.lines.forEach((each, i) => {
      setText(this.values[i], this.format(each, sample));
    });
  }

  format(each, sample) {
    return (each.format ?? this.spec.format)(valueOf(each, sample));
  }

  /** The chart in one sentence for each line. */
  summary() {
    const lines = this.spec.lines.map((each) => {
      const values = this.samples
        .map((sample) => valueOf(each, sample))
        .filter((value) => value !== null);
      if (values.length === 0) return `${each.label}: no figures`;
      const format = each.format ?? this.spec.format;
      const [least, most] = [Math.min(...values), Math.max(...values)].map(format);
      return `${each.label}: now ${this.format(each, this.samples.at(-1))}, ${least} to ${most}`;
    });
    return `${this.spec.title}, last 10 minutes. ${lines.join(". ")}.`;
  }

  /** The figures at each full minute, newest first. */
  drawTable() {
    if (!this.details.open) return;
    const rows = minutes(this.samples);
    fill(this.table, rows.map((sample) => sample.n).join(), () => [
      element("caption", { class: "hidden" }, `${this.spec.title}: a row a minute`),
      element("thead", {}, this.headings()),
      element("tbody", {}, ...rows.map((sample) => this.row(sample))),
    ]);
  }

  headings() {
    const titles = ["time", ...this.spec.lines.map((each) => each.label)];
    return element("tr", {}, ...titles.map((title) => element("th", { scope: "col" }, title)));
  }

  row(sample) {
    const time = element("th", { scope: "row" }, clockSeconds(sample.time));
    const cells = this.spec.lines.map((each) => element("td", {}, this.format(each, sample)));
    return element("tr", {}, time, ...cells);
  }
}

/** The samples, with an empty one in each gap of the times, so that the lines have the gap, too. */
function withGaps(samples) {
  const padded = [];
  for (const sample of samples) {
    const before = padded.at(-1);
    if (before !== undefined && sample.time - before.time > GAP_S) {
      padded.push({ n: null, time: before.time + 1, accept_queue: [] });
    }
    padded.push(sample);
  }
  return padded;
}

/** The times at the left and the right edge of the charts. */
function span(samples) {
  const max = samples.at(-1).time;
  const shown = Math.max(LEAST_SPAN_S, Math.min(SPAN_S, max - samples[0].time));
  return { min: max - shown, max };
}

/** The samples at the start of each minute, newest first. */
function minutes(samples) {
  const rows = [];
  for (const sample of samples) {
    const minute = Math.floor(sample.time / ROW_S);
    if (sample.n !== null && minute !== Math.floor((rows.at(-1)?.time ?? 0) / ROW_S)) {
      rows.push(sample);
    }
  }
  return rows.reverse();
}

/**
 * Turn columns of values into the heights of the layers of a stack, in place.
 *
 * uPlot paints the first column first, and the others over it. So the first is the highest layer.
 */
function stack(columns) {
  for (let i = columns.length - 2; i >= 0; i -= 1) {
    columns[i].forEach((value, at) => {
      if (value !== null) columns[i][at] = value + (columns[i + 1][at] ?? 0);
    });
  }
}

function marksOf(events) {
  return events
    .filter((event) => event.name === "reload_started" || isUnexpectedExit(event))
    .map((event) => ({ time: event.time, isTrouble: isUnexpectedExit(event) }));
}

function timeLabels(plot, splits) {
  const hasSeconds = splits.some((time) => time % 60 !== 0);
  return splits.map(hasSeconds ? clockSeconds : clock);
}

function linearScale(least) {
  return { range: (plot, low, high) => [0, (high ?? 0) > least ? high * 1.1 : least] };
}

/** Memory does not start at 0: so the scale shows growth, but also a little noise as little. */
function memoryScale() {
  return {
    range: (plot, low, high) => {
      if (low === null || high === null) return [0, 1 << 20];
      const middle = (low + high) / 2;
      const half = Math.max((high - low) * 0.6, middle * 0.1);
      return [Math.max(0, middle - half), middle + half];
    },
  };
}

function logarithmicScale() {
  const range = (plot, low, high) => {
    const first = Math.floor(Math.log10(low ?? 0.001));
    const last = Math.ceil(Math.log10(high ?? 1));
    return [10 ** first, 10 ** Math.max(last, first + 1)];
  };
  return { distr: 3, log: 10, range };
}

/** The powers of ten from the scale's foot to its top. */
function decades(plot, axis, low, high) {
  const found = [];
  for (let power = Math.round(Math.log10(low)); 10 ** power <= high * 1.01; power += 1) {
    found.push(10 ** power);
  }
  return found;
}

/** A line's value at a sample. uPlot draws a gap for null, but not for undefined. */
function valueOf(each, sample) {
  return each.value(sample) ?? null;
}

function sum(items, value) {
  return (items ?? []).length === 0 ? null : items.reduce((all, each) => all + value(each), 0);
}

function variable(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
}
