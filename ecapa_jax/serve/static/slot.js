// A recording: the user chooses, uploads, drops or records it, and the page shows it.

import { Locked, call } from "./service.js";
import { Recorder } from "./recorder.js";
import { drawMel, drawWave } from "./pictures.js";

async function fetchSample(name) {
  const response = await fetch(`/static/samples/${name}`).catch(() => null);
  if (!response?.ok) throw new Error("The sample can't be read. Check that the service is running.");
  return new File([await response.blob()], name, { type: "audio/flac" });
}

export class Slot {
  // key: part of the elements' ids. title: the heading. share: of the largest request, that this recording may fill.
  // samples: [{ name, title }], instead of the service's; loadSample: from a name to a File. pictures: whether to draw.
  constructor(root, { key, title, share = 1, samples = null, loadSample = fetchSample, pictures = true, onChange, onLocked }) {
    Object.assign(this, { root, title, share, samples, loadSample, pictures, onChange, onLocked, file: null, turn: 0 });
    const what = title[0].toLowerCase() + title.slice(1);
    this.what = what;
    root.append(document.getElementById("slot").content.cloneNode(true));
    this.find = (name) => root.querySelector(`.${name}`);
    const heading = root.querySelector("h2");
    heading.textContent = title;
    heading.id = `title-${key.toLowerCase()}`;
    this.find("sample").id = `sample-${key}`;
    this.find("sample-label").htmlFor = `sample-${key}`;
    this.find("file").setAttribute("aria-label", `Upload a file as ${what}`);
    this.find("record").setAttribute("aria-label", `Record ${what} with the microphone`);
    this.find("level").setAttribute("aria-label", `Level of the microphone for ${what}`);
    if (!pictures) for (const figure of root.querySelectorAll("figure")) figure.remove();
    this.listen();
  }

  listen() {
    this.find("sample").addEventListener("change", () => this.choose(this.find("sample").value));
    this.find("file").addEventListener("change", ({ target }) => {
      if (target.files.length) this.take(target.files[0]);
      target.value = "";
    });
    this.find("record").addEventListener("click", () => this.toggle());
    this.root.addEventListener("dragover", (event) => { event.preventDefault(); this.root.classList.add("over"); });
    this.root.addEventListener("dragleave", () => this.root.classList.remove("over"));
    this.root.addEventListener("drop", (event) => {
      event.preventDefault();
      this.root.classList.remove("over");
      if (event.dataTransfer.files.length) this.take(event.dataTransfer.files[0]);
    });
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.draw());
  }

  allow(model) {
    this.model = model;
    this.find("sample").length = 1;
    for (const { name, title } of this.samples ?? model.samples) this.find("sample").append(new Option(title, name));
  }

  async choose(name) {
    if (!name) return;
    const title = this.find("sample").selectedOptions[0].textContent;
    try {
      await this.take(await this.loadSample(name), title);
    } catch (error) {
      this.fail(error.message);
    }
  }

  async take(file, title) {
    if (!this.model) { this.onLocked(); return; }
    this.turn += 1;
    const turn = this.turn;
    if (!title) this.find("sample").value = "";
    this.clear();
    const most = this.model.max_bytes * this.share;
    if (file.size > most) {
      this.fail(`${file.name} is too large: ${megabytes(file.size)}, this service accepts ${megabytes(most)} per recording. Cut it.`);
      return;
    }
    this.root.setAttribute("aria-busy", "true");
    try {
      const features = await call("/v1/features", { file });
      if (turn !== this.turn) return; // the user has chosen another recording meanwhile
      Object.assign(this, { file, features });
      this.find("name").textContent = `${title || file.name} · ${features.seconds.toFixed(1)} s`;
      this.url = URL.createObjectURL(file);
      this.root.querySelector("audio").src = this.url;
      this.find("pictures").hidden = false;
      this.draw();
    } catch (error) {
      if (turn !== this.turn) return;
      if (error instanceof Locked) this.onLocked();
      this.fail(error.message);
    } finally {
      if (turn === this.turn) this.root.removeAttribute("aria-busy");
      this.onChange();
    }
  }

  draw() {
    if (!this.features || !this.pictures) return;
    const { peaks, frames, mels, seconds } = this.features;
    drawWave(this.find("wave"), peaks);
    drawMel(this.find("mel"), this.features);
    this.find("wave").setAttribute("aria-label", `Waveform of ${this.what}, ${seconds.toFixed(1)} seconds`);
    this.find("mel").setAttribute("aria-label", `Log-mel picture of ${this.what}`);
    this.find("mel-caption").textContent = `What the model receives: ${mels} log-mel bands, ${frames} frames`;
  }

  clear() {
    Object.assign(this, { file: null, features: null });
    if (this.url) URL.revokeObjectURL(this.url);
    this.url = null;
    this.root.querySelector("audio").removeAttribute("src");
    this.find("pictures").hidden = true;
    this.find("message").textContent = "";
    this.onChange();
  }

  fail(message) {
    this.find("message").textContent = message;
    this.onChange();
  }

  async toggle() {
    if (this.recorder) { await this.finish(); return; }
    if (!this.model) { this.onLocked(); return; }
    this.find("message").textContent = "";
    this.recorder = new Recorder({
      maxSeconds: this.model.max_seconds,
      maxBytes: this.model.max_bytes * this.share,
      onLevel: (peak, seconds) => {
        this.find("level").value = peak;
        this.find("clock").textContent = `${seconds.toFixed(1)} s`;
      },
      onFull: () => this.finish(),
    });
    try {
      await this.recorder.start();
      this.recorded(true);
    } catch (error) {
      this.recorder = null;
      this.fail(error.message);
    }
  }

  async finish() {
    const recorder = this.recorder;
    if (!recorder) return;
    this.recorder = null;
    this.recorded(false);
    await this.take(await recorder.stop(`${this.what}.wav`));
  }

  recorded(on) {
    this.find("record").textContent = on ? "Stop" : "Record";
    this.find("record").setAttribute("aria-pressed", String(on));
    this.find("record").setAttribute("aria-label", on ? `Stop: ${this.what}` : `Record ${this.what} with the microphone`);
    this.find("recording").hidden = !on;
  }
}

const megabytes = (bytes) => `${(bytes / 1e6).toFixed(1)} MB`;
