// The operator's commands: reload, scale, and restart of a worker. Each asks first, and shows its
// result. The server checks everything again: without --dashboard-control it refuses all of them.

import { byId, setText } from "./dom.js";

/** The commands; `lastSample` returns the latest sample, or null. */
export class Control {
  constructor(lastSample) {
    this.lastSample = lastSample;
    this.dialog = byId("confirm");
    this.count = byId("confirm-count");
    this.onYes = null;
    this.isRunning = false;
    byId("reload").addEventListener("click", () => this.askReload());
    byId("scale").addEventListener("click", () => this.askScale());
    byId("confirm-no").addEventListener("click", () => this.dialog.close(""));
    byId("confirm-less").addEventListener("click", () => this.count.stepDown());
    byId("confirm-more").addEventListener("click", () => this.count.stepUp());
    this.dialog.addEventListener("close", () => this.onClose());
  }

  /** Show or hide the controls. */
  allow(isAllowed) {
    byId("controls").hidden = !isAllowed;
    byId("read-only").hidden = isAllowed;
  }

  askReload() {
    this.ask({
      title: "Reload the server?",
      text:
        "New workers load the code and the configuration, and take the place of the old ones. " +
        "No request is lost.",
      yes: "Reload",
      command: () => ({ command: "reload" }),
      running: "Reloading…",
    });
  }

  askScale() {
    const target = this.lastSample()?.target ?? 1;
    this.ask({
      title: "Scale the server?",
      text: `It has ${target} ${target === 1 ? "worker" : "workers"} now.`,
      yes: "Scale",
      number: target,
      command: () => ({ command: "scale", workers: this.count.valueAsNumber }),
      running: "Scaling…",
    });
  }

  askRestart({ slot, pid }) {
    this.ask({
      title: `Restart worker ${slot}?`,
      text: `A new worker takes the place of pid ${pid}, which finishes its requests first.`,
      yes: "Restart",
      command: () => ({ command: "restart", slot }),
      running: `Restarting worker ${slot}…`,
    });
  }

  /** Show the stack of a worker. */
  async showStack({ slot, pid }) {
    setText(byId("stack-title"), `Stack of worker ${slot} (pid ${pid})`);
    setText(byId("stack-text"), "Reading…");
    byId("stack").showModal();
    try {
      const response = await fetch(`api/stack?slot=${slot}`, { cache: "no-store" });
      const answer = await response.json();
      setText(byId("stack-text"), answer.text ?? answer.error ?? `status ${response.status}`);
    } catch (error) {
      setText(byId("stack-text"), `The server does not answer: ${error.message}`);
    }
  }

  ask({ title, text, yes, number = null, command, running }) {
    if (this.isRunning) return this.show("", "Wait until the last command is over.");
    setText(byId("confirm-title"), title);
    setText(byId("confirm-text"), text);
    setText(byId("confirm-yes"), yes);
    byId("confirm-number").hidden = number === null;
    this.count.disabled = number === null;
    this.count.required = number !== null;
    if (number !== null) this.count.value = number;
    this.onYes = () => this.send(command(), running);
    this.dialog.returnValue = "";
    this.dialog.showModal();
    // A second Enter by mistake must not confirm.
    (number === null ? byId("confirm-no") : this.count).focus();
  }

  onClose() {
    const act = this.onYes;
    this.onYes = null;
    if (this.dialog.returnValue === "yes") act?.();
  }

  async send(command, running) {
    this.isRunning = true;
    this.show(running, "");
    try {
      const response = await fetch("api/control", {
        method: "POST",
        headers: { "Content-Type": "application/json", "X-Servo-Control": "1" },
        body: JSON.stringify(command),
      });
      const answer = await response.json();
      if (response.ok && answer.ok) this.show(answer.text, "");
      else this.show("", answer.error ?? `The server refused it with status ${response.status}.`);
    } catch (error) {
      this.show("", `No answer (${error.message}). The timeline shows the command's outcome.`);
    } finally {
      this.isRunning = false;
    }
  }

  /** Show a result or a failure; screen readers read it, too. */
  show(result, failure) {
    setText(byId("result"), result);
    setText(byId("failure"), failure);
  }
}
