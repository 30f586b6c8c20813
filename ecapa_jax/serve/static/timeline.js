// A time line: the waveform in the colours of who speaks, and below it a lane of turns for each speaker.

import { drawWave } from "./pictures.js";

const COLOURS = 8; // in the style sheet

export const colourOf = (index) => (index % COLOURS) + 1;

export class Timeline {
  constructor(root, { onPlay, onRename }) {
    Object.assign(this, { root, onPlay, onRename, buttons: [] });
    root.addEventListener("keydown", (event) => this.move(event));
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.paint());
  }

  // seconds, peaks: of the recording. speakers: [{ id, name, seconds }]. turns, exclusive: [{ start, end, speaker: id }].
  show({ seconds, peaks, speakers, turns, exclusive }) {
    Object.assign(this, { seconds, peaks, speakers, turns, exclusive });
    this.canvas = make("canvas", { className: "wave", width: 1600, height: 120 });
    this.canvas.setAttribute("role", "img");
    this.canvas.setAttribute("aria-label", `Waveform of the conversation, ${seconds.toFixed(1)} seconds`);
    const lanes = speakers.map((speaker, index) => this.makeLane(speaker, index));
    this.root.replaceChildren(lane([], [this.canvas], "sound"), ...lanes, lane([], this.makeAxis(), "axis"));
    this.root.classList.toggle("bare", !speakers.length);
    this.root.hidden = false;
    this.buttons = turns.map((turn, index) => this.makeTurn(turn, index));
    if (this.buttons.length) this.buttons[0].tabIndex = 0;
    this.follow(0);
    this.paint();
  }

  clear() {
    this.root.hidden = true;
    this.root.replaceChildren();
    this.buttons = [];
    this.peaks = null;
  }

  makeLane(speaker, index) {
    const input = make("input", { value: speaker.name, className: "voice-name" });
    input.autocomplete = "off";
    input.maxLength = 200;
    input.setAttribute("aria-label", `Name of ${speaker.id}`);
    input.addEventListener("change", () => { input.value = this.onRename(speaker, input.value); });
    input.addEventListener("keydown", (event) => { if (event.key === "Enter") input.blur(); });
    const share = Math.round((100 * speaker.seconds) / this.seconds);
    const known = speaker.score === null ? "" : `, score ${speaker.score.toFixed(2)}`;
    const note = make("span", { className: "quiet", textContent: `${speaker.seconds.toFixed(1)} s, ${share} %${known}` });
    return lane([make("span", { className: `swatch voice-${colourOf(index)}` }), input, note], [], "voice");
  }

  makeTurn(turn, index) {
    const place = this.speakers.findIndex(({ id }) => id === turn.speaker);
    const button = make("button", { type: "button", className: `turn voice-${colourOf(place)}`, tabIndex: -1 });
    button.style.left = `${(100 * turn.start) / this.seconds}%`;
    button.style.width = `${(100 * (turn.end - turn.start)) / this.seconds}%`;
    button.addEventListener("click", () => { this.focus(index, false); this.onPlay(turn); });
    this.root.querySelectorAll(".voice .track")[place].append(button);
    return button;
  }

  makeAxis() {
    const step = [1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1200, 1800, 3600].find((each) => this.seconds / each <= 8) ?? 7200;
    const marks = [];
    for (let second = 0; second < this.seconds; second += step) {
      const mark = make("span", { className: "mark-time", textContent: clock(second, 0) });
      mark.style.left = `${(100 * second) / this.seconds}%`;
      marks.push(mark);
    }
    return marks;
  }

  // Names have changed.
  label() {
    this.turns.forEach((turn, index) => {
      const { name } = this.speakers.find(({ id }) => id === turn.speaker);
      const text = `${name}, ${turn.start.toFixed(1)} to ${turn.end.toFixed(1)} seconds`;
      this.buttons[index].setAttribute("aria-label", `Play ${text}`);
      this.buttons[index].title = text;
    });
  }

  paint() {
    if (!this.peaks) return;
    const numbers = new Map(this.speakers.map(({ id }, index) => [id, colourOf(index)]));
    drawWave(this.canvas, this.peaks, (part) => {
      const time = ((part + 0.5) * this.seconds) / this.peaks.length;
      const turn = this.exclusive.find(({ start, end }) => start <= time && time < end);
      return turn ? `--voice-${numbers.get(turn.speaker)}` : "--silence";
    });
  }

  // Marks the moment that is played, and the turn if one is.
  follow(second, playing = null) {
    this.root.style.setProperty("--at", String(second / this.seconds));
    this.root.classList.toggle("plays", playing !== null || second > 0);
    this.turns.forEach((turn, index) => this.buttons[index].classList.toggle("playing", turn === playing));
  }

  focus(index, move = true) {
    this.buttons.forEach((button, place) => { button.tabIndex = place === index ? 0 : -1; });
    if (move) this.buttons[index].focus();
  }

  move(event) {
    const place = this.buttons.indexOf(event.target);
    const last = this.buttons.length - 1;
    const next = { ArrowRight: Math.min(place + 1, last), ArrowLeft: Math.max(place - 1, 0), Home: 0, End: last }[event.key];
    if (place < 0 || next === undefined) return;
    event.preventDefault();
    this.focus(next);
  }
}

export function clock(seconds, digits) {
  const minutes = Math.floor(seconds / 60);
  const rest = (seconds - 60 * minutes).toFixed(digits);
  return `${minutes}:${rest.padStart(digits ? digits + 3 : 2, "0")}`;
}

function lane(names, parts, kind) {
  const row = make("div", { className: `lane ${kind}` });
  const name = make("div", { className: "lane-name" });
  const track = make("div", { className: "track" });
  name.append(...names);
  track.append(...parts);
  row.append(name, track);
  return row;
}

function make(kind, properties) {
  return Object.assign(document.createElement(kind), properties);
}
