// The third tab: who is enrolled, and who of them speaks in a recording.

import { signed } from "./compare.js";
import { Locked, call } from "./service.js";
import { Slot } from "./slot.js";

const at = (id) => document.getElementById(id);

export class PeoplePanel {
  constructor({ onLocked }) {
    Object.assign(this, { onLocked, model: null, busy: false });
    this.slot = new Slot(at("slot-person"), {
      key: "person", title: "Recording of one person", share: 0.99, onChange: () => { this.forget(); this.refresh(); }, onLocked,
    });
    at("identify").addEventListener("click", () => this.identify());
    at("enroll").addEventListener("submit", (event) => { event.preventDefault(); this.enroll(); });
  }

  allow(model) {
    this.model = model;
    at("people").hidden = !model.store;
    at("no-store").textContent = model.store ? "" : "This service has no store of speakers. Start it with: ecapa-jax serve --store FILE";
    if (!model.store) return;
    this.slot.allow(model);
    this.refresh();
    this.attempt(() => this.list());
  }

  fail(message) {
    at("people-hint").textContent = message;
    at("no-store").textContent = at("people").hidden ? message : "";
  }

  refresh() {
    const ready = Boolean(this.slot.file) && !this.busy;
    at("identify").disabled = !ready;
    at("enroll-button").disabled = !ready;
    at("people-hint").textContent = this.slot.file ? "" : "Choose a recording first.";
  }

  // The answer is about a recording or a store that is no longer there.
  forget() {
    at("who").textContent = "No answer yet";
    at("who").className = "answer";
    at("candidates").parentElement.hidden = true;
  }

  // Runs what talks to the service; shows why it fails.
  async attempt(action) {
    this.busy = true;
    this.refresh();
    let message = "";
    try {
      message = await action() ?? "";
    } catch (error) {
      if (error instanceof Locked) this.onLocked();
      message = error.message;
    } finally {
      this.busy = false;
      this.refresh();
      if (message) at("people-hint").textContent = message;
    }
  }

  identify() {
    const { file } = this.slot;
    return this.attempt(async () => {
      const { speaker, threshold, candidates } = await call("/v1/identify", { file });
      if (file !== this.slot.file) return; // the user has chosen another recording meanwhile
      at("who").textContent = speaker ?? (candidates.length ? "Nobody who is enrolled" : "Nobody is enrolled yet");
      at("who").className = `answer ${speaker ? "yes" : ""}`;
      const limit = threshold === null ? "This model publishes no threshold." : `Threshold: ${signed(threshold, 3)}.`;
      at("candidates").parentElement.hidden = !candidates.length;
      fill("candidates", candidates.map(({ name, score }) => [name, signed(score, 3)]));
      return limit;
    });
  }

  enroll() {
    const { file } = this.slot;
    const name = at("name").value;
    if (!file) return undefined;
    return this.attempt(async () => {
      const done = await call("/v1/enroll", { name, file });
      at("name").value = "";
      await this.list();
      return done.added ? `${done.name} is enrolled with this recording.` : `${done.name} was enrolled with this recording already.`;
    });
  }

  remove(name) {
    if (!window.confirm(`Remove ${name} and all voiceprints of ${name} from the store?`)) return undefined;
    return this.attempt(async () => {
      await call(`/v1/speakers/${encodeURIComponent(name)}`, undefined, "DELETE");
      this.forget();
      await this.list();
      at("everyone").parentElement.focus(); // the button that had the focus is gone
      return `${name} is removed.`;
    });
  }

  async list() {
    const everyone = await call("/v1/speakers");
    at("nobody").hidden = everyone.length > 0;
    at("everyone").parentElement.hidden = !everyone.length;
    fill("everyone", everyone.map(({ name, utterances }) => {
      const button = Object.assign(document.createElement("button"), { type: "button", textContent: "Remove" });
      button.setAttribute("aria-label", `Remove ${name}`);
      button.addEventListener("click", () => this.remove(name));
      return [name, String(utterances), button];
    }));
  }
}

function fill(table, rows) {
  const made = rows.map(([head, ...cells]) => {
    const row = document.createElement("tr");
    const name = Object.assign(document.createElement("th"), { scope: "row", textContent: head });
    row.append(name);
    for (const cell of cells) row.insertCell().append(cell);
    return row;
  });
  at(table).querySelector("tbody").replaceChildren(...made);
}
