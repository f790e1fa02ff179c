// The server's state, what is blocked, and its totals.

import { byId, element, fill, icon, setText } from "./dom.js";
import { bytes, count, duration, latency, NONE, percent, rate, wholeSeconds } from "./format.js";

// The share of the workers' time from which a load counts as high, and as full.
const HIGH = 0.75;
const FULL = 0.95;

/** Whether a worker is blocked: its event loop, or its only thread, does nothing else. */
export function isBlocked(worker) {
  return worker.blocked !== null && worker.blocked !== undefined;
}

export class Overview {
  constructor() {
    this.cells = new Map();
    this.blockedBefore = new Set();
  }

  draw(server, sample) {
    this.drawTitle(server, sample);
    const troubles = troublesOf(sample);
    drawTroubles(byId("trouble"), troubles);
    this.announce(sample);
    document.title = `${troubles.length > 0 ? "⚠ " : ""}${server?.name || "Servo"}: Servo`;
    for (const figure of figuresOf(sample)) this.drawFigure(figure);
  }

  drawTitle(server, sample) {
    if (server !== null) {
      setText(byId("name"), server.name || "Servo");
      const uptime = sample.time - server.started;
      const facts = [
        server.app,
        `${server.worker_class} workers`,
        `Servo ${server.version}`,
        `pid ${server.pid}`,
        `up ${duration(Math.max(0, uptime))}`,
      ];
      setText(byId("about"), facts.join(" · "));
    }
    const state = byId("state");
    state.className = `pill ${stateKind(sample.state)}`;
    const text = sample.phase ? `${sample.state}: ${sample.phase}` : sample.state;
    fill(state, text, () => [icon(stateIcon(sample.state)), text]);
  }

  /** Tell screen readers once, and not each second, that a worker is blocked. */
  announce(sample) {
    const blocked = new Set((sample.workers ?? []).filter(isBlocked).map((worker) => worker.slot));
    const fresh = [...blocked].filter((slot) => !this.blockedBefore.has(slot));
    if (fresh.length > 0) {
      byId("announcement").textContent = `Blocked: worker ${fresh.join(", ")}`;
    } else if (blocked.size === 0 && this.blockedBefore.size > 0) {
      byId("announcement").textContent = "No worker is blocked any more";
    }
    this.blockedBefore = blocked;
  }

  drawFigure({ label, value, note = "", kind = "" }) {
    let cell = this.cells.get(label);
    if (cell === undefined) {
      cell = { value: element("dd", { class: "value" }), note: element("dd", { class: "note" }) };
      cell.box = element("div", {}, element("dt", {}, label), cell.value, cell.note);
      this.cells.set(label, cell);
      byId("totals").append(cell.box);
    }
    cell.box.className = kind;
    setText(cell.value, value);
    setText(cell.note, note);
  }
}

function stateKind(state) {
  if (state === "lost") return "bad";
  return state === "serving" || state === "running" ? "good" : "busy";
}

function stateIcon(state) {
  return { good: "ok", busy: "busy", bad: "warn" }[stateKind(state)];
}

/** What is blocked or lost now, as texts. */
function troublesOf(sample) {
  if (sample.state === "lost") return ["The server does not answer: it has ended, or it is stopped."];
  const blocked = (sample.workers ?? [])
    .filter(isBlocked)
    .map(
      (worker) =>
        `Worker ${worker.slot} (pid ${worker.pid}) is blocked for ${wholeSeconds(worker.blocked)}, ` +
        `with ${count(worker.in_flight)} in flight.`,
    );
  const queues = (sample.accept_queue ?? [])
    .filter((queue) => queue.limit > 0 && queue.length >= queue.limit * HIGH)
    .map(
      (queue) =>
        `${count(queue.length)} of at most ${count(queue.limit)} connections wait at ${queue.listener}.`,
    );
  return [...blocked, ...queues];
}

function drawTroubles(list, troubles) {
  list.classList.toggle("bad", troubles.length > 0);
  fill(list, troubles.join("\n"), () => {
    if (troubles.length === 0) return [element("li", {}, icon("ok"), "Nothing is blocked.")];
    return troubles.map((text) => element("li", {}, icon("warn"), text));
  });
}

/** The server's figures: label, value, a note, and the kind of a value that needs attention. */
function figuresOf(sample) {
  const total = sample.total ?? {};
  const workers = sample.workers ?? [];
  const ready = workers.filter((worker) => worker.state === "ready").length;
  const errors = sample.classes?.["5xx"] ?? null;
  const queued = totalOf(sample.accept_queue, "length");
  const limit = totalOf(sample.accept_queue, "limit");
  return [
    { label: "Requests/s", value: rate(sample.rate), note: `${count(total.requests)} in all` },
    {
      label: "5xx/s",
      value: rate(errors),
      note: `${count(total["5xx"])} in all`,
      kind: errors > 0 ? "bad" : "",
    },
    { label: "p50", value: latency(sample.p50), note: "last 5 s" },
    { label: "p99", value: latency(sample.p99), note: "last 5 s" },
    { label: "p99.9", value: latency(sample.p999), note: "last 5 s" },
    { label: "In flight", value: count(sample.in_flight), note: "requests" },
    { label: "Utilisation", value: percent(sample.use), note: "of the workers", kind: loadKind(sample.use) },
    { label: "CPU", value: percent(sample.cpu), note: "of one core" },
    { label: "Memory", value: bytes(sample.memory), note: "" },
    {
      label: "Workers",
      value: sample.state === "lost" ? NONE : `${ready} of ${count(sample.target)}`,
      note: `generation ${count(sample.generation)}`,
      kind: ready < sample.target ? "busy" : "",
    },
    { label: "Accept queue", value: count(queued), note: limit === null ? "" : `of ${count(limit)}` },
    { label: "Loop lag", value: latency(sample.loop_lag), note: "the highest" },
  ];
}

function totalOf(queues, name) {
  if (!queues || queues.length === 0) return null;
  return queues.reduce((all, queue) => all + queue[name], 0);
}

/** The kind of a share of the workers' time. */
export function loadKind(share) {
  if (share === null || share === undefined || share < HIGH) return "";
  return share >= FULL ? "bad" : "busy";
}
