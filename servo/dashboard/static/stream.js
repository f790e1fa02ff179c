// The connection to the dashboard's process: the history first, then the stream of samples and events.
//
// The browser connects a lost EventSource again by itself, and names the last sample it got in
// Last-Event-ID, so the server sends the missed ones. But it gives up after an answer such as 401 or
// 503. Then this module opens a new one, again and again. Each new connection loads the history, too,
// which has the events that were missed.

// The server sends a sample each second. After this many seconds without one, the page says so; after
// SILENT_S, it connects again: the network may have dropped the connection without a word.
const LATE_S = 4;
const SILENT_S = 20;
const FIRST_RETRY_S = 1;
const MAX_RETRY_S = 10;
const TIMEOUT_MS = 10_000;

/**
 * Opens the stream and keeps it open.
 *
 * handlers  functions by name: history(values), server(values), sample(values), event(values),
 *           status(kind, seconds): "live", "late" or "lost", and for how many seconds;
 *           signedOut()
 */
export class Stream {
  constructor(handlers) {
    this.handlers = handlers;
    this.source = null;
    this.pending = null; // what the stream has sent before the history has arrived
    this.heardAt = now();
    this.lostAt = null;
    this.retryS = FIRST_RETRY_S;
    this.timer = null;
  }

  start() {
    this.connect();
    setInterval(() => this.check(), 1000);
  }

  connect() {
    this.close();
    this.heardAt = now();
    const source = new EventSource("api/stream");
    this.source = source;
    source.addEventListener("open", () => this.onOpen());
    source.addEventListener("error", () => this.onError(source));
    for (const name of ["server", "sample", "event"]) {
      source.addEventListener(name, (message) => this.onMessage(name, JSON.parse(message.data)));
    }
  }

  close() {
    clearTimeout(this.timer);
    this.timer = null;
    this.source?.close();
    this.source = null;
  }

  onOpen() {
    this.heardAt = now();
    this.loadHistory();
  }

  async loadHistory() {
    this.pending = [];
    try {
      const response = await fetchHistory();
      if (response.status === 401) return this.signOut();
      if (!response.ok) throw new Error(`status ${response.status}`);
      this.handlers.history(await response.json());
    } catch (error) {
      console.info("the history could not be loaded:", error.message);
      return this.onError(this.source, true);
    }
    this.retryS = FIRST_RETRY_S;
    this.lostAt = null;
    const pending = this.pending;
    this.pending = null;
    for (const [name, values] of pending) this.handlers[name](values);
    this.handlers.status("live", 0);
  }

  onMessage(name, values) {
    this.heardAt = now();
    if (this.pending !== null) this.pending.push([name, values]);
    else this.handlers[name](values);
  }

  onError(source, giveUp = false) {
    if (source !== this.source || source === null) return;
    this.lostAt ??= now();
    this.check();
    if (giveUp || source.readyState === EventSource.CLOSED) this.retry();
  }

  /** Connect again after a while; the time doubles with each failure. */
  retry() {
    this.close();
    this.timer = setTimeout(() => this.reconnect(), this.retryS * 1000);
    this.retryS = Math.min(MAX_RETRY_S, this.retryS * 2);
  }

  /** An EventSource does not tell the status of an answer, so ask for the sign-in first. */
  async reconnect() {
    try {
      const response = await fetchHistory();
      if (response.status === 401) return this.signOut();
    } catch {
      return this.retry(); // the dashboard's process does not answer
    }
    this.connect();
  }

  signOut() {
    this.close();
    this.handlers.signedOut();
  }

  /** Tell the page how the connection is. */
  check() {
    const silent = now() - this.heardAt;
    if (this.lostAt !== null) this.handlers.status("lost", now() - this.lostAt);
    else if (silent > LATE_S) this.handlers.status("late", silent);
    else this.handlers.status("live", 0);
    if (silent > SILENT_S && this.source !== null) {
      this.lostAt ??= now() - silent;
      this.retry();
    }
  }
}

function fetchHistory() {
  return fetch("api/history", { cache: "no-store", signal: AbortSignal.timeout(TIMEOUT_MS) });
}

const now = () => performance.now() / 1000;
