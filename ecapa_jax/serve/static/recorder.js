// Records the unprocessed microphone through an AudioWorklet into a 16-bit WAV file.

const REFUSED = {
  NotAllowedError: "The browser refused the microphone. Allow it in the browser's site settings, or upload a file.",
  NotFoundError: "No microphone was found. Connect one, or upload a file.",
  NotReadableError: "The microphone is in use by another program. Close that program, or upload a file.",
};

const HEADER = 44; // bytes of a WAV file before its samples

export class Recorder {
  constructor({ maxSeconds, maxBytes, onLevel, onFull }) {
    Object.assign(this, { maxSeconds, maxBytes, onLevel, onFull });
    this.blocks = [];
    this.samples = 0;
  }

  async start() {
    if (!navigator.mediaDevices || !window.AudioWorkletNode) {
      throw new Error("This browser records on https and localhost only. Open the page there, or upload a file.");
    }
    const plain = { channelCount: 1, echoCancellation: false, noiseSuppression: false, autoGainControl: false };
    try {
      this.stream = await navigator.mediaDevices.getUserMedia({ audio: plain });
    } catch (error) {
      throw new Error(REFUSED[error.name] || `The microphone can't be used (${error.name}). Upload a file instead.`);
    }
    try {
      this.context = new AudioContext();
      await this.context.audioWorklet.addModule("/static/capture.js");
      const source = this.context.createMediaStreamSource(this.stream);
      this.node = new AudioWorkletNode(this.context, "pcm", { numberOfOutputs: 0, channelCount: 1, channelCountMode: "explicit" });
      this.node.port.onmessage = ({ data }) => this.take(data);
      source.connect(this.node);
      await this.context.resume();
    } catch (error) {
      this.release();
      throw new Error(`Recording can't start (${error.name}). Upload a file instead.`);
    }
  }

  take(block) {
    if (!this.context) return;
    this.blocks.push(block);
    this.samples += block.length;
    let peak = 0;
    for (const sample of block) peak = Math.max(peak, Math.abs(sample));
    this.onLevel(peak, this.samples / this.context.sampleRate);
    if (this.samples >= this.most(this.context.sampleRate)) this.onFull();
  }

  most(rate) {
    return Math.floor(Math.min(this.maxSeconds * rate, (this.maxBytes - HEADER) / 2));
  }

  async stop(name) {
    const rate = this.context.sampleRate;
    this.release();
    return new File([wav(this.blocks, Math.min(this.samples, this.most(rate)), rate)], name, { type: "audio/wav" });
  }

  release() {
    for (const track of this.stream?.getTracks() ?? []) track.stop();
    this.node?.disconnect();
    this.context?.close();
    this.context = undefined;
  }
}

export function wav(blocks, count, rate) {
  const view = new DataView(new ArrayBuffer(HEADER + 2 * count));
  const text = (at, value) => [...value].forEach((letter, index) => view.setUint8(at + index, letter.charCodeAt(0)));
  text(0, "RIFF"); view.setUint32(4, 36 + 2 * count, true); text(8, "WAVEfmt ");
  view.setUint32(16, 16, true); view.setUint16(20, 1, true); view.setUint16(22, 1, true);
  view.setUint32(24, rate, true); view.setUint32(28, 2 * rate, true); view.setUint16(32, 2, true); view.setUint16(34, 16, true);
  text(36, "data"); view.setUint32(40, 2 * count, true);
  let at = 0;
  for (const block of blocks) {
    for (const sample of block) {
      if (at === count) break;
      view.setInt16(HEADER + 2 * at, Math.round(Math.max(-1, Math.min(1, sample)) * 32767), true);
      at += 1;
    }
  }
  return view.buffer;
}
