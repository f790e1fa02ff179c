// The timeline of reloads, exits, and other events of the server.

import { element, icon, place } from "./dom.js";
import { clockSeconds, dayBefore, duration } from "./format.js";
import { keyOf } from "./store.js";

// The reasons of exits that an operator has not asked for and that no setting has planned.
const TROUBLE = new Set([
  "crashed",
  "exited",
  "out_of_memory",
  "no_heartbeat",
  "request_timeout",
  "boot_failed",
  "boot_timeout",
  "unhealthy",
  "max_memory_hard",
  "row_overwritten",
]);
// The events of a worker's ordinary life.
const ORDINARY = new Set(["spawned", "booting", "ready", "draining"]);
const KINDS = { exited: "exit", stopping: "stop" };
const START = /_started$/;
const END = /_(finished|rolled_back|failed)$/;

/** Whether a worker ended unexpectedly. */
export function isUnexpectedExit(event) {
  return event.name === "exited" && TROUBLE.has(event.reason);
}

/** Whether something went wrong: a worker ended unexpectedly, or a reload failed. */
function isTrouble(event) {
  return isUnexpectedExit(event) || event.name === "rolled_back" || /_(rolled_back|failed)$/.test(event.name);
}

/** The timeline. `root` is its list, `filter` the field that selects the events. */
export class Timeline {
  constructor(root, filter) {
    this.root = root;
    this.filter = filter;
    this.shown = new Map(); // the entries on the screen: a long list keeps its open tracebacks
  }

  draw(events) {
    const entries = entriesOf(events).filter((entry) => matches(entry, this.filter.value));
    const shown = new Map();
    for (const entry of entries.reverse()) {
      shown.set(entry.key, this.shown.get(entry.key) ?? item(entry));
    }
    this.shown = shown;
    const items = [...shown.values()];
    if (items.length === 0) items.push(element("li", { class: "quiet" }, "Nothing has happened yet."));
    place(this.root, items);
  }
}

/** Turn events into entries, oldest first. The start and the end of a reload are one entry. */
function entriesOf(events) {
  const entries = [];
  const open = new Map(); // the entries of what has not ended, by family
  for (const event of events) {
    const family = event.name.replace(START, "").replace(END, "");
    let seconds = event.seconds ?? null;
    if (END.test(event.name) && open.has(family)) {
      const begun = open.get(family);
      seconds ??= event.time - begun.event.time;
      entries.splice(entries.indexOf(begun), 1);
      open.delete(family);
    }
    const entry = { event, family, seconds };
    entry.key = keyOf(event);
    entries.push(entry);
    if (START.test(event.name)) open.set(family, entry);
  }
  return entries;
}

function matches({ event }, filter) {
  if (filter === "trouble") return isTrouble(event);
  return filter === "all" || !ORDINARY.has(event.name);
}

function item({ event, family, seconds }) {
  const [symbol, outcome] = outcomeOf(event);
  const time = element("time", { datetime: new Date(event.time * 1000).toISOString() });
  time.append(dayBefore(event.time, Date.now() / 1000) + clockSeconds(event.time));
  const kind = KINDS[event.name] ?? family.replaceAll("_", " ");
  const head = element("span", { class: `kind ${symbol.kind}` }, icon(symbol.icon), kind);
  const [first, ...rest] = event.text.split("\n");
  const text = element("span", { class: "text" }, first);
  const facts = [outcome, seconds === null ? "" : duration(seconds)].filter((fact) => fact !== "");
  const made = element("li", { class: symbol.kind }, time, head, text);
  if (facts.length > 0) made.append(element("span", { class: "facts" }, facts.join(", ")));
  const details = [...rest, event.details ?? ""].join("\n").trim();
  if (details !== "") made.append(traceback(details));
  return made;
}

/** The icon of an event, the kind that gives its colour, and its outcome as text. */
function outcomeOf(event) {
  const { name } = event;
  if (name === "exited") {
    const reason = (event.reason ?? "").replaceAll("_", " ");
    return isTrouble(event) ? [mark("warn", "bad"), reason] : [mark("out", "calm"), reason];
  }
  if (isTrouble(event)) {
    return [mark("fail", "bad"), name.endsWith("_failed") ? "failed" : "rolled back"];
  }
  if (name.endsWith("_finished")) return [mark("ok", "good"), "finished"];
  if (name.endsWith("_started")) return [mark("busy", "busy"), "running"];
  if (name === "scaled") return [mark("scale", "calm"), ""];
  return [mark("dot", "calm"), ""];
}

const mark = (icon, kind) => ({ icon, kind });

function traceback(text) {
  return element("details", {}, element("summary", {}, "Details"), element("pre", { tabindex: "0" }, text));
}
