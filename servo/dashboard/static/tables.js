// The tables of workers and of pools. Rows are kept, and only changed texts are set: so the focus and
// a selection survive the next second.

import { byId, element, fill, icon, place, setText } from "./dom.js";
import { bytes, count, duration, latency, NONE, percent, rate, wholeSeconds } from "./format.js";
import { isBlocked, loadKind } from "./overview.js";

// Columns: the title, and a function from a row's values to its text. `number` aligns at the right.
const WORKER_COLUMNS = [
  { title: "Slot", number: true, text: (worker) => String(worker.slot) },
  { title: "State", name: "state" },
  { title: "pid", number: true, text: (worker) => (worker.pid ? String(worker.pid) : NONE) },
  { title: "Age", number: true, text: (worker) => duration(worker.age) },
  { title: "Gen.", number: true, text: (worker) => count(worker.generation) },
  { title: "Req/s", number: true, text: (worker) => rate(worker.rate) },
  { title: "p99", number: true, text: (worker) => latency(worker.p99) },
  { title: "CPU", number: true, text: (worker) => percent(worker.cpu) },
  { title: "Memory", number: true, text: (worker) => bytes(worker.memory) },
  { title: "Use", number: true, name: "use" },
  { title: "In flight", number: true, text: (worker) => count(worker.in_flight) },
  { title: "Lag", number: true, text: (worker) => latency(worker.lag) },
  { title: "Requests", number: true, text: (worker) => count(worker.requests) },
  { title: "Previous worker ended", name: "last", text: (worker) => ending(worker.last_exit) },
];
const POOL_COLUMNS = [
  { title: "Pool", text: (pool) => pool.name ?? NONE },
  { title: "State", text: (pool) => pool.state ?? NONE },
  { title: "Processes", number: true, text: (pool) => `${count(pool.workers)} of ${count(pool.target)}` },
  { title: "Busy", number: true, text: (pool) => count(pool.busy) },
  { title: "Queued", number: true, text: (pool) => count(pool.queued) },
  { title: "Queue's limit", number: true, text: (pool) => count(pool.queue_limit) },
  { title: "Tasks/s", number: true, text: (pool) => rate(pool.rate) },
  { title: "p99", number: true, text: (pool) => latency(pool.p99) },
  { title: "Failed", number: true, text: (pool) => count(pool.failed) },
  { title: "Rejected", number: true, text: (pool) => count(pool.rejected) },
  { title: "Memory", number: true, text: (pool) => bytes(pool.memory) },
];
const ICONS = { ready: "ok", booting: "busy", spawned: "busy", draining: "out" };

/** Why a worker ended. The sentence begins with "worker 1 (pid 4711) ended", like the column. */
function ending(text) {
  return (text ?? "").replace(/^worker \d+ \(pid \d+\) ended /, "") || NONE;
}

/**
 * A table whose rows have keys.
 *
 * root     the <table>
 * caption  its caption, for screen readers
 * columns  see WORKER_COLUMNS
 */
class KeyedTable {
  constructor(root, caption, columns) {
    this.columns = columns;
    this.rows = new Map();
    this.head = element("tr", { role: "row" });
    this.body = element("tbody", { role: "rowgroup" });
    // A phone shows each row as a card. With the roles, it remains a table for screen readers.
    root.setAttribute("role", "table");
    root.replaceChildren(
      element("caption", { class: "hidden" }, caption),
      element("thead", { role: "rowgroup" }, this.head),
      this.body,
    );
    this.head.append(...columns.map((column) => heading(column.title, column.number)));
  }

  /**
   * Show the rows. Returns the values of the row that had the focus and is gone, or null.
   *
   * rows      pairs of a key and values
   * drawCell  draws a cell that is not only a text; returns whether it did
   */
  draw(rows, drawCell) {
    const keys = new Set(rows.map(([key]) => key));
    const gone = [...this.rows.keys()].filter((key) => !keys.has(key));
    for (const [key, values] of rows) {
      const row = this.rows.get(key) ?? this.addRow(key, values);
      row.values = values;
      this.columns.forEach((column, i) => {
        if (column.name && drawCell?.(column.name, row.cells[i], values)) return;
        setText(row.cells[i], column.text(values));
      });
    }
    const lost = gone.map((key) => this.remove(key)).find((values) => values !== null);
    place(this.body, [...keys].map((key) => this.rows.get(key).line));
    return lost ?? null;
  }

  addRow(key, values) {
    const cells = this.columns.map((column, index) => {
      const kind = [column.number ? "number" : "", column.name ?? ""].join(" ").trim();
      const attributes = { class: kind || null, "data-label": column.title };
      if (index === 0) return element("th", { ...attributes, scope: "row", role: "rowheader" });
      return element("td", { ...attributes, role: "cell" });
    });
    const row = { values, cells, line: element("tr", { role: "row" }, ...cells) };
    this.rows.set(key, row);
    return row;
  }

