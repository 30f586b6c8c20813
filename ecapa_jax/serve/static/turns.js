// Turns as text, as `ecapa-jax diarize --format` writes them, but with the names that the page shows.

export const FORMATS = { rttm: asRttm, srt: asSrt, json: asJson };

// recording: its name. duration: seconds. speakers: [{ name, seconds, score }]. turns: [{ start, end, speaker: name }].
function asRttm({ recording, turns }) {
  return turns.map(({ start, end, speaker }) =>
    `SPEAKER ${field(recording)} 1 ${start.toFixed(3)} ${(end - start).toFixed(3)} <NA> <NA> ${field(speaker)} <NA> <NA>\n`).join("");
}

function asSrt({ turns }) {
  return turns.map(({ start, end, speaker }, index) =>
    `${index + 1}\n${clock(start)} --> ${clock(end)}\n${speaker}\n\n`).join("");
}

function asJson({ recording, duration, speakers, turns }) {
  return `${JSON.stringify({ recording, duration, speakers, turns }, null, 1)}\n`;
}

const field = (text) => text.replace(/\s/gu, "_") || "_";

function clock(seconds) {
  const milliseconds = Math.round(seconds * 1000);
  const part = (size, count, width = 2) => String(Math.floor(milliseconds / size) % count).padStart(width, "0");
  return `${part(3_600_000, 100)}:${part(60_000, 60)}:${part(1000, 60)},${part(1, 1000, 3)}`;
}
