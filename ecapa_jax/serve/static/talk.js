// The second tab: a conversation, and who speaks when in it.

import { wav } from "./recorder.js";
import { Locked, call } from "./service.js";
import { Slot } from "./slot.js";
import { Timeline, clock, colourOf } from "./timeline.js";
import { FORMATS } from "./turns.js";

const at = (id) => document.getElementById(id);
const MOST_OFFERED = 10;
const SAMPLES = [{ name: "two", title: "Two people in turn", parts: ["slt_1.flac", "awb_1.flac", "slt_2.flac", "awb_2.flac"] }];
const RATE = 16000;

export class TalkPanel {
  constructor({ onLocked }) {
    Object.assign(this, { onLocked, model: null, answer: null, until: null, playing: null });
    this.slot = new Slot(at("slot-talk"), {
      key: "talk", title: "Conversation", share: 0.99, samples: SAMPLES, loadSample: joinSamples, pictures: false,
      onChange: () => this.changed(), onLocked,
    });
    this.audio = at("slot-talk").querySelector("audio");
    this.timeline = new Timeline(at("timeline"), {
      onPlay: (turn) => this.play(turn),
      onRename: (speaker, name) => this.rename(speaker, name),
    });
    for (let count = 1; count <= MOST_OFFERED; count += 1) at("count").append(new Option(String(count), String(count)));
    at("diarize").addEventListener("click", () => this.search());
    at("stop-turn").addEventListener("click", () => this.audio.pause());
    this.audio.addEventListener("play", () => this.follow());
    this.audio.addEventListener("pause", () => { this.until = null; this.playing = null; this.follow(); });
    for (const button of document.querySelectorAll(".download")) button.addEventListener("click", () => this.download(button.value));
  }

  allow(model) {
    this.model = model;
    this.slot.allow(model);
    at("talk-limit").textContent = `It takes recordings of up to ${lengthOf(model.max_seconds)} and ${(model.max_bytes / 1e6).toFixed(0)} MB.`;
    this.changed();
  }

  fail(message) {
    at("talk-hint").textContent = message;
  }

  changed() {
    const { file, features } = this.slot;
    this.answer = null;
    at("talk-answer").hidden = true;
    at("found").textContent = "No turns yet";
    at("names-message").textContent = "";
    at("diarize").disabled = !file;
    at("talk-hint").textContent = file ? "" : "Choose a recording first.";
    if (file) this.timeline.show({ seconds: features.seconds, peaks: features.peaks, speakers: [], turns: [], exclusive: [] });
    else this.timeline.clear();
  }

  async search() {
    const { file, features } = this.slot;
    const button = at("diarize");
    const begin = performance.now();
    button.disabled = true;
    button.textContent = "Listening …";
    at("talk-hint").textContent = "The first recording takes longer.";
    try {
      const count = at("count").value;
      const answer = await call("/v1/diarize", { file, ...(count && { speakers: count }) });
      if (this.slot.file !== file) return; // the user has chosen another recording meanwhile
      this.show(answer, features);
      const total = performance.now() - begin;
      at("talk-taken").textContent = `${(answer.milliseconds / 1000).toFixed(1)} s in the service, ${(total / 1000).toFixed(1)} s with the upload; model ${answer.model}`;
      at("talk-hint").textContent = "";
    } catch (error) {
      if (error instanceof Locked) this.onLocked();
      this.fail(error.message);
    } finally {
      button.textContent = "Find the speakers";
      button.disabled = !this.slot.file;
    }
  }

  show(answer, { seconds, peaks }) {
    const speakers = answer.speakers.map((speaker) => ({ ...speaker, id: speaker.name }));
    this.answer = { ...answer, speakers };
    this.timeline.show({ seconds, peaks, speakers, turns: answer.turns, exclusive: answer.exclusive });
    at("found").textContent = speakers.length ? `${number(speakers.length, "speaker")}, ${number(answer.turns.length, "turn")}` : "Nobody speaks";
    at("talk-answer").hidden = !speakers.length;
    at("names-message").textContent = "";
    this.list();
  }