  /** Remove a row. Returns its values if it had the focus, or null. */
  remove(key) {
    const { line, values } = this.rows.get(key);
    const hadFocus = line.contains(document.activeElement);
    line.remove();
    this.rows.delete(key);
    return hadFocus ? values : null;
  }
}

function heading(title, isNumber) {
  return element("th", { scope: "col", role: "columnheader", class: isNumber ? "number" : null }, title);
}

/** The table of workers; `control` gets the operator's wishes. */
export class Workers {
  constructor(root, control) {
    this.root = root;
    this.control = control;
    this.table = new KeyedTable(root, "The workers of the server", WORKER_COLUMNS);
    this.hasControl = false;
  }

  draw(sample, hasControl) {
    if (hasControl !== this.hasControl) this.setControl(hasControl);
    const workers = sample.workers ?? [];
    const lost = this.table.draw(
      workers.map((worker) => [worker.serial, worker]),
      drawWorkerCell,
    );
    for (const row of this.table.rows.values()) this.drawRow(row);
    if (lost !== null) this.passFocus(lost);
    setText(byId("workers-sum"), sumOf(workers));
  }

  drawRow(row) {
    row.line.classList.toggle("blocked", isBlocked(row.values));
    if (this.hasControl && row.actions === undefined) this.addActions(row);
  }

  /** The row of a worker that has ended had the focus: its slot's next worker gets it. */
  passFocus({ slot }) {
    const rows = [...this.table.rows.values()];
    const heir = rows.find((each) => each.values.slot === slot) ?? rows[0];
    (heir?.actions?.querySelector("button") ?? byId("workers-title")).focus();
  }

  setControl(hasControl) {
    this.hasControl = hasControl;
    this.table.head.querySelector(".actions-head")?.remove();
    for (const row of this.table.rows.values()) {
      row.actions?.remove();
      row.actions = undefined;
    }
    if (hasControl) {
      const head = heading("Control");
      head.classList.add("actions-head");
      this.table.head.append(head);
    }
  }

  addActions(row) {
    const of = `worker ${row.values.slot}, pid ${row.values.pid}`;
    const button = (text, name, act) => {
      const made = element("button", { type: "button", class: "small", "aria-label": name }, text);
      made.addEventListener("click", () => act(row.values));
      return made;
    };
    const restart = button("Restart", `Restart ${of}`, (worker) => this.control.askRestart(worker));
    const stack = button("Stack", `Stack of ${of}`, (worker) => this.control.showStack(worker));
    row.actions = element("td", { class: "actions-cell", role: "cell", "data-label": "Control" });
    row.actions.append(restart, stack);
    row.line.append(row.actions);
  }
}

/** Draw a cell that is not only a text. Returns whether it did. */
function drawWorkerCell(name, cell, worker) {
  if (name === "state") {
    const blocked = isBlocked(worker);
    const texts = [blocked ? `blocked ${wholeSeconds(worker.blocked)}` : worker.state];
    if (blocked && worker.state !== "ready") texts.unshift(worker.state);
    const text = texts.join(", ");
    const kind = blocked ? "bad" : { ready: "good", draining: "calm" }[worker.state] ?? "busy";
    const symbol = blocked ? "warn" : ICONS[worker.state] ?? "dot";
    const leaving = worker.leaving ?? "";
    fill(cell, `${text} ${leaving}`, () => [
      element("span", { class: `pill ${kind}` }, icon(symbol), text),
      leaving === "" ? null : element("span", { class: "why quiet" }, leaving),
    ]);
    return true;
  }
  if (name === "use") {
    const share = worker.use ?? 0;
    fill(cell, percent(worker.use), () => [
      // The text says the same.
      element("meter", { max: 1, value: share, class: loadKind(share), "aria-hidden": "true" }),
      element("span", {}, percent(worker.use)),
    ]);
    return true;
  }
  return false;
}

function sumOf(workers) {
  if (workers.length === 0) return "There are no workers.";
  const counts = new Map();
  for (const worker of workers) {
    const state = isBlocked(worker) ? "blocked" : worker.state;
    counts.set(state, (counts.get(state) ?? 0) + 1);
  }
  return [...counts].map(([state, number]) => `${number} ${state}`).join(", ");
}

/** The table of pools, in a section that is hidden without pools. */
export class Pools {
  constructor(root, section) {
    this.section = section;
    this.table = new KeyedTable(root, "The pools of the server", POOL_COLUMNS);
  }

  draw(pools) {
    this.section.hidden = pools.length === 0;
    this.table.draw(pools.map((pool) => [pool.name, pool]));
  }
}
