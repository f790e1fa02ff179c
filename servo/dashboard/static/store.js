// What the page remembers of the server. Its memory is bounded, however long the page stays open.

export const MAX_SAMPLES = 600;
export const MAX_EVENTS = 200;

/** The server, its latest samples, one a second, and its latest events; the oldest come first. */
export class Store {
  constructor() {
    this.server = null;
    this.samples = [];
    this.events = [];
    this.keys = new Set();
  }

  /** The latest sample, or null. */
  get last() {
    return this.samples.at(-1) ?? null;
  }

  /** Replace everything by the answer to `api/history`. */
  replace({ server, samples, events }) {
    this.server = server;
    this.samples = samples.slice(-MAX_SAMPLES);
    this.events = [];
    this.keys.clear();
    for (const event of events) this.addEvent(event);
  }

  /** Add a sample, unless the page already has it. Returns whether it is new. */
  addSample(sample) {
    if (this.last !== null && sample.n <= this.last.n) return false;
    this.samples.push(sample);
    if (this.samples.length > MAX_SAMPLES) this.samples.shift();
    return true;
  }

  /** Add an event, unless the page already has it. Returns whether it is new. */
  addEvent(event) {
    const key = keyOf(event);
    if (this.keys.has(key)) return false;
    this.keys.add(key);
    this.events.push(event);
    if (this.events.length > MAX_EVENTS) this.keys.delete(keyOf(this.events.shift()));
    return true;
  }
}

/** What makes an event different from all others. */
export function keyOf(event) {
  return [event.time, event.name, event.serial, event.generation, event.text].join(" ");
}
