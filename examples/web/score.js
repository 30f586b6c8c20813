// Scores two recordings with an exported ECAPA-TDNN: decode, embed, cosine.

import * as ort from "./node_modules/onnxruntime-web/dist/ort.wasm.min.mjs";

const SAMPLE_RATE = 16000; // the model's

const field = (id) => document.getElementById(id);
const say = (text) => { field("result").textContent = text; };

// More threads need a server that sends cross-origin isolation headers.
ort.env.wasm.numThreads = 1;
ort.env.wasm.wasmPaths = new URL("./node_modules/onnxruntime-web/dist/", import.meta.url).href;

/** The samples of a recording's first channel at the model's rate. */
async function decode(file) {
  const context = new OfflineAudioContext(1, 1, SAMPLE_RATE); // decoding resamples to its rate
  const audio = await context.decodeAudioData(await file.arrayBuffer());
  return audio.getChannelData(0);
}

/** The embedding of one recording. */
async function embed(session, samples) {
  const { embeddings } = await session.run({
    waveforms: new ort.Tensor("float32", samples, [1, samples.length]),
    lengths: new ort.Tensor("int64", BigInt64Array.of(BigInt(samples.length)), [1]),
  });
  if (Number.isNaN(embeddings.data[0])) throw new Error("a recording is too short for the model");
  return embeddings.data;
}

const dot = (a, b) => a.reduce((sum, value, index) => sum + value * b[index], 0);
const cosine = (a, b) => dot(a, b) / Math.sqrt(dot(a, a) * dot(b, b));

async function score(session) {
  const files = ["a", "b"].map((id) => field(id).files[0]);
  if (!files.every(Boolean)) return;
  say("Listening.");
  try {
    const [a, b] = [await embed(session, await decode(files[0])), await embed(session, await decode(files[1]))];
    const found = cosine(a, b);
    say(`Score ${found.toFixed(4)}: ${found >= Number(field("threshold").value) ? "same speaker" : "two speakers"}`);
  } catch (error) {
    say(`This can't be scored: ${error.message}`);
  }
}

const session = await ort.InferenceSession.create("model.onnx");
say("Choose two recordings.");
for (const id of ["a", "b", "threshold"]) field(id).addEventListener("change", () => score(session));
score(session);
