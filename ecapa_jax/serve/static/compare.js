// The first tab: two recordings, a comparison, a threshold to move.

import { Dial } from "./dial.js";
import { ratesAt, formatRange } from "./rates.js";
import { Locked, call } from "./service.js";
import { Slot } from "./slot.js";

const at = (id) => document.getElementById(id);

export class ComparePanel {
  constructor({ onLocked }) {
    Object.assign(this, { onLocked, model: null, dial: null, answer: null });
    const onChange = () => { this.answer = null; this.refresh(); };
    this.slots = ["A", "B"].map((letter) => new Slot(at(`slot-${letter.toLowerCase()}`), {
      key: letter, title: `Recording ${letter}`, share: 0.5, onChange, onLocked,
    }));
    at("compare").addEventListener("click", () => this.compare());
    at("threshold").addEventListener("input", () => this.refresh());
    at("reset").addEventListener("click", () => { at("threshold").value = this.model.threshold; this.refresh(); });
  }

  allow(model) {
    this.model = model;
    for (const slot of this.slots) slot.allow(model);
    // An unbounded score has no limits, so the dial shows the range around the threshold.
    const range = ["cosine", "half"].includes(model.score_type) ? [-1, 1] : [(model.threshold ?? 0) - 10, (model.threshold ?? 0) + 10];
    this.dial = new Dial(at("dial"), range, (value) => { at("threshold").value = value; this.refresh(); });
    [at("threshold").min, at("threshold").max] = range;
    at("threshold").value = model.threshold ?? (range[0] + range[1]) / 2;
    at("reset").hidden = model.threshold === null;
    at("scale").textContent = `Score: ${model.scale}. The red mark is the threshold: drag it.`;
    this.refresh();
  }

  fail(message) {
    at("hint").textContent = message;
  }

  async compare() {
    const button = at("compare");
    const begin = performance.now();
    const files = this.slots.map((slot) => slot.file);
    button.disabled = true;
    button.textContent = "Comparing …";
    at("hint").textContent = "";
    try {
      const answer = await call("/v1/verify", { a: files[0], b: files[1], threshold: at("threshold").value });
      if (this.slots.some((slot, index) => slot.file !== files[index])) return; // the answer is about recordings that were replaced meanwhile
      this.answer = answer;
      const total = performance.now() - begin;
      at("taken").textContent = `${answer.milliseconds.toFixed(0)} ms in the service, ${total.toFixed(0)} ms with the upload; ${answer.seconds.map((part) => `${part.toFixed(1)} s`).join(" and ")} of sound; model ${answer.model}`;
    } catch (error) {
      if (error instanceof Locked) this.onLocked();
      this.fail(error.message);
    } finally {
      button.textContent = "Compare";
      this.refresh();
    }
  }

  refresh() {
    const { model, answer } = this;
    if (!model) return;
    const threshold = Number(at("threshold").value);
    const ready = this.slots.every((slot) => slot.file);
    at("compare").disabled = !ready;
    if (!ready) at("hint").textContent = "Choose both recordings first.";
    else if (at("hint").textContent.startsWith("Choose")) at("hint").textContent = "";
    at("threshold-value").textContent = signed(threshold, 3);
    at("score").textContent = answer ? signed(answer.score, 3) : "–";
    const same = answer && answer.score >= threshold;
    const text = answer ? (same ? "Same speaker" : "Different speakers") : "No score yet";
    if (at("decision").textContent !== text) at("decision").textContent = text;
    at("decision").className = `answer ${answer ? (same ? "yes" : "no") : ""}`;
    const silent = ["A", "B"].filter((_, index) => answer && !answer.speech[index]);
    const warning = silent.length ? `Hardly any speech in recording ${silent.join(" and in recording ")}: this score means nothing.` : "";
    if (at("warning").textContent !== warning) at("warning").textContent = warning;
    if (!answer) at("taken").textContent = "";
    this.dial.show(answer?.score ?? null, threshold, answer ? `Score ${signed(answer.score, 3)}, threshold ${signed(threshold, 3)}` : "No score yet");
    this.showRates(threshold);
  }

  showRates(threshold) {
    const points = this.model.operating_points;
    at("rates").hidden = !points.length;
    const rows = ratesAt(points, threshold).map(({ trials, far, frr }) => {
      const row = document.createElement("tr");
      const head = document.createElement("th");
      head.scope = "row";
      head.textContent = trials.replaceAll("_", " ");
      row.append(head);
      for (const rate of [far, frr]) row.insertCell().textContent = formatRange(rate);
      return row;
    });
    at("rates").querySelector("tbody").replaceChildren(...rows);
  }
}

export const signed = (value, digits) => value.toFixed(digits).replace("-", "−");
