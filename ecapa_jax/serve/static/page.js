// The page: two slots, a comparison, a threshold to move.

import { Dial } from "./dial.js";
import { ratesAt, formatRange } from "./rates.js";
import { Locked, call, useToken } from "./service.js";
import { Slot } from "./slot.js";

const at = (id) => document.getElementById(id);
const state = { model: null, dial: null, answer: null };
const onChange = () => { state.answer = null; refresh(); };
const slots = ["A", "B"].map((letter) => new Slot(at(`slot-${letter.toLowerCase()}`), letter, { onChange, onLocked: ask }));

async function start() {
  try {
    state.model = await call("/v1/model");
  } catch (error) {
    if (error instanceof Locked) ask();
    else at("hint").textContent = error.message;
    return;
  }
  const { model } = state;
  at("access").hidden = true;
  for (const slot of slots) slot.allow(model);
  // An unbounded score has no limits, so the dial shows the range around the threshold.
  const range = ["cosine", "half"].includes(model.score_type) ? [-1, 1] : [(model.threshold ?? 0) - 10, (model.threshold ?? 0) + 10];
  state.dial = new Dial(at("dial"), range, (value) => { at("threshold").value = value; refresh(); });
  [at("threshold").min, at("threshold").max] = range;
  at("threshold").value = model.threshold ?? (range[0] + range[1]) / 2;
  at("reset").hidden = model.threshold === null;
  at("scale").textContent = `Score: ${model.scale}. The red mark is the threshold: drag it.`;
  at("model").textContent = `Model: ${model.name}, ${(model.parameters / 1e6).toFixed(1)} million parameters, voiceprints of ${model.embedding_dim} numbers`;
  refresh();
}

function ask() {
  at("access").hidden = false;
  at("token").focus();
}

async function compare() {
  const button = at("compare");
  const begin = performance.now();
  const files = slots.map((slot) => slot.file);
  button.disabled = true;
  button.textContent = "Comparing …";
  at("hint").textContent = "";
  try {
    const answer = await call("/v1/verify", { a: files[0], b: files[1], threshold: at("threshold").value });
    if (slots.some((slot, index) => slot.file !== files[index])) return; // the answer is about recordings that were replaced meanwhile
    state.answer = answer;
    const total = performance.now() - begin;
    at("taken").textContent = `${answer.milliseconds.toFixed(0)} ms in the service, ${total.toFixed(0)} ms with the upload; ${answer.seconds.map((part) => `${part.toFixed(1)} s`).join(" and ")} of sound; model ${answer.model}`;
  } catch (error) {
    if (error instanceof Locked) ask();
    at("hint").textContent = error.message;
  } finally {
    button.textContent = "Compare";
    refresh();
  }
}

function refresh() {
  const { model, answer } = state;
  if (!model) return;
  const threshold = Number(at("threshold").value);
  const ready = slots.every((slot) => slot.file);
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
  state.dial.show(answer?.score ?? null, threshold, answer ? `Score ${signed(answer.score, 3)}, threshold ${signed(threshold, 3)}` : "No score yet");
  showRates(threshold);
}

function showRates(threshold) {
  const points = state.model.operating_points;
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

const signed = (value, digits) => value.toFixed(digits).replace("-", "−");

at("compare").addEventListener("click", compare);
at("threshold").addEventListener("input", refresh);
at("reset").addEventListener("click", () => { at("threshold").value = state.model.threshold; refresh(); });
at("access").addEventListener("submit", (event) => { event.preventDefault(); useToken(at("token").value); start(); });
start();
