// The dashboard's page: takes what the server sends, and draws it.

import { Charts } from "./charts.js";
import { Control } from "./control.js";
import { byId, element, setText } from "./dom.js";
import { wholeSeconds } from "./format.js";
import { Overview } from "./overview.js";
import { Store } from "./store.js";
import { Stream } from "./stream.js";
import { Pools, Workers } from "./tables.js";
import { Timeline } from "./timeline.js";

const store = new Store();
const control = new Control(() => store.last);
const overview = new Overview();
const charts = new Charts(byId("charts"));
const workers = new Workers(byId("workers"), control);
const pools = new Pools(byId("pools"), byId("pools-section"));
const timeline = new Timeline(byId("timeline"), byId("filter"));

let drawing = 0; // the number of the frame that is asked for; 0 without one
let areEventsNew = false;

/** Draw before the browser's next frame; a hidden page has none, so it costs nothing. */
function draw(withEvents = false) {
  areEventsNew ||= withEvents;
  drawing ||= requestAnimationFrame(() => {
    drawing = 0;
    drawSample();
    if (areEventsNew) timeline.draw(store.events);
    areEventsNew = false;
  });
}

function drawSample() {
  const sample = store.last;
  if (sample === null) return;
  overview.draw(store.server, sample);
  charts.draw(store.samples, store.events);
  workers.draw(sample, store.server?.control ?? false);
  pools.draw(sample.pools ?? []);
}

function takeServer(server) {
  store.server = server;
  control.allow(server.control);
  byId("sign-out").hidden = server.token === false;
}

let statusShown = "";

function showConnection(kind, seconds) {
  const texts = {
    live: "live",
    late: `no figures for ${wholeSeconds(seconds)}`,
    lost: `connection lost ${wholeSeconds(seconds)} ago, connecting again`,
    out: "signed out",
  };
  const target = byId("connection");
  target.className = `connection ${kind}`;
  setText(target, texts[kind]);
  document.body.classList.toggle("stale", kind !== "live");
  if (kind !== statusShown && (kind === "lost" || statusShown === "lost")) {
    byId("announcement").textContent =
      kind === "lost" ? "The connection is lost. Connecting again." : "Connected again.";
  }
  statusShown = kind;
}

const stream = new Stream({
  history(values) {
    store.replace(values);
    takeServer(values.server);
    draw(true);
  },
  server(values) {
    takeServer(values);
    draw();
  },
  sample(values) {
    if (store.addSample(values)) draw();
  },
  event(values) {
    if (store.addEvent(values)) draw(true);
  },
  status: showConnection,
  signedOut() {
    // The token has changed, or the session is over. The figures stay on the screen.
    const link = element("a", { href: "./" }, "Sign in again");
    byId("failure").replaceChildren("The server no longer accepts this session. ", link);
    showConnection("out", 0);
  },
});

byId("filter").addEventListener("change", () => draw(true));
stream.start();