  // The list of turns, and every label that holds a name.
  list() {
    const { speakers, turns } = this.answer;
    const rows = turns.map((turn) => {
      const row = document.createElement("tr");
      const place = speakers.findIndex(({ id }) => id === turn.speaker);
      row.insertCell().textContent = clock(turn.start, 1);
      row.insertCell().textContent = clock(turn.end, 1);
      const swatch = Object.assign(document.createElement("span"), { className: `swatch voice-${colourOf(place)}` });
      row.insertCell().append(swatch, ` ${speakers[place].name}`);
      const button = Object.assign(document.createElement("button"), { type: "button", textContent: "Play" });
      button.setAttribute("aria-label", `Play ${speakers[place].name} from ${clock(turn.start, 1)}`);
      button.addEventListener("click", () => this.play(turn));
      row.insertCell().append(button);
      return row;
    });
    at("turns").querySelector("tbody").replaceChildren(...rows);
    this.timeline.label();
  }

  rename(speaker, wanted) {
    const name = wanted.trim();
    const taken = this.answer.speakers.some((other) => other !== speaker && other.name === name);
    at("names-message").textContent = taken ? `Another speaker is named ${name} already.` : "";
    if (name && !taken) {
      speaker.name = name;
      this.list();
    }
    return speaker.name;
  }

  async play(turn) {
    this.audio.currentTime = turn.start;
    Object.assign(this, { until: turn.end, playing: turn });
    try {
      await this.audio.play();
      this.follow();
    } catch (error) {
      if (error.name === "AbortError") return; // another turn was clicked meanwhile
      this.fail("This browser can't play a file of this kind. The turns and the downloads are not affected.");
    }
  }

  // Moves the mark on the time line while the recording plays, and stops at the end of the turn.
  follow() {
    cancelAnimationFrame(this.frame);
    const { audio, answer } = this;
    at("stop-turn").disabled = audio.paused;
    if (!answer) return;
    if (this.playing && audio.currentTime < this.playing.start - 0.2) Object.assign(this, { until: null, playing: null }); // moved by hand
    if (this.until !== null && audio.currentTime >= this.until) audio.pause();
    this.timeline.follow(audio.currentTime, this.playing);
    if (!audio.paused) this.frame = requestAnimationFrame(() => this.follow());
  }

  download(kind) {
    const { recording, duration, speakers, turns } = this.answer;
    const names = new Map(speakers.map(({ id, name }) => [id, name]));
    const text = FORMATS[kind]({
      recording, duration,
      speakers: speakers.map(({ name, seconds, score }) => ({ name, seconds, score })),
      turns: turns.map((turn) => ({ ...turn, speaker: names.get(turn.speaker) })),
    });
    const url = URL.createObjectURL(new Blob([text], { type: "text/plain" }));
    Object.assign(document.createElement("a"), { href: url, download: `${recording}.${kind}` }).click();
    setTimeout(() => URL.revokeObjectURL(url), 10_000);
  }
}

async function joinSamples(name) {
  const { title, parts } = SAMPLES.find((sample) => sample.name === name);
  const decoder = new OfflineAudioContext(1, 1, RATE);
  const blocks = [];
  for (const part of parts) {
    const response = await fetch(`/static/samples/${part}`).catch(() => null);
    if (!response?.ok) throw new Error("The sample can't be read. Check that the service is running.");
    const decoded = await decoder.decodeAudioData(await response.arrayBuffer());
    blocks.push(decoded.getChannelData(0), new Float32Array(RATE / 2));
  }
  const samples = blocks.reduce((sum, block) => sum + block.length, 0);
  return new File([wav(blocks, samples, RATE)], `${title.toLowerCase()}.wav`, { type: "audio/wav" });
}

const number = (count, what) => `${count} ${what}${count === 1 ? "" : "s"}`;
const lengthOf = (seconds) => (seconds < 120 ? `${Math.round(seconds)} seconds` : `${Math.round(seconds / 60)} minutes`);
